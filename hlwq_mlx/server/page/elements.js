// Elements by createElement and textContent alone: text that came from elsewhere stays text.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. A function among the attributes listens, true and false set or leave out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null && child !== false));
  return made;
}

/** Return a picture from the sprite in index.html, which readers of screens skip. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Return a button with an icon; the label is seen as a tooltip and read aloud. */
export function iconButton(name, label, click, attributes = {}) {
  const classes = attributes.class ? `quiet ${attributes.class}` : "quiet";
  const all = { type: "button", title: label, "aria-label": label, click, ...attributes };
  return element("button", { ...all, class: classes }, icon(name));
}

/** Return a button that copies what `text` returns, and says so. */
export function copyButton(label, text, say) {
  return iconButton("copy", label, async () => {
    try {
      await copy(text());
      say("Copied.");
    } catch {
      say("The browser did not let the page copy. Select the text and copy it.");
    }
  });
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Pages from another machine over plain HTTP have no clipboard but this.
  const field = element("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  if (!isCopied) throw new Error("not copied");
}
