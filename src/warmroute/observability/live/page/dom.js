// Elements. Text from the picker goes into the page through text nodes only: names and models are chosen by others.

// Control characters and those that change the direction of what follows, as in the picker's log lines.
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

// `text` with its unprintable characters as escapes.
function visible(text) {
  return String(text).replace(UNPRINTABLE, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

// An element with classes, attributes or properties (functions become listeners), and children (nodes or text).
function element(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.map((child) => (child instanceof Node ? child : visible(child))));
  return node;
}

function svgElement(tag, attributes = {}) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// Change a node's text or class or title only where it differs: most figures do not change from one second to the next.
function setText(node, text) {
  text = visible(text);
  if (node.textContent !== text) node.textContent = text;
}

function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

function setTitle(node, text) {
  text = visible(text);
  if (node.title !== text) node.title = text;
}

// A bar whose filled part is `share`, 0 to 1.
function bar(className = "") {
  const fill = element("i");
  const node = element("span", { className: `bar ${className}` }, fill);
  node.show = (share) => {
    const width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%`;
    if (fill.style.width !== width) fill.style.width = width;
  };
  return node;
}

// A line of at most `points` values with the area below it, from 0 to `most` or to their maximum.
function sparkline(className, points) {
  const node = svgElement("svg", { class: `sparkline ${className}`, viewBox: `0 0 ${points - 1} 20`, preserveAspectRatio: "none" });
  const area = node.appendChild(svgElement("path", { class: "area" }));
  const line = node.appendChild(svgElement("path", { class: "line" }));
  node.show = (values, most = Math.max(1, ...values)) => {
    if (values.length < 2) return;
    const first = points - values.length;
    const path = values.map((value, k) => `${first + k} ${(19 - (18 * value) / most).toFixed(1)}`).join("L");
    line.setAttribute("d", `M${path}`);
    area.setAttribute("d", `M${first} 20L${path}L${points - 1} 20Z`);
  };
  return node;
}
