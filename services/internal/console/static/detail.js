import { audit } from './audit.js';
import { h } from './dom.js';
import { bytes, count, drained, duration } from './format.js';
import { troubles } from './overview.js';
import { plot } from './plot.js';
import { table } from './table.js';

// detail shows one subscription. found has what was asked for it: history, entries, undelivered,
// audit, each absent until it is there, or an Error.
export function detail(name, picture, me, found) {
  const s = picture.queues.flatMap((q) => q.subscriptions).find((x) => x.name === name);
  const several = (picture.buffers || []).length > 1, mayOperate = me.of === name && me.may_operate;
  const head = [h('p', {}, h('a', { href: '#/' }, 'All queues')), h('h1', {}, name)];
  if (!s) return [...head, h('p', {}, 'There is no such subscription now. Its queue may be closed for a moment.')];
  return [...head,
    troubles(picture.troubles.filter((t) => t.about === name || isBuffer(t.about)), 'Troubles of this subscription'),
    steering(s, mayOperate, found.steered),
    h('dl', {}, facts(s).map(([k, v]) => h('div', {}, h('dt', {}, k), h('dd', {}, v)))),
    h('div', { class: 'plots' },
      plot('Backlog in records', found.history, 'backlog', count), plot('Backlog in bytes', found.history, 'bytes', bytes),
      plot('Records/s out', found.history, 'per_second', count), plot('Time to drain', found.history, 'left', duration)),
    h('h2', {}, 'Sessions'),
    table('Deliveries that are connected, and dead ones that left something', ['Delivery', 'State', '#Batches', '#Unfinished', 'Since', 'Session', ...(several ? ['Buffer'] : [])],
      s.deliveries.map((d) => ({ key: d.session, severity: d.live ? '' : 'warning', cells: [d.consumer || '–', d.live ? 'live' : 'dead', count(d.leased_batches), count(d.state_entries),
        d.opened_at.startsWith('0001') ? '–' : new Date(d.opened_at).toLocaleString(), d.session, ...(several ? [d.buffer] : [])] })), 'No delivery is connected.'),
    h('h2', {}, 'Open files'),
    asked(found.entries, (r) => table('What deliveries have not finished', ['File', 'Becomes', '#Length', '#Records', 'Age', 'Delivery'],
      r.entries.map((e) => ({ key: e.session_id + e.key, severity: e.live ? '' : 'warning',
        cells: [...file(e), e.age ? duration(parseFloat(e.age)) : '–', e.live ? e.consumer : e.consumer + ' (dead)'] })),
      'Nothing is unfinished.')),
    more(found.entries, 'entries'),
    h('h2', {}, 'Not delivered'),
    asked(found.undelivered, (r) => [
      table('Dead letters, dropped and lost ranges, the oldest first', ['Partition', '#From', '#To', 'Outcome', 'When', 'Reason', 'Deliver'],
        r.ranges.map((u) => ({ key: `${place(u.source)} ${u.range.first}`, cells: [place(u.source), u.range.first, u.range.next,
          u.outcome.replace('OUTCOME_', '').toLowerCase().replace('_', ' '), u.settled_at ? new Date(u.settled_at).toLocaleString() : '–', u.reason || '–', again(u, mayOperate)] })),
        'Everything that is settled was delivered or filtered.'),
      redriving(r, mayOperate, found),
      r.ranges.length > 0 && h('p', { class: 'quiet' }, 'All of them: ', h('code', {}, `spillway dead-letters ${name}`))]),
    h('h2', {}, 'Audit'),
    h('p', {}, h('button', { class: 'plain', type: 'button', 'data-action': 'audit' }, 'Audit again')),
    asked(found.audit, audit)];
}

export const place = (s) => `${s.topic} ${s.partition}`;

// A buffer's address has a port, which names of queues and subscriptions have not.
const isBuffer = (about) => about.includes(':');

// What a delivery to files keeps of one begins like this. The rest may be cut.
const FILE = /^\{"v":\d+,"in_use":("(?:[^"\\]|\\.)*"),"final":("(?:[^"\\]|\\.)*"),"committed":(\d+),"records":(\d+)/;

// file is what is known of a file: its path, what that will be, its length, its records. What is no
// file is shown as its delivery wrote it.
function file(e) {
  const f = FILE.exec(e.value);
  return f ? [JSON.parse(f[1]), JSON.parse(f[2]), bytes(f[3]), count(f[4])] : [e.value || e.key, '–', '–', '–'];
}

const more = (answer, list) => answer && answer.next_page_token &&
  h('p', { class: 'quiet' }, `These are ${answer[list].length}; there are more.`);

// again is a button that has a range delivered once more. What is lost is not there any more.
function again(u, mayOperate) {
  if (u.outcome === 'OUTCOME_LOST') return '–';
  return h('button', { class: 'plain', type: 'button', 'data-action': 'redrive', disabled: !mayOperate, 'data-outcome': u.outcome, 'data-topic': u.source.topic,
    'data-partition': u.source.partition, 'data-first': u.range.first, 'data-next': u.range.next,
    'aria-label': `Redrive ${place(u.source)} from ${u.range.first}` }, 'Redrive');
}

// redriving is for all dead letters at once, which wants a second press.
function redriving(r, mayOperate, found) {
  const dead = r.ranges.some((u) => u.outcome === 'OUTCOME_DEAD_LETTERED');
  return [
    dead && h('button', { type: 'button', 'data-action': 'redriveAll', disabled: !mayOperate, 'aria-describedby': 'redriving' },
      found.sure ? 'Press again to redrive all dead letters' : 'Redrive all dead letters'),
    h('p', { id: 'redriving', class: 'quiet', role: 'status' }, found.redriven || (!dead ? '' : mayOperate
      ? 'They are delivered once more, and come back when that fails again. Mend what the reason says first.'
      : 'To redrive them, the role operate is wanted.'))];
}

const asked = (answer, draw) => {
  if (answer === undefined) return h('p', { class: 'quiet' }, 'Loading.');
  return answer instanceof Error ? h('p', { class: 'away' }, answer.message) : draw(answer);
};

function steering(s, mayOperate, steered) {
  const verb = s.paused ? 'Resume' : 'Pause';
  return h('div', {},
    h('button', { type: 'button', 'data-action': verb.toLowerCase(), disabled: !mayOperate, 'aria-describedby': 'steering' }, verb),
    h('p', { id: 'steering', class: 'quiet', role: 'status' }, steered || (mayOperate
      ? (s.paused ? 'It is paused: no delivery gets records.' : 'Paused, it keeps its records and gives none to deliveries.')
      : 'To pause and resume it, the role operate is wanted.')));
}

function facts(s) {
  return [
    ['Backlog', `${count(s.backlog_records)} records, ${bytes(s.backlog_bytes)}`],
    ['Oldest', s.backlog_records ? duration(s.age_seconds) : '–'],
    ['Out', `${count(s.out_per_second)} records/s`],
    ['Drained', drained(s, 'keeps up')],
    ['Deferred', count(s.deferred_records)],
    ['Leased', `${count(s.leased_batches)} batches`],
    ['Given back', `${count(s.parked_batches)} batches`],
    ['Dead letters', count(s.dead_lettered_records)],
    ['Dropped', count(s.dropped_offsets)],
    ['Lost', count(s.lost_offsets)],
    ['When full', s.on_full.replace('_', ' ')],
    ['Holds back Kafka', s.required ? 'yes' : 'no'],
  ];
}
