// Numbers for people, as `spillway top` shows them.

export function count(n) {
  if (n === null || n === undefined) return '?';
  n = Number(n);
  if (n > 0 && n < 0.05) return '<0.1';
  if (n > 0 && n < 9.95 && !Number.isInteger(n)) return n.toFixed(1);
  if (n < 999999.5) return Math.round(n).toLocaleString('en-US');
  for (const unit of ['M', 'G', 'T', 'P']) {
    n /= 1000;
    if (n < 999500) return (n / 1000).toPrecision(3) + unit;
  }
  return 'lots';
}

export function bytes(n) {
  n = Number(n);
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let u = 0;
  for (; n >= 1024 && u < units.length - 1; u++) n /= 1024;
  return u === 0 ? `${n} B` : `${n.toFixed(1)} ${units[u]}`;
}

export function duration(seconds) {
  const s = Math.floor(Number(seconds));
  const two = (n) => String(n).padStart(2, '0');
  if (s < 1) return '<1s';
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${two(s % 60)}s`;
  if (s < 48 * 3600) return `${Math.floor(s / 3600)}h${two(Math.floor(s % 3600 / 60))}m`;
  return `${Math.floor(s / 86400)}d${Math.floor(s % 86400 / 3600)}h`;
}

export const percent = (part, whole) => (whole > 0 ? Math.round(100 * part / whole) : 0);

// left tells a forecast; done is the word for one that has come true.
function left(forecast, done) {
  if (!forecast.known) return 'not known yet';
  if (forecast.seconds === null) return 'never at this speed';
  return forecast.seconds === 0 ? done : 'in ' + duration(forecast.seconds);
}

export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

// drained tells when a backlog is gone, if it is more than what is on its way anyhow.
export function drained(s, otherwise) {
  const behind = s.backlog_records > 0 && (s.deferred_records > 0 || s.age_seconds >= 5);
  return behind ? left(s.time_to_drain, 'now') : otherwise;
}
