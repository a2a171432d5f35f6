// One Reranker: objectives, charts, its canary, what has happened, conditions and workers. Renewed in place.

import { Chart } from "./charts.js";
import { h, put, renew, unknown } from "./dom.js";
import { age, count, figure, known, percent, seconds, short, when } from "./format.js";
import { partial } from "./notices.js";
import * as parts from "./parts.js";

const FEW = 12;
const SLI = { availability: "Availability", latency: "Latency" };
const VERDICTS = { pass: ["✓ pass", "good"], fail: ["✗ fail", "bad"], hold: ["… hold", "info"] };
const TOPICS = { scaling: "Scaling", rollout: "Rollout", condition: "Condition" };
const MODES = {
  Auto: "Demand decides",
  Recommend: "Demand only recommends",
  Paused: "Held",
  ByHand: "By hand",
  Suspended: "Suspended",
};

export class RerankerView {
  constructor(namespace, name) {
    this.all = false;
    this.title = h("h1", { tabindex: "-1" }, name);
    this.head = h("div", { class: "head" }, h("span", { class: "dim" }, namespace));
    this.words = h("p", { class: "words" });
    this.facts = h("dl", { class: "facts" });
    this.objectives = h("div", { class: "grid" });
    this.charts = makeCharts();
    this.rollout = h("div", {});
    this.revisions = h("div", {});
    this.history = h("ol", { class: "history" });
    this.known = h("p", { class: "dim" });
    this.more = h("button", { type: "button", class: "plain", onclick: () => this.showAll() }, "Show all");
    this.conditions = h("div", {});
    this.workers = h("div", {});
    this.missing = h("p", { class: "empty", hidden: true });
    const section = (title, ...inner) => h("section", { "aria-label": title }, h("h2", {}, title), ...inner);
    this.sections = h(
      "div",
      { class: "sections", hidden: true },
      this.facts,
      section("Objectives", this.objectives),
      section("The last hour", h("div", { class: "grid" }, this.charts.map((chart) => chart.element))),
      section("Canary", this.rollout),
      section("Revisions, last 5 minutes", this.revisions),
      section("Recent decisions", this.history, this.more, this.known),
      section("Conditions", this.conditions),
      section("Workers", this.workers),
    );
    this.element = h("div", { class: "view" }, h("div", { class: "titles" }, this.title, this.head), this.words, this.missing, this.sections);
  }

  start() {
    this.started = true;
    if (!this.sections.hidden) this.charts.forEach((chart) => chart.start());
  }

  stop() {
    this.charts.forEach((chart) => chart.stop());
  }

  showAll() {
    this.all = !this.all;
    if (this.told) this.fillHistory(this.told);
  }

  // What cannot be shown, and why.
  lack(words) {
    this.missing.hidden = false;
    this.missing.textContent = words;
    this.sections.hidden = true;
    put(this.words);
  }

  show(told) {
    this.told = told;
    if (!told.row) return this.lack(told.message);
    const { row, seen } = told;
    renew(this.head, h("span", { class: "dim" }, row.namespace), parts.state(row.state), parts.maintenance(row));
    renew(this.words, h("strong", {}, row.reason), `: ${row.message}`);
    const first = this.sections.hidden;
    this.sections.hidden = false;
    this.missing.hidden = true;
    if (first && this.started) this.charts.forEach((chart) => chart.start());
    renew(this.facts, facts(told));
    renew(this.objectives, told.objectives.map((one) => objective(one, told)));
    this.showCharts(told);
    renew(this.rollout, rollout(told));
    renew(this.revisions, revisions(told));
    this.fillHistory(told);
    renew(this.conditions, conditions(told));
    renew(this.workers, workers(told, seen.time));
    return undefined;
  }

  showCharts({ seen, times, points, objectives }) {
    const { threshold } = objectives.find((one) => one.sli === "latency") ?? {};
    const columns = { ...points, threshold: times.map(() => threshold ?? null) };
    for (const chart of this.charts) {
      const values = chart.lines.map((line) => columns[line.name] ?? times.map(() => null));
      chart.show(seen.time, times, values, points.partial ?? []);
    }
  }

  fillHistory({ history, historySince, row, seen }) {
    const shown = this.all ? history : history.slice(0, FEW);
    renew(
      this.history,
      shown.length
        ? shown.map((note) =>
            h(
              "li",
              { class: note.warning ? "warning" : "" },
              h("time", { datetime: new Date(note.time * 1000).toISOString() }, when(note.time, seen.time)),
              h("span", { class: "topic" }, TOPICS[note.topic]),
              h("p", {}, note.warning ? h("span", { class: "hidden" }, "Warning. ") : null, h("strong", {}, note.reason), ` ${note.text}`),
            ),
          )
        : h("li", { class: "dim" }, "Nothing yet."),
    );
    renew(this.known, known(historySince) ? `Seen as they happened since ${when(historySince, seen.time)}; from before, what the status still told. Events: ` : "", known(historySince) ? h("code", {}, `kubectl events --for reranker/${row.name} -n ${row.namespace}`) : null);
    this.more.hidden = history.length <= FEW;
    this.more.textContent = this.all ? "Show fewer" : `Show all ${history.length}`;
  }
}

function makeCharts() {
  return [
    new Chart({
      title: "Requests",
      hint: "a second",
      lines: [
        { name: "rate", label: "all", color: "blue", fill: true },
        { name: "failed", label: "failed", color: "red" },
      ],
      form: figure,
    }),
    new Chart({
      title: "Latency",
      hint: "of 30 s each",
      lines: [
        { name: "p50", label: "p50", color: "teal" },
        { name: "p95", label: "p95", color: "blue" },
        { name: "p99", label: "p99", color: "violet" },
        { name: "threshold", label: "objective", color: "ink", dash: true },
      ],
      form: (value) => (value === 0 ? "0" : seconds(value)),
      least: 0.01,
    }),
    new Chart({
      title: "Queue",
      hint: "requests",
      lines: [
        { name: "waiting", label: "waiting", color: "amber", fill: true, stepped: true },
        { name: "inFlight", label: "at workers", color: "blue", stepped: true },
      ],
      form: figure,
      least: 4,
      whole: true,
    }),
    new Chart({
      title: "Workers",
      hint: "as the status has them",
      lines: [
        { name: "ready", label: "ready", color: "teal", fill: true, stepped: true },
        { name: "desired", label: "wanted", color: "ink", dash: true, stepped: true },
        { name: "loaned", label: "warm pods", color: "violet", stepped: true },
      ],
      form: figure,
      least: 2,
      whole: true,
    }),
  ];
}

function facts({ row, seen, model, modelRevision, current, updated, rejected, minReplicas, maxReplicas, mode, scaling, capacity }) {
  const lacks = partial(seen);
  const differs = updated && updated !== current;
  const fact = (name, ...value) => h("div", {}, h("dt", {}, name), h("dd", {}, ...value));
  return [
    fact("Requests/s", parts.rate(row, lacks), h("small", {}, "last minute")),
    fact("Waiting", known(row.waiting) ? parts.atLeast(count(row.waiting), lacks) : unknown(), h("small", {}, "in queues")),
    fact("Workers", parts.workers(row), h("small", {}, `${minReplicas} to ${maxReplicas} allowed`)),
    fact("Serves", h("code", {}, short(current)), differs ? h("small", {}, "asked for: ", h("code", {}, updated), rejected === updated ? " (rejected)" : "") : h("small", {}, "as asked for")),
    h("div", { class: "wide" }, h("dt", {}, differs ? "Model asked for" : "Model"), h("dd", { class: "plain" }, h("code", {}, model), modelRevision ? [" at ", h("code", {}, modelRevision)] : null)),
    h("div", { class: "wide" }, h("dt", {}, "Scaling"), h("dd", { class: "plain" }, mode ? `${MODES[mode] ?? mode}: ` : "Not known yet. ", scaling, capacity ? h("small", {}, `one worker: ${count(capacity)} tokens a second, as measured`) : null)),
  ];
}

function objective(one, { since, seen }) {
  const title = one.sli === "latency" ? `p${figure(100 * one.objective)} within ${known(one.threshold) ? seconds(one.threshold) : "an unknown time"}` : `${figure(100 * one.objective)} % answered`;
  const digits = Math.max(2, Math.ceil(-Math.log10(1 - one.objective)));
  const span = (name, good, total, burn) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", { class: "number" }, known(total) && total > 0 ? percent(good / total, digits) : unknown(known(total) ? "no requests" : "not counted")),
      h("td", { class: "number" }, known(total) ? count(total - good) : unknown()),
      h("td", { class: "number" }, known(total) ? count(total) : unknown()),
      h("td", { class: "number" }, parts.burn(burn, known(total))),
    );
  const over = known(one.burn) && one.burn > 1;
  const kept = known(one.burn) ? (over ? parts.tag("▲ spends its budget too fast", one.burn >= 6 ? "bad" : "warn") : parts.tag("✓ kept", "good")) : parts.tag(known(one.total) ? "no requests" : "not known", "calm");
  return h(
    "section",
    { class: "card", "aria-label": SLI[one.sli] },
    h("h3", {}, SLI[one.sli], h("small", {}, title)),
    h("p", { class: "kept" }, kept),
    h(
      "table",
      { class: "plain" },
      h("caption", { class: "hidden" }, `${SLI[one.sli]}: ${title}`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Span"), ...["Good", "Bad", "All", "Burn"].map((name) => h("th", { scope: "col", class: "number" }, name)))),
      h("tbody", {}, span("5 minutes", one.good, one.total, one.burn), span(known(since) ? `since ${when(since, seen.time)}` : "since this page looks", one.goodEver, one.totalEver, one.burnEver)),
    ),
  );
}

const STEP_OF = { load: "Starting", golden: "Golden", mirror: "Mirror" };

function rollout({ rollout: told, seen }) {
  if (!told) return h("p", { class: "dim" }, "None has been tried.");
  const { status, active, strategy, steps, gates } = told;
  const failed = (status.checks ?? []).find((check) => check.verdict === "fail");
  const ended = status.phase === "Promoted" ? gates.length : failed ? Math.max(0, gates.indexOf(STEP_OF[failed.name] ?? "Traffic")) : -1;
  const at = active ? gates.indexOf(status.phase) : ended;
  const stage = (gate, index) => {
    const state = index < at ? "done" : index > at || at < 0 ? "ahead" : active ? "now" : "lost";
    const sign = { done: "✓ ", now: "", ahead: "", lost: "✗ " }[state];
    const said = { done: " (passed)", now: " (now)", ahead: " (not yet)", lost: " (failed)" }[state];
    const shares = gate === "Traffic" ? h("span", { class: "shares" }, steps.map((step, number) => h("span", { class: state === "done" || number < (status.step ?? 0) ? "done" : state === "now" && number === (status.step ?? 0) ? "now" : "" }, `${step} %`))) : null;
    return h("li", { class: state, "aria-current": state === "now" ? "step" : null }, h("span", {}, sign, gate, h("span", { class: "hidden" }, said)), shares);
  };
  const tone = status.phase === "RolledBack" ? "bad" : status.phase === "Promoted" ? "good" : status.paused ? "warn" : "info";
  return [
    h(
      "p",
      {},
      parts.tag(status.paused && active ? `${status.phase}, paused` : status.phase, tone),
      " revision ",
      h("code", {}, status.revision),
      " beside ",
      h("code", {}, status.stable),
      h("span", { class: "dim" }, ` ${strategy}`, active ? `, ${status.percent ?? 0} % of the requests` : "", `, ${count(status.requests ?? 0)} requests of users answered`),
    ),
    h("ol", { class: "stages", "aria-label": "Phases of the rollout" }, gates.map(stage)),
    status.message ? h("p", { class: "words" }, status.message) : null,
    status.paused && !(status.message ?? "").includes(status.paused) ? h("p", { class: "words" }, h("strong", {}, "Paused: "), status.paused) : null,
    (status.checks ?? []).length
      ? table("Checks of the canary", ["Check", "Verdict", "Figures"], status.checks.map((check) => [check.name, parts.tag(...VERDICTS[check.verdict]), check.message || "–"]), "checks")
      : h("p", { class: "dim" }, "No check has said anything yet."),
    status.started ? h("p", { class: "dim" }, `Began ${when(Date.parse(status.started) / 1000, seen.time)}${status.ended ? `, ended ${when(Date.parse(status.ended) / 1000, seen.time)}` : ""}.`) : null,
  ];
}

function revisions({ revisions: told, seen, codes, window: span }) {
  const lacks = partial(seen);
  const asked = Object.entries(codes);
  const none = (one, words) => unknown(known(one.rate) ? words : "not known");
  const time = (one, value) => (known(value) ? seconds(value) : none(one, "no answers"));
  const rows = told.map((one) => [
    one.revision ? h("code", {}, one.revision) : h("span", { class: "dim" }, "none chosen"),
    one.role || "–",
    known(one.percent) ? `${one.percent} %` : "–",
    known(one.rate) ? parts.atLeast(figure(one.rate), lacks) : unknown(),
    known(one.failed) ? percent(one.failed) : none(one, "no requests"),
    time(one, one.p50),
    time(one, one.p95),
    time(one, one.p99),
  ]);
  return [
    rows.length ? table("Revisions", ["Revision", "Role", "Share", "Requests/s", "Failed", "p50", "p95", "p99"], rows, "figures") : h("p", { class: "dim" }, "No revision has a share of the requests."),
    h("p", { class: "dim" }, asked.length ? `Answers of ${age(span)} by code: ${asked.map(([code, many]) => `${code}: ${count(many)}`).join(", ")}` : span ? "No answers counted." : "What was answered is not known."),
  ];
}

function conditions({ conditions: told, seen }) {
  if (!told.length) return h("p", { class: "dim" }, "The operator has written none yet.");
  const rows = told.map((one) => [one.type, one.status, one.reason, one.message, when(Date.parse(one.lastTransitionTime) / 1000, seen.time)]);
  return table("Conditions", ["Type", "Status", "Reason", "Message", "Since"], rows, "conditions");
}

const TONES = { ready: "good", starting: "info", waiting: "warn", stopping: "calm", ended: "calm", unheard: "warn" };

function workers({ workers: told }, now) {
  if (!told.length) return h("p", { class: "dim" }, "There are none.");
  const rows = told.map((one) => [
    h("code", {}, one.name),
    [parts.tag(one.state === "unheard" ? "node silent" : one.state, TONES[one.state]), one.message ? h("small", {}, one.message) : null],
    one.loaned ? "warm pod on loan" : h("code", {}, one.revision),
    known(one.since) ? when(one.since, now) : "–",
    count(one.restarts),
  ]);
  return table("Workers", ["Pod", "State", "Revision", "Ready since", "Restarts"], rows, "pods");
}

function table(caption, heads, rows, kind) {
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}, a table` },
    h(
      "table",
      { class: kind },
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map(([first, ...others]) => h("tr", {}, h("th", { scope: "row" }, first), others.map((cell) => h("td", {}, cell))))),
    ),
  );
}
