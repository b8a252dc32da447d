import { h } from './dom.js';
import { bytes, count, drained, duration, percent } from './format.js';
import { plot } from './plot.js';
import { table } from './table.js';

// overview shows what is wrong, and all queues from their sources to their deliveries.
export function overview(picture, histories) {
  return [
    h('h1', {}, 'What flows'),
    troubles(picture.troubles, 'Troubles'),
    picture.queues.map((q) => queue(q, picture.troubles, histories.get(q.name))),
  ];
}

export function troubles(all, title) {
  if (all.length === 0) return h('p', {}, 'No trouble.');
  return h('section', { 'aria-labelledby': 'troubles' },
    h('h2', { id: 'troubles' }, title),
    h('ul', { class: 'troubles' }, all.map((t) => h('li', { class: t.severity },
      h('strong', {}, `${t.severity === 'critical' ? 'Critical' : 'Warning'}: `, t.about.includes('/') ? link(t.about) : t.about),
      h('p', {}, t.what + '.'), h('p', { class: 'quiet' }, t.do)))));
}

export const link = (name) => h('a', { href: '#/' + name.split('/').map(encodeURIComponent).join('/') }, name);

function queue(q, all, history) {
  const id = 'queue-' + q.name;
  if (q.state !== 'open') {
    return h('section', { 'data-key': q.name, 'aria-labelledby': id }, h('h2', { id }, 'Queue ' + q.name), h('p', {}, q.state));
  }
  const shards = q.shards || [];
  return h('section', { 'data-key': q.name, 'aria-labelledby': id },
    h('h2', { id }, 'Queue ' + q.name),
    h('p', {}, `${count(q.in_per_second)} records/s come in`, sources(q)),
    h('div', { class: 'levels' },
      level('Window in memory', q.memory, ''),
      disk('Disk', q),
      shards.length > 1 && shards.map((s) => (s.state === 'open' ? disk(`Disk of shard ${s.number}, ${s.buffer}`, s) : h('p', { class: 'away' }, `Shard ${s.number}, ${s.buffer}: ${s.state}`)))),
    h('div', { class: 'plots' },
      plot('Records/s in', history, 'per_second', count),
      plot('Disk in use', history, 'bytes', bytes),
      plot('Time to full', history, 'left', duration)),
    table('Subscriptions of ' + q.name, ['Subscription', '#Backlog', '#Bytes', '#Age', '#Out/s', '#Drained', 'Deliveries'],
      q.subscriptions.map((s) => ({
        key: s.name,
        severity: worst(all.filter((t) => t.about === s.name)),
        cells: [link(s.name), count(s.backlog_records), bytes(s.backlog_bytes), s.backlog_records ? duration(s.age_seconds) : '–',
          count(s.out_per_second), drained(s, '–'), deliveries(s)],
      })), 'There is no subscription.'));
}

function sources(q) {
  if (q.ingests.length === 0) return '; no ingest is connected.';
  return ' from ' + q.ingests.map((i) => (i.sources.length ? `${i.name} (${i.sources.join(', ')})` : i.name)).join(', ') + '.';
}

// disk is that of a queue, or of a shard of it.
function disk(name, q) {
  const share = q.disk.limit ? q.disk.used / q.disk.limit : 0;
  const never = q.time_to_full.known && q.time_to_full.seconds === null;
  const full = !q.time_to_full.known ? '' : never ? 'not filling' : q.time_to_full.seconds === 0 ? 'full' : 'full in ' + duration(q.time_to_full.seconds);
  return level(name, q.disk, share >= 0.95 ? 'critical' : share >= 0.8 ? 'warning' : '', full);
}

function level(name, l, severity, more) {
  const text = `${percent(l.used, l.limit)} %: ${bytes(l.used)} of ${bytes(l.limit)}${more ? ', ' + more : ''}`;
  return h('div', { class: 'level ' + severity },
    h('span', {}, h('span', {}, name), h('span', { class: 'quiet' }, text)),
    h('progress', { max: 100, value: Math.min(100, percent(l.used, l.limit)), 'aria-label': name, 'aria-valuetext': text }));
}

const worst = (all) => (all.some((t) => t.severity === 'critical') ? 'critical' : all.length ? 'warning' : '');

function deliveries(s) {
  // With several buffers, a delivery has a session with each.
  const names = [...new Set(s.deliveries.map((d) => (d.live ? d.consumer : d.consumer + ' (dead)')))].join(', ') || 'none';
  return s.paused ? 'Paused; ' + names : names;
}
