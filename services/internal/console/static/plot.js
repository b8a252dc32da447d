import { h } from './dom.js';
import { duration } from './format.js';

// A plot is of an hour, or of what there is, when that is less.
const LEAST = 600, WIDTH = 600, HEIGHT = 100;

// plot draws the history of a value. What it shows is said in words as well.
export function plot(name, history, field, text) {
  const at = history ? history.at : [], values = history ? history[field] : [];
  const known = values.filter((v) => v !== null);
  const most = Math.max(...known, 0), now = values.length ? values[values.length - 1] : null;
  const end = at.length ? at[at.length - 1] : 0;
  const range = Math.max(LEAST, at.length ? end - at[0] : 0);
  const x = (i) => (WIDTH * (1 - (end - at[i]) / range)).toFixed(1);
  const y = (v) => (HEIGHT - 4 - (HEIGHT - 8) * (most > 0 ? v / most : 0)).toFixed(1);
  const runs = [];
  values.forEach((v, i) => {
    if (v === null) runs.push([]);
    else (runs.length ? runs : (runs.push([]), runs))[runs.length - 1].push([x(i), y(v)]);
  });
  const lines = runs.filter((r) => r.length > 0);
  const line = (r) => 'M' + r.map((p) => p.join(' ')).join('L') + (r.length === 1 ? 'h1' : '');
  const area = (r) => `${line(r)}V${HEIGHT}H${r[0][0]}Z`;
  const summary = known.length
    ? `now ${now === null ? 'none' : text(now)}, at most ${text(most)} in the last ${duration(range)}`
    : 'nothing to show yet';
  return h('figure', {},
    h('figcaption', {}, h('span', {}, name), h('span', { class: 'quiet' }, summary)),
    h('svg', { class: 'plot', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': `${name}: ${summary}` },
      h('path', { class: 'area', d: lines.map(area).join('') }),
      h('path', { d: lines.map(line).join('') })));
}
