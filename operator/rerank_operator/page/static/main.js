// Which view is shown, and asking for its data again and again. GET only.

import { h, put, renew } from "./dom.js";
import { FleetView } from "./fleet.js";
import { notices, pulse } from "./notices.js";
import { RerankerView } from "./reranker.js";

const EVERY = 5000;
const DEADLINE = 8000;

const content = document.getElementById("content");
const place = document.getElementById("place");
const banner = document.getElementById("notices");
const line = document.getElementById("pulse");

let view = null;
let path = "";
let seen = null;
let lost = null;
let last = null;
let turn = 0;
let timer = 0;

// #/namespace/name, or anything else for the fleet.
function asked() {
  const [, namespace, name] = location.hash.split("/").map(decode);
  return namespace && name ? { namespace, name } : null;
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function open(first) {
  const which = asked();
  view?.stop?.();
  const crumb = which ? [h("span", { class: "dim", "aria-hidden": "true" }, "/"), h("span", { class: "dim" }, which.namespace), h("span", { class: "dim", "aria-hidden": "true" }, "/"), h("span", { "aria-current": "page" }, which.name)] : [];
  put(place, place.firstElementChild, crumb);
  document.title = which ? `${which.namespace}/${which.name} · Rerankers` : "Rerankers";
  path = which ? `api/rerankers/${encodeURIComponent(which.namespace)}/${encodeURIComponent(which.name)}` : "api/fleet";
  view = which ? new RerankerView(which.namespace, which.name) : new FleetView();
  put(content, view.element);
  view.start?.();
  if (!first) view.element.querySelector("h1").focus();
  scrollTo(0, 0);
  ask();
}

async function ask() {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  const answer = await answered(path);
  if (mine !== turn) return; // another place is shown by now
  timer = setTimeout(ask, document.hidden ? 6 * EVERY : EVERY);
  if (answer.why) {
    lost = { why: answer.why, since: last ?? Date.now() / 1000 };
  } else {
    lost = null;
    last = Date.now() / 1000;
    if (answer.told) seen = answer.told.seen;
    if (answer.told) view.show(answer.told);
    else view.lack("There is no such Reranker, or not any more.");
  }
  tell();
}

// {told}: the answer, null where there is no such Reranker; {why}: there was none.
async function answered(where) {
  try {
    const answer = await fetch(where, { signal: AbortSignal.timeout(DEADLINE), cache: "no-store" });
    if (answer.status === 404 && answer.headers.get("Content-Type")?.startsWith("application/json")) return { told: null };
    return answer.ok ? { told: await answer.json() } : { why: `status ${answer.status}` };
  } catch (error) {
    return { why: error.name === "TimeoutError" ? "no answer in time" : "it cannot be reached" };
  }
}

function tell() {
  const found = notices(seen, lost);
  renew(banner, found.map(({ weight, text }) => h("li", { class: weight }, h("span", { "aria-hidden": "true" }, weight === "bad" ? "▲ " : "ℹ "), text)));
  line.textContent = pulse(seen, lost);
  line.classList.toggle("bad", found.some(({ weight }) => weight === "bad"));
  content.classList.toggle("stale", lost !== null);
}

addEventListener("hashchange", () => {
  if (location.hash.startsWith("#/") || location.hash === "") open(false);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  content.focus();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) ask();
});

open(true);
