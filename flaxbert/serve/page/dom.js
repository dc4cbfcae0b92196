// Elements. Text becomes text nodes only, so that markup in it is shown and never read.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.flat().map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

// element("p", { class: "hint", click: listener }, "text", node)
export const element = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export const drawing = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

// Shows a message in its place, or takes it away.
export function say(node, message) {
  node.textContent = message || "";
  node.hidden = !message;
}

export const percent = (share) => (share > 0 && share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);

export const milliseconds = (value) =>
  value === null ? "–" : value < 1 ? "<1 ms" : value < 10 && !Number.isInteger(value) ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;

export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

const LONGEST = 5000;

// JSON for people: indented where it is short, cut where it is long.
export function readable(value) {
  const whole = JSON.stringify(value, null, 1);
  if (whole.length <= LONGEST) return whole;
  const dense = JSON.stringify(value);
  return dense.length <= LONGEST ? dense : `${dense.slice(0, LONGEST)} … (${dense.length} characters in all)`;
}
