// The tree of markdown.js as DOM nodes.

import { copyButton, element } from "./elements.js";
import { parse } from "./markdown.js";

/** A place whose markdown grows: blocks that did not change keep their nodes, and a selection. */
export class Markdown {
  constructor(say) {
    this.say = say;
    this.node = element("div", { class: "markdown" });
    this.keys = [];
  }

  update(text) {
    const blocks = parse(text);
    const keys = blocks.map((block) => JSON.stringify(block));
    let kept = 0;
    while (kept < keys.length && keys[kept] === this.keys[kept]) kept += 1;
    while (this.node.childNodes.length > kept) this.node.lastChild.remove();
    this.node.append(...blocks.slice(kept).map((block) => renderBlock(block, this.say)));
    this.keys = keys;
  }
}

const BLOCKS = {
  paragraph: ({ children }) => element("p", {}, ...renderInline(children)),
  // The page has the first two levels of headings.
  heading: ({ level, children }) =>
    element(`h${Math.min(level + 2, 6)}`, {}, ...renderInline(children)),
  rule: () => element("hr"),
  quote: ({ children }, say) =>
    element("blockquote", {}, ...children.map((child) => renderBlock(child, say))),
  list: renderList,
  code: renderCode,
  table: renderTable,
};

function renderBlock(block, say) {
  return BLOCKS[block.type](block, say);
}

function renderList({ ordered, start, tight, items }, say) {
  const isBare = (block) => tight && block.type === "paragraph";
  const rows = items.map((blocks) => {
    const inner = blocks.flatMap((block) =>
      isBare(block) ? renderInline(block.children) : [renderBlock(block, say)],
    );
    return element("li", {}, ...inner);
  });
  return element(ordered ? "ol" : "ul", { start: ordered && start !== 1 ? start : null }, ...rows);
}

function renderCode({ language, text }, say) {
  const label = language ? `Code, ${language}` : "Code";
  const code = element("code", {}, text);
  return element(
    "figure",
    { class: "code" },
    element(
      "figcaption",
      {},
      element("span", {}, language || "code"),
      copyButton("Copy the code", () => text, say),
    ),
    element("pre", { tabindex: "0", role: "region", "aria-label": label }, code),
  );
}

function renderTable({ alignments, heads, rows }) {
  const cell = (tag, nodes, column) =>
    element(
      tag,
      { class: `align-${alignments[column]}`, scope: tag === "th" ? "col" : null },
      ...renderInline(nodes),
    );
  const head = element(
    "thead",
    {},
    element("tr", {}, ...heads.map((nodes, column) => cell("th", nodes, column))),
  );
  const body = rows.map((row) =>
    element("tr", {}, ...row.map((nodes, column) => cell("td", nodes, column))),
  );
  const table = element("table", {}, head, element("tbody", {}, ...body));
  return element(
    "div",
    { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" },
    table,
  );
}

const INLINE = { strong: "strong", em: "em", del: "del" };

function renderInline(nodes) {
  return nodes.map((node) => {
    if (node.type === "text") return document.createTextNode(node.text);
    if (node.type === "break") return element("br");
    if (node.type === "code") return element("code", {}, node.text);
    if (node.type === "link") return renderLink(node);
    return element(INLINE[node.type], {}, ...renderInline(node.children));
  });
}

function renderLink({ href, children }) {
  return element(
    "a",
    { href, target: "_blank", rel: "noopener noreferrer" },
    ...renderInline(children),
  );
}
