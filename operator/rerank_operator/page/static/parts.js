// Small pieces that both views show.

import { h, svg, unknown } from "./dom.js";
import { at, figure, known, seconds, times } from "./format.js";

const STATES = {
  serving: { word: "Serving", sign: "●", tone: "good" },
  degraded: { word: "Degraded", sign: "▲", tone: "warn" },
  starting: { word: "Starting", sign: "◔", tone: "info" },
  idle: { word: "At zero", sign: "○", tone: "calm" },
  suspended: { word: "Suspended", sign: "▮▮", tone: "calm" },
  down: { word: "Not serving", sign: "■", tone: "bad" },
  unknown: { word: "Unknown", sign: "?", tone: "warn" },
};

// Worst first.
export const ORDER = ["down", "unknown", "degraded", "starting", "serving", "idle", "suspended"];

export function state(name) {
  const { word, sign, tone } = STATES[name];
  return h("span", { class: `pill ${tone}` }, h("span", { class: "sign", "aria-hidden": "true" }, sign), word);
}

export function tag(text, tone = "calm") {
  return h("span", { class: `pill ${tone}` }, text);
}

export function maintenance(row) {
  if (row.maintenanceTrouble) return h("small", { class: "warn", title: row.maintenanceTrouble }, "no maintenance: its time cannot be read");
  return known(row.maintenance) ? h("small", { title: "alerts are silent until then" }, `maintenance until ${at(row.maintenance).slice(0, 5)}`) : null;
}

// Of sums that lack a gateway.
export function atLeast(text, partial) {
  return partial ? h("span", { title: "a gateway is not heard" }, `≥ ${text}`) : text;
}

export function rate(row, partial) {
  return known(row.rate) ? atLeast(figure(row.rate), partial) : unknown();
}

export function latency(row) {
  if (!known(row.latency)) return unknown(known(row.rate) ? "no answers in the last minute" : "not known");
  const late = known(row.threshold) && row.latency > row.threshold;
  return h("span", { class: late ? "bad" : "" }, late ? h("span", { "aria-hidden": "true" }, "▲ ") : null, seconds(row.latency), late ? h("span", { class: "hidden" }, " (over its objective)") : null);
}

// counted: whether requests are.
export function burn(value, counted, which = "") {
  if (!known(value)) return unknown(counted ? "no requests counted" : "not known");
  const tone = value >= 6 ? "bad" : value > 1 ? "warn" : "";
  const mark = value > 1 ? h("span", { "aria-hidden": "true" }, "▲ ") : null;
  return h("span", { class: tone, title: `${which ? `${which}: ` : ""}1× spends the error budget in just its time` }, mark, times(value));
}

export function workers(row) {
  const ready = known(row.ready) ? row.ready : "–";
  const desired = known(row.desired) ? row.desired : "–";
  const words = `${known(row.ready) ? row.ready : "an unknown number"} ready of ${known(row.desired) ? row.desired : "an unknown number"} wanted`;
  return h(
    "span",
    { title: words },
    h("span", { class: "hidden" }, words),
    h("span", { "aria-hidden": "true" }, `${ready}`, h("span", { class: "dim" }, ` / ${desired}`)),
    row.canary ? h("small", {}, "with canary") : null,
    row.loaned ? h("small", {}, `+ ${row.loaned} warm ${row.loaned === 1 ? "pod" : "pods"}`) : null,
  );
}

const WIDTH = 120;
const HEIGHT = 28;

// Requests a second in the last hour, a gap where nothing is known.
export function spark(values, label) {
  const top = Math.max(...values.filter(known), 0);
  const step = WIDTH / Math.max(1, values.length - 1);
  const place = (value) => (HEIGHT - 2 - (top ? value / top : 0) * (HEIGHT - 5)).toFixed(1);
  const runs = [];
  let run = [];
  values.forEach((value, index) => {
    if (known(value)) run.push(`${(index * step).toFixed(1)},${place(value)}`);
    if ((!known(value) || index === values.length - 1) && run.length) {
      runs.push(run);
      run = [];
    }
  });
  const words = runs.length ? `${label}: at most ${figure(top)} requests a second in the last hour` : `${label}: nothing known yet`;
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img", "aria-label": words },
    svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 1.5, y2: HEIGHT - 1.5, class: "base" }),
    runs.map((points) => svg("polyline", { points: points.length > 1 ? points.join(" ") : `${points[0]} ${points[0]}` })),
  );
}
