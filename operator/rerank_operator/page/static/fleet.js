// The fleet at a glance: a row for each Reranker, renewed in place.

import { h, put, renew, unknown } from "./dom.js";
import { count, figure, known, seconds } from "./format.js";
import { partial } from "./notices.js";
import * as parts from "./parts.js";

const COLUMNS = [
  { name: "Reranker", by: (row) => `${row.namespace}/${row.name}` },
  { name: "State", by: (row) => parts.ORDER.indexOf(row.state) },
  { name: "Workers", hint: "ready / wanted", number: true, by: (row) => -(row.ready ?? -1) },
  { name: "Queue", hint: "waiting", number: true, by: (row) => -(row.waiting ?? -1) },
  { name: "Requests/s", hint: "last minute", number: true, by: (row) => -(row.rate ?? -1) },
  { name: "Latency", hint: "against objective", number: true, by: (row) => -(known(row.latency) && known(row.threshold) ? row.latency / row.threshold : -1) },
  { name: "Budget burn", hint: "5 minutes", number: true, by: (row) => -(row.burn ?? -1) },
  { name: "Canary", by: (row) => (row.canary ? 0 : 1) },
  { name: "Requests/s", hint: "last hour" },
];

export class FleetView {
  constructor() {
    this.sorted = 0;
    this.turned = false;
    this.wanted = "";
    this.lines = new Map();
    this.tiles = h("dl", { class: "tiles" });
    this.search = h("input", { type: "search", placeholder: "Filter by name", "aria-label": "Filter by name", oninput: () => this.filter() });
    this.found = h("p", { class: "dim", role: "status" });
    this.heads = COLUMNS.map((column, index) => this.head(column, index));
    this.body = h("tbody", { role: "rowgroup" });
    this.table = h(
      "table",
      { class: "fleet", role: "table" },
      h("caption", { class: "hidden" }, "Rerankers of this cluster"),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, this.heads)),
      this.body,
    );
    this.empty = h("p", { class: "empty", hidden: true });
    this.element = h(
      "div",
      { class: "view" },
      h("h1", { tabindex: "-1" }, "Fleet"),
      this.tiles,
      h("div", { class: "tools" }, this.search, this.found),
      this.table,
      this.empty,
    );
  }

  head(column, index) {
    const words = [column.name, column.hint ? h("small", {}, column.hint) : null];
    const inner = column.by ? h("button", { type: "button", onclick: () => this.sort(index) }, h("span", {}, words), h("span", { class: "arrow", "aria-hidden": "true" })) : h("span", {}, words);
    return h("th", { scope: "col", role: "columnheader", class: column.number ? "number" : "", "aria-sort": column.by ? (index === 0 ? "ascending" : "none") : null }, inner);
  }

  sort(index) {
    this.turned = this.sorted === index && !this.turned;
    this.sorted = index;
    this.heads.forEach((head, at) => {
      if (COLUMNS[at].by) head.setAttribute("aria-sort", at === index ? (this.turned ? "descending" : "ascending") : "none");
    });
    if (this.told) this.arrange();
  }

  filter() {
    this.wanted = this.search.value.trim().toLowerCase();
    if (this.told) this.arrange();
  }

  show(told) {
    this.told = told;
    put(this.tiles, tiles(told));
    const keys = new Set();
    for (const row of told.rerankers) {
      const key = `${row.namespace}/${row.name}`;
      keys.add(key);
      if (!this.lines.has(key)) this.lines.set(key, newLine());
      fillLine(this.lines.get(key), row, partial(told.seen));
    }
    for (const key of this.lines.keys()) if (!keys.has(key)) this.lines.delete(key);
    // Rows do not move under a pointer or a focus.
    const busy = this.body.matches(":hover") || this.body.contains(document.activeElement);
    if (!busy || this.body.childElementCount !== keys.size) this.arrange();
  }

  arrange() {
    const { by } = COLUMNS[this.sorted];
    const name = COLUMNS[0].by;
    const rows = this.told.rerankers.filter((row) => name(row).toLowerCase().includes(this.wanted));
    rows.sort((one, other) => {
      const [a, b] = [by(one), by(other)];
      const first = a < b ? -1 : a > b ? 1 : 0;
      return (this.turned ? -first : first) || name(one).localeCompare(name(other));
    });
    const lines = rows.map((row) => this.lines.get(name(row)));
    if (lines.length !== this.body.childElementCount || lines.some((line, at) => line !== this.body.children[at])) put(this.body, lines);
    const all = this.told.rerankers.length;
    const words = this.wanted ? `${rows.length} of ${all}` : "";
    if (this.found.textContent !== words) this.found.textContent = words;
    this.table.hidden = all === 0;
    this.search.parentElement.hidden = all === 0;
    this.empty.hidden = rows.length > 0 || !this.told.seen.synced;
    renew(this.empty, all === 0 ? ["There is no Reranker yet: ", h("code", {}, "kubectl apply -f docs/examples/minimal.yaml")] : "No name fits.");
  }
}

function tiles({ rerankers, seen }) {
  const some = (states) => rerankers.filter((row) => states.includes(row.state)).length;
  const sum = (field) => {
    const told = rerankers.map((row) => row[field]).filter(known);
    return told.length ? told.reduce((all, one) => all + one, 0) : null;
  };
  const attention = some(["down", "unknown", "degraded"]);
  const burning = rerankers.filter((row) => known(row.burn) && row.burn > 1).length;
  // Before anything is listed or counted, 0 would be a guess.
  const listed = seen.synced;
  const counted = listed && (rerankers.length === 0 || rerankers.some((row) => known(row.rate)));
  const tile = (name, value, more = "", tone = "") => h("div", { class: `tile ${tone}` }, h("dt", {}, name), h("dd", {}, value, h("small", {}, more)));
  const total = (field, form) => (known(sum(field)) ? parts.atLeast(form(sum(field)), partial(seen)) : unknown());
  return [
    tile("Rerankers", listed ? count(rerankers.length) : unknown(), listed ? `${some(["serving"])} serving, ${some(["idle", "suspended"])} at rest` : ""),
    tile("Need attention", listed ? count(attention) : unknown(), attention || !listed ? "degraded, unknown or not serving" : "nothing is known to be wrong", !listed ? "" : attention ? "warn" : "good"),
    tile("Over budget", counted ? count(burning) : unknown(), "spend errors faster than promised", !counted ? "" : burning ? "warn" : "good"),
    tile("Requests/s", total("rate", figure), "last minute"),
    tile("Waiting", total("waiting", count), "requests in queues"),
    tile("Workers", known(sum("ready")) ? count(sum("ready")) : unknown(), known(sum("loaned")) ? `ready, and ${count(sum("loaned"))} warm pods` : "ready"),
  ];
}

function newLine() {
  const cell = (index) => h("td", { role: "cell", class: COLUMNS[index].number ? "number" : "", "data-label": COLUMNS[index].hint === "last hour" ? "Last hour" : COLUMNS[index].name });
  const cells = COLUMNS.slice(1).map((_, index) => cell(index + 1));
  return h("tr", { role: "row" }, h("th", { scope: "row", role: "rowheader" }), cells);
}

function fillLine(line, row, lacks) {
  const [name, state, workers, queue, rate, latency, burn, canary, spark] = line.children;
  const full = `${row.namespace}/${row.name}`;
  renew(name, h("a", { href: `#/${encodeURIComponent(row.namespace)}/${encodeURIComponent(row.name)}` }, row.name), h("small", {}, row.namespace));
  renew(state, parts.state(row.state), h("small", { title: row.message }, row.reason), parts.maintenance(row));
  renew(workers, parts.workers(row));
  renew(queue, known(row.waiting) ? parts.atLeast(count(row.waiting), lacks) : unknown());
  renew(rate, parts.rate(row, lacks), known(row.failed) && row.failed > 0 ? h("small", { class: "bad" }, `${figure(100 * row.failed)} % failed`) : h("small", {}, "\u00a0"));
  renew(latency, parts.latency(row), h("small", {}, known(row.threshold) ? `p${figure(100 * row.quantile)} ≤ ${seconds(row.threshold)}` : "\u00a0"));
  renew(burn, parts.burn(row.burn, known(row.rate), row.burning), h("small", {}, known(row.burn) && row.burn > 1 ? row.burning : "\u00a0"));
  renew(canary, row.canary ? [parts.tag(row.canary, row.paused ? "warn" : "info"), h("small", {}, row.paused ? "paused" : `${row.percent} % of requests`)] : h("span", { class: "dim" }, "none"));
  renew(spark, parts.spark(row.spark, full));
}
