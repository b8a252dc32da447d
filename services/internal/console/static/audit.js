import { h } from './dom.js';
import { count } from './format.js';

const STATES = ['delivered', 'filtered', 'memory', 'stored', 'leased', 'deferred', 'dead_lettered', 'dropped', 'lost', 'hole'];
const word = (state) => state.replace('_', ' ');

// audit draws each partition as a bar from where the subscription began to what was appended last:
// every offset is in one of the colours, and none is in that of holes.
export function audit(r) {
  if (r.partitions.length === 0) return h('p', {}, 'There is no partition yet.');
  const holes = r.partitions.reduce((n, p) => n + Number(p.hole_offsets), 0);
  return [
    h('p', { role: 'status' }, holes === 0 ? 'Every offset of these partitions is accounted for: there is no hole.' : `${count(holes)} offsets are accounted for nowhere. Keep the data directory and report this.`),
    h('ul', { class: 'legend' }, STATES.map((s) => h('li', {}, h('svg', { class: 'key', viewBox: '0 0 10 10', 'aria-hidden': 'true' }, h('rect', { class: s, width: 10, height: 10 })), ' ', word(s)))),
    h('table', {},
      h('caption', {}, 'Partitions, from their start to the last offset that was appended'),
      h('thead', {}, h('tr', {}, ['Partition', 'Offsets', 'What became of them'].map((x) => h('th', { scope: 'col' }, x)))),
      h('tbody', {}, r.partitions.map((p) => h('tr', { 'data-key': `${p.source.cluster} ${p.source.topic} ${p.source.incarnation} ${p.source.partition}`, class: Number(p.hole_offsets) ? 'critical' : null },
        h('th', { scope: 'row' }, `${p.source.topic} ${p.source.partition}`),
        h('td', { 'data-label': 'Offsets' }, h('span', {}, `${p.start_offset} to ${p.appended_offset}`)),
        h('td', { class: 'wide' }, tile(p)))))),
    r.next_page_token ? h('p', { class: 'quiet' }, 'There are more partitions: ', h('code', {}, `spillway audit ${r.partitions[0].subscription}`)) : null];
}

function tile(p) {
  const start = Number(p.start_offset), all = Number(p.appended_offset) - start;
  const outcomes = Object.entries(p.outcomes).filter(([, n]) => Number(n) > 0);
  const parts = [...outcomes.map(([o, n]) => `${count(n)} ${word(o)}`), `${count(p.pending_offsets)} pending`];
  if (Number(p.hole_offsets)) parts.push(`${count(p.hole_offsets)} in holes`);
  const text = parts.join(', ');
  if (all <= 0) return h('span', {}, text);
  const main = outcomes.sort((a, b) => Number(b[1]) - Number(a[1]))[0];
  const ranges = [{ first: start, next: Number(p.settled_offset), state: main ? main[0] : 'delivered' },
    ...p.ranges.map((r) => ({ first: Number(r.range.first), next: Number(r.range.next), state: r.state }))];
  return h('div', {}, h('span', {}, text),
    h('svg', { class: 'tile', viewBox: '0 0 1000 10', preserveAspectRatio: 'none', role: 'img', 'aria-label': text },
      ranges.filter((r) => r.next > r.first).map((r) => h('rect', { class: STATES.includes(r.state) ? r.state : null, x: (1000 * (r.first - start) / all).toFixed(2),
        width: Math.max(1.5, 1000 * (r.next - r.first) / all).toFixed(2), height: 10 }))));
}
