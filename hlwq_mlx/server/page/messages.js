// How the messages of a conversation look.

import { copyButton, element, icon, iconButton } from "./elements.js";
import { mediaOf, textOf } from "./conversation.js";
import { showPart } from "./media.js";
import { Markdown } from "./render.js";

const NUMBER = new Intl.NumberFormat("en");
const round = (value) => value.toFixed(value < 10 ? 1 : 0);

/** Return the view of a message: {node, update()}. `actions` has say, edit and again. */
export function viewMessage(message, actions) {
  return VIEWS[message.role](message, actions);
}

const VIEWS = { user: viewUser, assistant: viewAnswer, tool: viewResult };

function still(node) {
  return { node, update() {} };
}

function viewUser(message, { edit }) {
  const text = textOf(message.content);
  const media = mediaOf(message.content);
  return still(
    element(
      "article",
      { class: "message user" },
      element("h2", { class: "unseen" }, "You"),
      media.length > 0 && element("div", { class: "media" }, ...media.map(showPart)),
      element(
        "div",
        { class: "said" },
        iconButton("edit", "Edit this message", edit, { class: "edit" }),
        text && element("p", { class: "bubble" }, text),
      ),
    ),
  );
}

function viewResult(message) {
  const title = element(
    "summary",
    {},
    icon("tool"),
    "Result of ",
    element("code", {}, message.name ?? "a tool"),
  );
  return still(
    element(
      "article",
      { class: "message result" },
      element("h2", { class: "unseen" }, "Result of a tool"),
      element("details", { class: "fold" }, title, block(textOf(message.content), "Result")),
    ),
  );
}

function block(text, label) {
  return element(
    "pre",
    { tabindex: "0", role: "region", "aria-label": label },
    element("code", {}, text),
  );
}

function viewAnswer(message, { say, again }) {
  const thought = new Markdown(say);
  const title = element("span", {}, "Thought");
  const fold = element(
    "details",
    { class: "fold thought", hidden: true },
    element("summary", {}, icon("think"), title),
    thought.node,
  );
  const body = new Markdown(say);
  const calls = element("div", { class: "calls" });
  const waiting = element("p", { class: "waiting" });
  const foot = element("div", { class: "foot" });
  const node = element(
    "article",
    { class: "message answer" },
    element("h2", { class: "unseen" }, "Answer"),
    ...[fold, body.node, calls, waiting, foot],
  );

  function update(isRunning = false) {
    const { content, reasoning_content: reasoning = "" } = message;
    fold.hidden = reasoning === "";
    thought.update(reasoning);
    body.update(content);
    calls.replaceChildren(...(message.tool_calls ?? []).map(viewCall));
    const isSilent = isRunning && !content && !message.tool_calls;
    waiting.hidden = !isSilent;
    waiting.textContent = reasoning ? "Thinking" : "Reading";
    title.textContent = isSilent ? "Thinking" : "Thought";
    node.setAttribute("aria-busy", String(isRunning));
    foot.replaceChildren(...(isRunning ? [] : footOf(message, say, again)));
  }

  update();
  return { node, update };
}

function viewCall({ function: { name, arguments: given } }) {
  const title = element("summary", {}, icon("tool"), "Calls ", element("code", {}, name));
  return element(
    "details",
    { class: "fold", open: true },
    title,
    block(indented(given), `Arguments of ${name}`),
  );
}

function indented(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // still growing, or not JSON at all
  }
}

function footOf(message, say, again) {
  const error = message.error && element("p", { class: "error" }, message.error);
  const note = message.stopped && element("p", { class: "note" }, message.stopped);
  const buttons = element(
    "div",
    { class: "actions" },
    message.content && copyButton("Copy this answer", () => message.content, say),
    iconButton("again", "Answer again", again, { class: "again" }),
    message.stats && element("p", { class: "stats" }, statsText(message.stats)),
  );
  return [error, note, buttons].filter(Boolean);
}

function statsText({ tokens, rate, wait, prompt, cached }) {
  const parts = [
    `${NUMBER.format(tokens)} tokens`,
    rate && `${round(rate)} tokens/s`,
    `first after ${round(wait)} s`,
    `prompt ${NUMBER.format(prompt)}` + (cached ? `, ${NUMBER.format(cached)} cached` : ""),
  ];
  return parts.filter(Boolean).join(" · ");
}

/** Return a form for the results of calls; `send` gets them in the order of the calls. */
export function viewCallForm(calls, send) {
  const fields = calls.map(({ function: { name } }) =>
    element("textarea", {
      rows: "2",
      required: true,
      "aria-label": `Result of ${name}`,
      placeholder: `Result of ${name}`,
    }),
  );
  const submit = (event) => {
    event.preventDefault();
    send(fields.map((field) => field.value));
  };
  return element(
    "form",
    { class: "results", submit },
    ...fields,
    element("button", { class: "primary" }, "Send the results"),
  );
}
