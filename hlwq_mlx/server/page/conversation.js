// What a conversation is, without the DOM: {id, title, updated, system, tools, messages}.
// Messages are OpenAI's; an answer also has `stats`, `stopped` or `error`, and a part its `name`.

const LONGEST_TITLE = 60;
const LEAST_SECONDS = 0.05; // a rate over less says nothing
const ROLES = new Set(["user", "assistant", "tool"]);
const SYSTEM = new Set(["system", "developer"]);

/** Raised for a file that holds no conversation. */
export class ImportError extends Error {}

export function create(system = "", tools = []) {
  // crypto.randomUUID is missing where the page comes over plain HTTP from another machine.
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
  return { id, title: "", updated: Date.now(), system, tools, messages: [] };
}

/** Return what is sent to the server for the next answer. */
export function requestBody(conversation, settings, model) {
  const { system, tools } = conversation;
  const messages = conversation.messages.filter(isSent).map(toWire);
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    reasoning_effort: settings.think ? "medium" : "none",
    ...(settings.temperature !== "" && { temperature: Number(settings.temperature) }),
    ...(tools.length > 0 && { tools }),
  };
}

// An answer that failed before its first word is not part of the conversation.
const isSent = ({ role, content, tool_calls: calls }) =>
  role !== "assistant" || content || calls?.length;

function toWire({ role, content, tool_calls: calls, tool_call_id: call, name }) {
  const parts = Array.isArray(content) ? content.map(({ name: _, ...part }) => part) : content;
  return {
    role,
    content: parts,
    ...(calls?.length && { tool_calls: calls }),
    ...(call && { tool_call_id: call }),
    ...(role === "tool" && name && { name }),
  };
}

/** Add a chunk of a stream to an answer; return what it brought: finish reason and usage. */
export function fold(answer, chunk) {
  const [choice] = chunk.choices ?? [];
  const delta = choice?.delta ?? {};
  if (delta.content) answer.content += delta.content;
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) answer.reasoning_content = (answer.reasoning_content ?? "") + thought;
  for (const piece of delta.tool_calls ?? []) foldCall((answer.tool_calls ??= []), piece);
  const isToken = Boolean(delta.content || thought || delta.tool_calls);
  return { isToken, finish: choice?.finish_reason ?? null, usage: chunk.usage ?? null };
}

function foldCall(calls, piece) {
  const place = piece.index ?? 0;
  calls[place] ??= { id: "", type: "function", function: { name: "", arguments: "" } };
  const call = calls[place];
  if (piece.id) call.id = piece.id;
  if (piece.function?.name) call.function.name = piece.function.name;
  call.function.arguments += piece.function?.arguments ?? "";
}

/** Return the numbers that are shown below an answer; times are in milliseconds. */
export function statsOf(usage, { sent, first, last }) {
  const tokens = usage.completion_tokens;
  const seconds = (last - first) / 1000;
  return {
    tokens,
    rate: tokens > 1 && seconds > LEAST_SECONDS ? (tokens - 1) / seconds : null,
    wait: (first - sent) / 1000,
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
  };
}

export function textOf(content) {
  if (typeof content === "string") return content;
  return (content ?? [])
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("\n");
}

export const mediaOf = (content) =>
  Array.isArray(content) ? content.filter((part) => part.type !== "text") : [];

export function userMessage(text, media) {
  const content = media.length ? [...media, ...(text ? [{ type: "text", text }] : [])] : text;
  return { role: "user", content };
}

export function titleOf({ title, messages }) {
  if (title) return title;
  const first = messages.find(({ role }) => role === "user");
  const [line = ""] = textOf(first?.content).trim().split("\n");
  const name = mediaOf(first?.content)[0]?.name;
  return line.slice(0, LONGEST_TITLE) || name || "New conversation";
}

/** Return the place of the last message of the user, -1 if there is none. */
export const lastUser = ({ messages }) => messages.findLastIndex(({ role }) => role === "user");

/** Return the calls of the last answer that have no result yet. */
export function openCalls({ messages }) {
  const place = messages.findLastIndex(({ role }) => role === "assistant");
  const answered = new Set(messages.slice(place + 1).map(({ tool_call_id: id }) => id));
  return (messages[place]?.tool_calls ?? []).filter(({ id }) => !answered.has(id));
}

export function toJson(conversation) {
  const { title: _, system, tools, messages } = conversation;
  const all = system ? [{ role: "system", content: system }, ...messages] : messages;
  return JSON.stringify(
    { title: titleOf(conversation), messages: all, ...(tools.length && { tools }) },
    null,
    2,
  );
}

/** Read what toJson wrote, or a bare list of messages. Raises ImportError. */
export function fromJson(text) {
  const value = parseJson(text);
  const messages = Array.isArray(value) ? value : value?.messages;
  if (!Array.isArray(messages) || !messages.length)
    throw new ImportError("The file has no list of messages.");
  const [system, rest] = SYSTEM.has(messages[0]?.role)
    ? [textOf(messages[0].content), messages.slice(1)]
    : ["", messages];
  const tools = Array.isArray(value.tools) ? value.tools : [];
  const title = typeof value.title === "string" ? value.title.slice(0, LONGEST_TITLE) : "";
  return { ...create(system, tools), title, messages: rest.map(readMessage) };
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ImportError(`The file is not JSON: ${error.message}`);
  }
}

function readMessage(message, place) {
  const fault = faultOf(message ?? {});
  if (fault) throw new ImportError(`Message ${place + 1} of the file ${fault}.`);
  return { ...message, content: message.content ?? "" };
}

function faultOf({ role, content, tool_calls: calls, reasoning_content: thought }) {
  if (!ROLES.has(role)) return `has the role ${JSON.stringify(role)}`;
  const isText = content == null || typeof content === "string";
  if (!isText && !(Array.isArray(content) && content.every(isPart)))
    return "has content that is neither text nor parts";
  if (thought != null && typeof thought !== "string") return "has a thought that is not text";
  if (calls != null && !(Array.isArray(calls) && calls.every(isCall)))
    return "has a tool call without name and arguments";
  return null;
}

const isCall = (call) =>
  typeof call?.function?.name === "string" && typeof call.function.arguments === "string";
const SOURCES = {
  text: (part) => part.text,
  image_url: (part) => part.image_url?.url,
  video_url: (part) => part.video_url?.url,
  input_audio: (part) => part.input_audio?.data,
};

function isPart(part) {
  const source = Object.hasOwn(SOURCES, part?.type) ? SOURCES[part.type](part) : null;
  return typeof source === "string" && (part.name === undefined || typeof part.name === "string");
}
