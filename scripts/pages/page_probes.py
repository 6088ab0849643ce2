"""What the checks of the page read off it, as JavaScript that runs in it."""

# Every text that is seen, with its contrast against what is painted below it.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function rgba(color) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
function ground(node) {
  const layers = [];
  for (let at = node; at; at = at.parentElement) {
    layers.unshift(rgba(getComputedStyle(at).backgroundColor));
  }
  return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
}
function luminance(color) {
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = color.map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(color, below) {
  const [high, low] = [luminance(over(rgba(color), below)), luminance(below)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}
const found = [];
function note(node, color, least, what) {
  const ratio = contrast(color, ground(node));
  found.push({ratio: Math.round(ratio * 100) / 100, least, what: what.trim().slice(0, 30), color});
}
const isSeen = (node) => node.checkVisibility({opacityProperty: true, visibilityProperty: true}) &&
  node.getBoundingClientRect().width > 1;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const {parentElement: node, data} = walker.currentNode;
  if (data.trim() && isSeen(node)) note(node, getComputedStyle(node).color, 4.5, data);
}
for (const node of document.querySelectorAll("input, textarea")) {
  if (!isSeen(node)) continue;
  note(node, getComputedStyle(node, "::placeholder").color, 4.5, node.placeholder || "placeholder");
}
for (const node of document.querySelectorAll("#composer, dialog input, dialog textarea")) {
  const edge = getComputedStyle(node).borderTopColor;
  if (isSeen(node)) note(node.parentElement, edge, 3, "edge of " + node.id);
}
for (const node of document.querySelectorAll("svg.icon")) {
  if (isSeen(node)) note(node, getComputedStyle(node).color, 3, "icon");
}
return found;
"""

# Elements that a hostile text could have made, and what it could have run.
INJECTED = """
const risky = "script, iframe, object, embed, form[action], base, link, meta, a, img";
const href = /^(https?:|mailto:|#)/;
const isFine = (node) => document.head.contains(node) ||
  (node.matches("a") && href.test(node.getAttribute("href") ?? "")) ||
  (node.matches("img") && (node.getAttribute("src") ?? "data:image/").startsWith("data:image/"));
const bad = [...document.querySelectorAll(risky)].filter((node) => !isFine(node))
  .map((node) => node.outerHTML.slice(0, 80));
for (const node of document.querySelectorAll("*")) {
  for (const {name} of node.attributes) {
    if (name.startsWith("on") || (name === "style" && node.id !== "field")) bad.push(name);
  }
}
if (window.pwned) bad.push("a script ran");
return bad;
"""

# What sticks out of a narrow page, apart from what scrolls in a box of its own.
WIDER = """
const bad = [];
if (document.documentElement.scrollWidth > innerWidth) bad.push("the page scrolls");
for (const node of document.querySelectorAll("body *")) {
  const {left, right, width} = node.getBoundingClientRect();
  const box = node.parentElement.closest("pre, .wide");
  const isHeld = (box && getComputedStyle(box).overflowX === "auto") ||
    node.closest(".unseen, .skip, svg");
  if (!width || isHeld || !node.checkVisibility({visibilityProperty: true})) continue;
  if (right > innerWidth + 1 || left < -1) bad.push(`${node.tagName}#${node.id}`);
}
return bad;
"""

# Put a file into the page as a drop or a paste does.
GIVE_FILE = """
const [how, name, type, base64] = arguments;
const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, {type}));
const event = how === "paste"
  ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true})
  : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
document.getElementById("field").dispatchEvent(event);
return event.defaultPrevented;
"""
