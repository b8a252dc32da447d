import { h } from './dom.js';

// table makes one that is a list of cards on narrow screens. Heads that begin with # are of
// numbers. The first cell names the row.
export function table(caption, heads, rows, nothing) {
  if (rows.length === 0) return h('p', { class: 'quiet' }, nothing);
  const plain = heads.map((x) => x.replace('#', ''));
  const kind = (i) => (heads[i].startsWith('#') ? 'number' : null);
  return h('table', {},
    h('caption', {}, caption),
    h('thead', {}, h('tr', {}, plain.map((x, i) => h('th', { scope: 'col', class: kind(i) }, x)))),
    h('tbody', {}, rows.map((r) => h('tr', { 'data-key': r.key, class: r.severity || null },
      r.cells.map((c, i) => (i === 0 ? h('th', { scope: 'row' }, c) : h('td', { class: kind(i), 'data-label': plain[i] }, h('span', {}, c))))))));
}
