// Makes elements. Text is always set as text, never read as HTML.

const SVG = "http://www.w3.org/2000/svg";

// h("p", {class: "x"}, "text", child): null and false children are left out.
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

// Puts `children` into `element` in place of what is there.
export function put(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

// The same, but only where it would read differently: what is being read or selected stays as it is.
export function renew(element, ...children) {
  const next = element.cloneNode(false);
  put(next, ...children);
  if (!element.isEqualNode(next)) element.replaceChildren(...next.childNodes);
  return element;
}

export function unknown(why = "not known") {
  return h("span", { class: "unknown", title: why }, h("span", { "aria-hidden": "true" }, "–"), h("span", { class: "hidden" }, why));
}
