// The page: which conversation is shown, what runs, and what keys and buttons do.

import { stream } from "./answering.js";
import { describe, rememberKey } from "./api.js";
import { Composer } from "./composer.js";
import * as talk from "./conversation.js";
import { askKey, askSettings, prepareDialogs, showShortcuts } from "./dialogs.js";
import { element } from "./elements.js";
import { viewCallForm, viewMessage } from "./messages.js";
import { showList } from "./sidebar.js";
import * as store from "./store.js";

const SETTINGS = "hlwq-settings";
const LAST = "hlwq-last";
const RETRY_MS = 5000;
const SAVE_MS = 1000;
const NOTICE_MS = 8000;
const NEAR_END_PIXELS = 80;
const NARROW = matchMedia("(max-width: 50rem)");

const find = (id) => document.getElementById(id);
const on = (id, event, work) => find(id).addEventListener(event, work);

const settings = { system: "", temperature: "", think: false, ...readSettings() };
const running = new Map(); // conversation id -> {conversation, controller}
const removed = new Set(); // ids, so that an answer that ends late brings nothing back
let server = { model: "" };
let current = talk.create(settings.system);
let views = [];
let editing = -1; // place of the message that is being edited
let noticeTimer;

function readSettings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch {
    return {}; // damaged, or the browser keeps nothing
  }
}

function keepSettings() {
  remember(SETTINGS, JSON.stringify(settings));
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Full or forbidden: the page works without, and the store says so.
  }
}

// ---- notices

function say(text, action) {
  clearTimeout(noticeTimer);
  const button =
    action &&
    element("button", { type: "button", class: "quiet text", click: action.work }, action.label);
  find("notice").replaceChildren(element("p", {}, text), ...(button ? [button] : []));
  // What can be undone stays until the next notice.
  if (!action) noticeTimer = setTimeout(() => find("notice").replaceChildren(), NOTICE_MS);
}

async function keep(conversation, place) {
  if (removed.has(conversation.id)) return;
  try {
    await store.save(conversation, place);
  } catch (error) {
    if (!(error instanceof store.StoreError)) throw error;
    say(error.message);
  }
}

// ---- what the server is

async function meetServer() {
  try {
    server = await describe();
  } catch (error) {
    if (error.status === 401 && (await learnKey())) return meetServer();
    find("model").replaceChildren(element("span", {}, error.message));
    if (error.status !== 401) setTimeout(meetServer, RETRY_MS);
    return;
  }
  const memory = server.memory_bytes && sizeOf(server.memory_bytes);
  const context = server.context_length && `${Math.round(server.context_length / 1024)}k`;
  const facts = [server.variant, memory, context].filter(Boolean).map((fact) => ` · ${fact}`);
  const name = element("span", { title: server.model }, server.model);
  find("model").replaceChildren(name, element("span", {}, ...facts));
}

function sizeOf(bytes) {
  return bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

async function learnKey() {
  const key = await askKey();
  if (key) rememberKey(key);
  return key !== null;
}

// ---- showing a conversation

const actions = { say, edit: editLast, again: answerAgain };

function show() {
  views = current.messages.map((message) => viewMessage(message, actions));
  find("messages").replaceChildren(...views.map(({ node }) => node));
  if (running.has(current.id)) views.at(-1).update(true);
  showState();
  scrollToEnd();
}

/** Show what depends on whether an answer is being written, and on the messages there are. */
function showState() {
  const isRunning = running.has(current.id);
  find("stop").hidden = !isRunning;
  find("send").hidden = isRunning;
  document.body.classList.toggle("empty", current.messages.length === 0);
  find("editing").hidden = editing < 0;
  find("title").textContent = talk.titleOf(current);
  document.title = `${talk.titleOf(current)} – hlwq`;
  const userPlace = talk.lastUser(current);
  views.forEach(({ node }, place) => {
    const isLast =
      place === (current.messages[place].role === "user" ? userPlace : views.length - 1);
    node.classList.toggle("last", isLast && !isRunning);
  });
  showCallForm(isRunning);
}

function showCallForm(isRunning) {
  document.querySelector("form.results")?.remove();
  const calls = isRunning ? [] : talk.openCalls(current);
  if (calls.length)
    find("messages").append(viewCallForm(calls, (results) => sendResults(calls, results)));
}

function isNearEnd() {
  const { scrollHeight, scrollTop, clientHeight } = find("scroll");
  return scrollHeight - scrollTop - clientHeight < NEAR_END_PIXELS;
}

function scrollToEnd() {
  find("scroll").scrollTop = find("scroll").scrollHeight;
}

// ---- asking and answering

async function send(text, media) {
  if (running.has(current.id)) return say("An answer is being written. Esc stops it.");
  if (talk.openCalls(current).length && editing < 0)
    return say("First give the results of the calls, or answer again.");
  const place = editing < 0 ? current.messages.length : editing;
  current.messages.length = place;
  current.messages.push(talk.userMessage(text, media));
  if (!current.title) current.title = talk.titleOf(current);
  editing = -1;
  composer.fill("", []);
  await answer(current, place);
}

async function sendResults(calls, results) {
  const place = current.messages.length;
  calls.forEach(({ id, function: { name } }, at) => {
    current.messages.push({ role: "tool", tool_call_id: id, name, content: results[at] });
  });
  await answer(current, place);
}

async function answerAgain() {
  if (running.has(current.id) || current.messages.length === 0) return;
  while (current.messages.at(-1)?.role === "assistant") current.messages.pop();
  await answer(current, current.messages.length);
}

/** Answer a conversation whose messages are new from `place` on. */
async function answer(conversation, place) {
  const body = talk.requestBody(conversation, settings, server.model);
  const message = { role: "assistant", content: "" };
  const controller = new AbortController();
  conversation.messages.push(message);
  conversation.updated = Date.now();
  running.set(conversation.id, { conversation, controller });
  remember(LAST, conversation.id);
  show();
  await keep(conversation, place);
  await showConversations();
  const last = conversation.messages.length - 1;
  const saver = setInterval(() => keep(conversation, last), SAVE_MS);
  const status = await stream(
    message,
    body,
    controller.signal,
    growing(conversation, message),
  ).finally(() => {
    clearInterval(saver);
    running.delete(conversation.id);
  });
  await finish(conversation, message);
  if (status === 401 && conversation === current && (await learnKey())) await answerAgain();
}

/** Return what shows an answer as it grows, once for each picture of the screen. */
function growing(conversation, message) {
  let isAsked = false;
  const draw = () => {
    isAsked = false;
    if (conversation !== current || !running.has(conversation.id)) return;
    const wasNearEnd = isNearEnd();
    views[conversation.messages.indexOf(message)].update(true);
    if (wasNearEnd) scrollToEnd();
  };
  return () => {
    if (!isAsked) requestAnimationFrame(draw);
    isAsked = true;
  };
}

async function finish(conversation, message) {
  if (conversation === current) {
    const wasNearEnd = isNearEnd();
    views.at(-1).update();
    showState();
    if (wasNearEnd) scrollToEnd();
    find("finished").textContent =
      message.error ?? `Answer: ${message.content || "a call of a tool"}`;
  }
  await keep(conversation, conversation.messages.length - 1);
  if (!message.error) await meetServer(); // the memory has changed
}

function stop() {
  running.get(current.id)?.controller.abort();
}

function editLast() {
  const place = talk.lastUser(current);
  if (place < 0 || running.has(current.id)) return;
  editing = place;
  const { content } = current.messages[place];
  composer.fill(talk.textOf(content), talk.mediaOf(content));
  showState();
  composer.field.focus();
}

function leaveEditing() {
  editing = -1;
  composer.fill("", []);
  showState();
  composer.field.focus();
}

// ---- conversations

async function showConversations() {
  let kept = [];
  try {
    kept = await store.list();
  } catch (error) {
    if (!(error instanceof store.StoreError)) throw error;
    say(error.message);
  }
  showList(find("list"), kept, current.id, { open, rename, remove });
}

async function open({ id }) {
  const found = running.get(id)?.conversation ?? (await store.load(id));
  if (found) turnTo(found);
  closeNarrowSidebar();
}

function turnTo(conversation) {
  current = conversation;
  remember(LAST, current.id);
  if (editing >= 0) composer.fill("", []);
  editing = -1;
  show();
  showConversations();
  composer.field.focus();
}

function startNew() {
  turnTo(talk.create(settings.system));
  closeNarrowSidebar();
}

async function rename({ id }, title) {
  const renamed =
    id === current.id ? current : (running.get(id)?.conversation ?? (await store.load(id)));
  renamed.title = title;
  await keep(renamed, renamed.messages.length);
  showState();
  await showConversations();
}

async function remove({ id }) {
  running.get(id)?.controller.abort();
  const gone = id === current.id ? current : await store.load(id);
  removed.add(id);
  await store.remove(id);
  if (id === current.id) turnTo(talk.create(settings.system));
  else await showConversations();
  const work = async () => {
    removed.delete(id);
    await keep(gone, 0);
    turnTo(gone);
    say("The conversation is back.");
  };
  say(`Deleted: ${talk.titleOf(gone)}`, { label: "Undo", work });
}

function exportCurrent() {
  if (!current.messages.length) return say("There is nothing to export yet.");
  const url = URL.createObjectURL(new Blob([talk.toJson(current)], { type: "application/json" }));
  const name = talk
    .titleOf(current)
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "");
  element("a", { href: url, download: `${name || "conversation"}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), NOTICE_MS);
}

async function importFile({ target }) {
  const [file] = target.files;
  if (!file) return;
  try {
    const imported = talk.fromJson(await file.text());
    await keep(imported, 0);
    turnTo(imported);
  } catch (error) {
    if (!(error instanceof talk.ImportError)) throw error;
    say(error.message);
  }
  target.value = "";
}

// ---- settings, sidebar, keys

async function changeSettings() {
  const changed = await askSettings({
    system: current.system,
    temperature: settings.temperature,
    tools: current.tools,
  });
  composer.field.focus();
  if (!changed) return;
  Object.assign(settings, { system: changed.system, temperature: changed.temperature });
  Object.assign(current, { system: changed.system, tools: changed.tools });
  keepSettings();
  if (current.messages.length) await keep(current, current.messages.length);
}

function toggleThink() {
  settings.think = !settings.think;
  find("think").setAttribute("aria-pressed", String(settings.think));
  keepSettings();
}

function showSidebar(isOpen) {
  document.body.classList.toggle("with-sidebar", isOpen);
  find("menu").setAttribute("aria-expanded", String(isOpen));
}

function toggleSidebar() {
  const isOpen = !document.body.classList.contains("with-sidebar");
  showSidebar(isOpen);
  if (isOpen) find("new").focus();
  else composer.field.focus();
}

function closeNarrowSidebar() {
  if (NARROW.matches) showSidebar(false);
}

const COMMANDS = {
  "shift+o": startNew,
  "shift+l": toggleSidebar,
  "shift+enter": answerAgain,
  "/": showShortcuts,
};

function readKey(event) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") return escape();
  if (!(event.ctrlKey || event.metaKey)) return;
  const command = COMMANDS[(event.shiftKey ? "shift+" : "") + event.key.toLowerCase()];
  if (!command) return;
  event.preventDefault();
  command();
}

function escape() {
  if (running.has(current.id)) stop();
  else if (editing >= 0) leaveEditing();
  else if (NARROW.matches && document.body.classList.contains("with-sidebar")) toggleSidebar();
}

const composer = new Composer({
  send,
  empty: editLast,
  say,
  capabilities: () => server.capabilities,
});

async function begin() {
  prepareDialogs();
  find("think").setAttribute("aria-pressed", String(settings.think));
  const clicks = {
    new: startNew,
    stop,
    think: toggleThink,
    menu: toggleSidebar,
    shade: toggleSidebar,
    "cancel-edit": leaveEditing,
    "open-settings": changeSettings,
    "open-shortcuts": showShortcuts,
    export: exportCurrent,
    import: () => find("import-file").click(),
  };
  for (const [id, work] of Object.entries(clicks)) on(id, "click", () => work());
  on("import-file", "change", importFile);
  addEventListener("keydown", readKey);
  showSidebar(!NARROW.matches);
  NARROW.addEventListener("change", () => showSidebar(!NARROW.matches));
  const last = localStorage.getItem(LAST);
  const found = last && (await store.load(last).catch(() => null));
  if (found) current = found;
  show();
  await showConversations();
  await meetServer();
}

begin();
