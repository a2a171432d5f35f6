// Numbers and times as text. null is what is not known, and never becomes a number here.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const known = (value) => value !== null && value !== undefined;

export function count(value) {
  return whole.format(value);
}

// Three digits that count: 0.012, 4.57, 45.7, 457, 4,570.
export function figure(value) {
  const size = Math.abs(value);
  if (size >= 100 || value === 0) return whole.format(value);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 10 ? 1 : size >= 1 ? 2 : 3 });
}

export function seconds(value) {
  if (value >= 10) return `${figure(value)} s`;
  if (value >= 1) return `${value.toFixed(2)} s`;
  return `${figure(value * 1000)} ms`;
}

// A share of one. What is nearly everything is not called everything.
export function percent(share, digits = 2) {
  const hundred = 100 * share;
  const text = hundred.toFixed(digits);
  if (share < 1 && Number(text) === 100) return `> ${(100 - 10 ** -digits).toFixed(digits)} %`;
  if (share > 0 && Number(text) === 0) return `< ${(10 ** -digits).toFixed(digits)} %`;
  return `${Number(text)} %`;
}

export function times(value) {
  return `${value >= 100 ? whole.format(value) : value >= 10 ? value.toFixed(1) : value.toFixed(2)}×`;
}

export function at(unix) {
  return clock.format(new Date(unix * 1000));
}

// With the date where it is not of the last hours.
export function when(unix, now) {
  return now - unix < 43200 ? at(unix) : day.format(new Date(unix * 1000));
}

export function age(span) {
  const s = Math.max(0, Math.round(span));
  if (s < 100) return `${s} s`;
  if (s < 6000) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

export function short(revision) {
  return revision || "none";
}
