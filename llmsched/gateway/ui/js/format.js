// Numbers and times for people.

/** Seconds in at most two units: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min. */
export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const v = Math.max(0, value);
  if (v < 0.9995) return `${Math.round(v * 1000)} ms`;
  if (v < 10) return `${v.toFixed(1)} s`;
  if (v < 90) return `${Math.round(v)} s`;
  const whole = Math.round(v);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export const number = (value, digits = 3) =>
  value === null || value === undefined ? "–"
    : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-GB") : String(Number(value.toPrecision(digits)));

export const milliseconds = (value) =>
  value === null || value === undefined ? "–" : value >= 1000 ? seconds(value / 1000) : `${number(value, 2)} ms`;

/** Seconds on an axis, where there is little room. */
export const axisSeconds = (value) =>
  value === 0 ? "0" : value < 90 ? seconds(value) : value < 5400 ? `${number(value / 60, 2)} min` : `${number(value / 3600, 2)} h`;

const two = (n) => String(n).padStart(2, "0");

/** Time of day of unix seconds; with the date where it was another day. */
export function clock(at) {
  if (!at) return "–";
  const d = new Date(at * 1000), now = new Date();
  const time = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  return d.toDateString() === now.toDateString() ? time : `${d.getDate()}.${d.getMonth() + 1}. ${time}`;
}

export const shortClock = (at) => { const d = new Date(at * 1000); return `${two(d.getHours())}:${two(d.getMinutes())}`; };

/** The last part of a job's id, which is enough to tell jobs apart. */
export const shortId = (id) => `…${id.slice(-8)}`;

export const plural = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

export const words = (name) => name.replaceAll("_", " ");
