// One chart of the last hour: lines by uPlot, a legend with the latest values, and the same as a table.

import { h, put } from "./dom.js";
import { at, known } from "./format.js";
import uPlot from "./vendor/uplot/uPlot.esm.js";

const HEIGHT = 190;
const SPAN = 3600;
const LEAST_SPAN = 600;
const ROWS = 60;
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000];

const dark = matchMedia("(prefers-color-scheme: dark)");

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export class Chart {
  // lines: {name, label, color (of page.css), dash, fill, stepped}; form: a value as text; least: what the axis shows at least.
  // whole: there are no halves of it.
  constructor({ title, hint, lines, form, least = 1, whole = false }) {
    Object.assign(this, { title, lines, form, least, whole });
    this.values = lines.map((line) => h("td", { class: "number" }, "–"));
    this.moment = h("th", { scope: "col", class: "number dim" }, "now");
    this.canvas = h("div", { class: "canvas", role: "img" });
    this.rows = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, as a table` });
    this.more = h("details", { ontoggle: () => this.fillTable() }, h("summary", {}, "As a table"), this.rows);
    const id = `chart-${title.replace(/\W+/g, "-").toLowerCase()}`;
    this.element = h(
      "section",
      { class: "card chart", "aria-labelledby": id },
      h("h3", { id }, title, h("small", {}, hint)),
      this.canvas,
      h(
        "table",
        { class: "legend" },
        h("caption", { class: "hidden" }, `${title}: values under the pointer, or the latest ones`),
        h("thead", { class: "hidden" }, h("tr", {}, h("th", { scope: "col" }, "Line"), this.moment)),
        h("tbody", {}, lines.map((line, index) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: `swatch ${line.color} ${line.dash ? "dashed" : ""}`, "aria-hidden": "true" }), line.label), this.values[index]))),
      ),
      this.more,
    );
    this.data = [[], ...lines.map(() => [])];
    this.partial = [];
    this.now = Date.now() / 1000;
    this.size = new ResizeObserver(() => this.plot?.setSize({ width: this.canvas.clientWidth, height: HEIGHT }));
    this.repaint = () => this.draw();
  }

  // Once it is in the document.
  start() {
    this.size.observe(this.canvas);
    dark.addEventListener("change", this.repaint);
    this.draw();
  }

  stop() {
    this.size.disconnect();
    dark.removeEventListener("change", this.repaint);
    this.plot?.destroy();
    this.plot = null;
  }

  // times: Unix seconds; columns: as many values for each line, null where it is not known; partial: 1 where a gateway was not heard.
  show(now, times, columns, partial) {
    this.now = now;
    this.data = [times, ...columns];
    this.partial = partial;
    if (this.plot) this.plot.setData(this.data);
    this.tell(null);
    if (this.more.open) this.fillTable();
    this.canvas.setAttribute("aria-label", this.words());
  }

  draw() {
    this.plot?.destroy();
    this.plot = new uPlot(this.options(), this.data, this.canvas);
  }

  options() {
    const ink = color("dim");
    const axis = { stroke: ink, grid: { stroke: color("grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    return {
      width: this.canvas.clientWidth || 400,
      height: HEIGHT,
      legend: { show: false },
      padding: [10, 20, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        // An hour, once there is one: the first minutes are not squeezed into a corner.
        x: { range: () => [Math.max(this.now - SPAN, Math.min(this.data[0][0] ?? this.now, this.now - LEAST_SPAN)), this.now] },
        y: { range: (_, low, high) => [0, Math.max(this.least, (high ?? 0) * 1.1)] },
      },
      axes: [
        { ...axis, values: (_, splits) => splits.map((split) => at(split).slice(0, 5)), space: 60, size: 28, gap: 6 },
        { ...axis, values: (_, splits) => splits.map((split) => this.form(split)), size: 66, gap: 6, ...(this.whole ? { incrs: WHOLE } : {}) },
      ],
      series: [
        {},
        ...this.lines.map((line) => ({
          stroke: color(line.color),
          width: line.dash ? 1.5 : 2,
          dash: line.dash ? [5, 4] : undefined,
          fill: line.fill ? `${color(line.color)}22` : undefined,
          paths: line.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
          points: { show: (plot, index, from, to) => to - from < 2 },
          spanGaps: false,
        })),
      ],
      hooks: { drawClear: [(plot) => this.shade(plot)], setCursor: [(plot) => this.tell(plot.cursor.idx)] },
    };
  }

  // Behind the times at which a gateway was not heard.
  shade(plot) {
    const [times] = this.data;
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.fillStyle = color("lacks");
    this.partial.forEach((lacks, index) => {
      if (!lacks) return;
      const from = plot.valToPos(times[index - 1] ?? times[index], "x", true);
      ctx.fillRect(from, bbox.top, Math.max(1, plot.valToPos(times[index], "x", true) - from), bbox.height);
    });
    ctx.restore();
  }

  tell(index) {
    const [times] = this.data;
    const place = known(index) ? index : times.length - 1;
    this.moment.textContent = known(index) && known(times[place]) ? at(times[place]) : "now";
    this.lines.forEach((_, line) => {
      const value = this.data[line + 1][place];
      this.values[line].textContent = known(value) ? this.form(value) : "–";
    });
  }

  words() {
    const last = this.data[0].length - 1;
    const said = this.lines.map((line, index) => {
      const value = this.data[index + 1][last];
      return `${line.label} ${known(value) ? this.form(value) : "not known"}`;
    });
    return `${this.title} in the last hour. Now: ${said.join(", ")}`;
  }

  // The latest point of each minute, newest first.
  fillTable() {
    if (!this.more.open) return;
    const [times] = this.data;
    const rows = [];
    let minute = null;
    for (let index = times.length - 1; index >= 0 && rows.length < ROWS; index -= 1) {
      const its = Math.floor(times[index] / 60);
      if (its === minute) continue;
      minute = its;
      const cells = this.lines.map((_, line) => {
        const value = this.data[line + 1][index];
        return h("td", { class: "number" }, known(value) ? this.form(value) : "–");
      });
      rows.push(h("tr", {}, h("th", { scope: "row" }, at(times[index]), this.partial[index] ? " (a gateway missing)" : ""), cells));
    }
    const top = this.rows.scrollTop;
    put(
      this.rows,
      h(
        "table",
        {},
        h("caption", { class: "hidden" }, `${this.title}, the last value of each minute; – is not known`),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Time"), this.lines.map((line) => h("th", { scope: "col", class: "number" }, line.label)))),
        h("tbody", {}, rows),
      ),
    );
    this.rows.scrollTop = top;
  }
}
