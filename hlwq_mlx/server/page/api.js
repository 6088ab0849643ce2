// What the page asks of the server: OpenAI's dialect, and /props.

const KEY = "hlwq-key"; // kept until the tab is closed

/** An answer of the server that is an error; `status` is 0 if there was none at all. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function rememberKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is `hlwq serve` still running?");
  }
  if (!response.ok) throw new ApiError(response.status, await reason(response));
  return response;
}

async function reason(response) {
  const body = await response.text();
  const wait = response.headers.get("Retry-After");
  const advice = wait ? ` Try again in ${wait} s.` : "";
  return (messageOf(body) ?? `The server answered ${response.status}.`) + advice;
}

function messageOf(body) {
  try {
    const { error } = JSON.parse(body);
    return typeof error === "string" ? error : error.message;
  } catch {
    return undefined;
  }
}

/** Return the name of the model, and what /props tells of it where there is such a thing. */
export async function describe() {
  const props = await request("props")
    .then((found) => found.json())
    .catch((error) => {
      if (error.status === 401 || error.status === 0) throw error;
      return {};
    });
  if (props.model) return props;
  const { data } = await (await request("v1/models")).json();
  const [first] = data;
  return { context_length: first?.context_length, ...props, model: first?.id ?? "" };
}

/** Yield the chunks of a streamed answer. Raises ApiError also for an error in the stream. */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = readChunk(data);
    if (chunk.error) throw new ApiError(500, chunk.error.message ?? String(chunk.error));
    yield chunk;
  }
  throw new ApiError(0, "The connection ended before the answer did.");
}

function readChunk(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError(
      0,
      "The server sent what is not JSON. Something between it and this page may have changed it.",
    );
  }
}

/** Yield the data of server-sent events; comments, which keep the connection alive, are passed over. */
async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await next(reader);
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already, and is not needed any more
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection broke before the answer ended.");
  }
}
