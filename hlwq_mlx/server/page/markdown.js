// Markdown to a tree of plain objects, without the DOM: render.js makes nodes of it.
// HTML in the text stays text. Nesting is bounded, and the time is linear in the text.

const MOST_NESTED = 12;
const MOST_OPEN = 32;
const SAFE_SCHEMES = new Set(["http:", "https:", "mailto:"]);
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const BLANK = /^\s*$/;
const TASK = { "[ ]": "☐", "[x]": "☑", "[X]": "☑" };

/** Return the blocks of a text: [{type, ...}]. */
export function parse(text) {
  return parseBlocks(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
}

/** Return an absolute URL if its scheme is safe to follow, null otherwise. */
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return SAFE_SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

// Each reader takes the lines, the place and the depth; it returns [block, next place] or null.
const READERS = [readFence, readHeading, readRule, readQuote, readList, readTable];

function parseBlocks(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (BLANK.test(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = readBlock(lines, at, depth) ?? readParagraph(lines, at, depth);
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  for (const read of READERS) {
    const found = read(lines, at, depth);
    if (found) return found;
  }
  return null;
}

function readFence(lines, at) {
  const found = FENCE.exec(lines[at]);
  if (!found) return null;
  const [, fence, info] = found;
  const indent = lines[at].search(/\S/);
  const code = [];
  let next = at + 1;
  for (; next < lines.length && !closes(lines[next], fence); next += 1) {
    code.push(stripIndent(lines[next], indent));
  }
  const language = info.trim().split(/\s/)[0];
  return [{ type: "code", language, text: code.join("\n") }, next + 1];
}

function closes(line, fence) {
  const found = /^ {0,3}(`+|~+) *$/.exec(line);
  return found !== null && found[1][0] === fence[0] && found[1].length >= fence.length;
}

function stripIndent(line, width) {
  let at = 0;
  while (at < width && line[at] === " ") at += 1;
  return line.slice(at);
}

function readHeading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  const text = (found[2] ?? "").trim().replace(/(?:^|\s)#+$/, "");
  return [{ type: "heading", level: found[1].length, children: parseInline(text) }, at + 1];
}

function readRule(lines, at) {
  return RULE.test(lines[at]) ? [{ type: "rule" }, at + 1] : null;
}

function readQuote(lines, at, depth) {
  if (!QUOTE.test(lines[at]) || depth >= MOST_NESTED) return null;
  const inner = [];
  let next = at;
  for (; next < lines.length && QUOTE.test(lines[next]); next += 1) {
    inner.push(lines[next].replace(QUOTE, ""));
  }
  return [{ type: "quote", children: parseBlocks(inner, depth + 1) }, next];
}

function readList(lines, at, depth) {
  const first = MARKER.exec(lines[at]);
  if (!first || depth >= MOST_NESTED) return null;
  const ordered = /\d/.test(first[2]);
  const list = {
    type: "list",
    ordered,
    start: ordered ? parseInt(first[2], 10) : 1,
    tight: true,
    items: [],
  };
  let next = at;
  while (next < lines.length && continues(lines[next], first)) {
    const { inner, end, isLoose } = readItem(lines, next);
    list.items.push(parseBlocks(inner, depth + 1));
    const isGap = end < lines.length && BLANK.test(lines[end - 1]) && continues(lines[end], first);
    if (isLoose || isGap) list.tight = false;
    next = end;
  }
  return [list, next];
}

function continues(line, first) {
  const found = MARKER.exec(line);
  if (!found || RULE.test(line) || found[1].length > first[1].length + 3) return false;
  return found[2].at(-1) === first[2].at(-1);
}

function readItem(lines, at) {
  const [all, spaces, marker] = MARKER.exec(lines[at]);
  const width = Math.min(all.length, spaces.length + marker.length + 4);
  const least = spaces.length + 2; // models nest by two spaces under "1." too
  const inner = [checkbox(lines[at].slice(width))];
  let next = at + 1;
  let isLoose = false;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    const isAfterBlank = BLANK.test(lines[next - 1]);
    if (BLANK.test(line)) {
      inner.push("");
    } else if (line.search(/\S/) >= least) {
      isLoose ||= isAfterBlank && !MARKER.test(line);
      inner.push(stripIndent(line, width));
    } else if (isAfterBlank || startsBlock(lines, next)) {
      break;
    } else {
      inner.push(line);
    }
  }
  return { inner, end: next, isLoose };
}

function checkbox(text) {
  const mark = TASK[text.slice(0, 3)];
  return mark && text[3] === " " ? mark + text.slice(3) : text;
}

function readTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !lines[at + 1].includes("-"))
    return null;
  const heads = splitCells(lines[at]);
  const rules = splitCells(lines[at + 1]);
  if (heads.length !== rules.length || !rules.every((cell) => /^:?-+:?$/.test(cell))) return null;
  const alignments = rules.map(alignment);
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && lines[next].includes("|") && !BLANK.test(lines[next]); next += 1) {
    const cells = splitCells(lines[next]);
    rows.push(heads.map((_, column) => parseInline(cells[column] ?? "")));
  }
  return [{ type: "table", alignments, heads: heads.map(parseInline), rows }, next];
}

function alignment(rule) {
  if (!rule.endsWith(":")) return "start";
  return rule.startsWith(":") ? "center" : "end";
}

function splitCells(line) {
  const cells = [""];
  const row = line.trim();
  for (let at = row.startsWith("|") ? 1 : 0; at < row.length; at += 1) {
    if (row[at] === "\\" && row[at + 1] === "|") {
      cells[cells.length - 1] += "|";
      at += 1;
    } else if (row[at] === "|") {
      cells.push("");
    } else {
      cells[cells.length - 1] += row[at];
    }
  }
  if (cells.length > 1 && cells.at(-1) === "") cells.pop();
  return cells.map((cell) => cell.trim());
}

function readParagraph(lines, at) {
  let next = at + 1;
  while (next < lines.length && !BLANK.test(lines[next]) && !startsBlock(lines, next)) next += 1;
  const text = lines
    .slice(at, next)
    .map((line) => line.trimStart())
    .join("\n");
  return [{ type: "paragraph", children: parseInline(text.trimEnd()) }, next];
}

function startsBlock(lines, at) {
  const line = lines[at];
  const isBlock = [FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(line));
  const marker = MARKER.exec(line);
  const isList = marker !== null && (/[-*+]/.test(marker[2]) || marker[2].length === 2);
  return isBlock || isList || readTable(lines.slice(at, at + 2), 0) !== null;
}

const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const TICKS = /`+/y;
const RUN = /\*+|_+|~~/y;
const TARGET =
  /\]\(\s*(?:<([^<>\n]{0,4000})>|([^\s()]{0,2000}(?:\([^\s()]{0,2000}\)[^\s()]{0,2000}){0,8}))(?:\s+(?:"[^"]{0,500}"|'[^']{0,500}'))?\s*\)/y;
const ANGLED = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BARE = /https?:\/\/[^\s<>]{0,2000}[^\s<>.,;:!?'")\]*_~`|]/y;
const PLAIN = /[^\\`*_~[\]!<\nh]+/y;
const WORD = /[\p{L}\p{N}]/u;
const SPACE = /\s/;

/** Return the inline nodes of a text: text, code, strong, em, del, link, break. */
export function parseInline(text) {
  return new Inline(text).parse();
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.nodes = [];
    this.open = []; // {mark, closes, length: marks left, node: place in nodes}
    this.unclosedTicks = new Set();
  }

  parse() {
    const rules = [
      this.readPlain,
      this.readEscape,
      this.readCode,
      this.readBreak,
      this.readLinkEnd,
      this.readLinkStart,
      this.readUrl,
      this.readEmphasis,
    ];
    while (this.at < this.text.length) {
      if (!rules.some((rule) => rule.call(this))) this.addText(this.text[this.at], 1);
    }
    return this.nodes;
  }

  take(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  addText(text, width) {
    const last = this.nodes.at(-1);
    if (last?.type === "text" && !last.isMark) last.text += text;
    else this.nodes.push({ type: "text", text });
    this.at += width;
    return true;
  }

  readPlain() {
    const found = this.take(PLAIN);
    return found !== null && this.addText(found[0], found[0].length);
  }

  readEscape() {
    const found = this.take(ESCAPED);
    return found !== null && this.addText(found[1], 2);
  }

  readCode() {
    const found = this.take(TICKS);
    if (!found) return false;
    const ticks = found[0];
    const start = this.at + ticks.length;
    const end = this.unclosedTicks.has(ticks.length) ? -1 : this.findTicks(ticks.length, start);
    if (end < 0) {
      this.unclosedTicks.add(ticks.length);
      return this.addText(ticks, ticks.length);
    }
    const code = this.text.slice(start, end).replace(/\n/g, " ");
    const isPadded = code.startsWith(" ") && code.endsWith(" ") && code.trim() !== "";
    this.nodes.push({ type: "code", text: isPadded ? code.slice(1, -1) : code });
    this.at = end + ticks.length;
    return true;
  }

  findTicks(length, start) {
    for (let at = this.text.indexOf("`", start); at >= 0;) {
      TICKS.lastIndex = at;
      const [run] = TICKS.exec(this.text);
      if (run.length === length) return at;
      at = this.text.indexOf("`", at + run.length);
    }
    return -1;
  }

  readBreak() {
    if (this.text[this.at] !== "\n") return false;
    const last = this.nodes.at(-1);
    if (last?.type === "text") last.text = last.text.replace(/(?: {2}|\\)$/, "");
    this.nodes.push({ type: "break" });
    this.at += 1;
    return true;
  }

  readLinkStart() {
    const mark = this.text.startsWith("![", this.at) ? "![" : "[";
    if (!this.text.startsWith(mark, this.at)) return false;
    this.pushMark(mark, mark.length, { opens: true });
    return true;
  }

  readLinkEnd() {
    if (this.text[this.at] !== "]") return false;
    const place = this.open.findLastIndex(({ mark }) => mark.endsWith("["));
    const found = place < 0 ? null : this.take(TARGET);
    if (!found) {
      if (place >= 0) this.open.splice(place, 1);
      return this.addText("]", 1);
    }
    this.closeLink(place, found);
    return true;
  }

  closeLink(place, found) {
    const { node } = this.open[place];
    this.open.length = place;
    const children = this.nodes.splice(node).slice(1);
    const href = safeUrl((found[1] ?? found[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
    this.at += found[0].length;
    if (href) this.nodes.push({ type: "link", href, children });
    else this.nodes.push(...children);
    this.open = this.open.filter(({ mark }) => !mark.endsWith("[")); // no link in a link
  }

  readUrl() {
    const isInWord = this.at > 0 && WORD.test(this.text[this.at - 1]);
    const isInLink = this.open.some(({ mark }) => mark.endsWith("["));
    const angled = this.take(ANGLED);
    const bare = isInWord || isInLink ? null : this.take(BARE);
    const shown = angled ? angled[1] : bare?.[0];
    const href = shown ? safeUrl(shown) : null;
    if (!href) return false;
    this.nodes.push({ type: "link", href, children: [{ type: "text", text: shown }] });
    this.at += (angled ?? bare)[0].length;
    return true;
  }

  readEmphasis() {
    const found = this.take(RUN);
    if (!found) return false;
    const run = found[0];
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + run.length] ?? " ";
    const isWithin = run[0] === "_" && WORD.test(before) && WORD.test(after);
    const opens = !SPACE.test(after) && !isWithin;
    const closes = !SPACE.test(before) && !isWithin;
    const left = closes ? this.closeRun(run, opens) : run.length;
    if (left > 0) this.pushMark(run.slice(0, left), left, { opens, closes });
    return true;
  }

  // Close as many openers as the run's marks allow; return how many marks are left.
  closeRun(run, opens) {
    // CommonMark's rule of three: "**a*b*c**" is strong, with an em in it.
    const fits = ({ mark, closes }) =>
      mark[0] === run[0] && !((opens || closes) && (mark.length + run.length) % 3 === 0);
    let left = run.length;
    while (left > 0) {
      const place = this.open.findLastIndex(fits);
      if (place < 0) break;
      const opener = this.open[place];
      const width = run[0] === "~" ? 2 : Math.min(2, left, opener.length);
      this.wrap(place, width);
      left -= width;
      this.at += width;
    }
    return left;
  }

  wrap(place, width) {
    const opener = this.open[place];
    const children = this.nodes.splice(opener.node + 1);
    const type = opener.mark[0] === "~" ? "del" : width === 2 ? "strong" : "em";
    this.open.length = place;
    opener.length -= width;
    if (opener.length > 0) {
      this.nodes[opener.node].text = opener.mark.slice(0, opener.length);
      this.open.push(opener);
    } else {
      this.nodes.pop();
    }
    this.nodes.push({ type, children });
  }

  pushMark(mark, width, { opens, closes = false }) {
    if (!opens || this.open.length >= MOST_OPEN) {
      this.addText(mark, width);
      return;
    }
    this.open.push({ mark, closes, length: width, node: this.nodes.length });
    this.nodes.push({ type: "text", text: mark, isMark: true });
    this.at += width;
  }
}
