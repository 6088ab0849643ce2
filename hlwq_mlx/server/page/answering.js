// One answer, from the request to its last token.

import { ApiError, streamChat } from "./api.js";
import { fold, statsOf } from "./conversation.js";

const CUT = "The answer was cut: it had reached its longest length.";
const STOPPED = "Stopped.";
const UNEXPECTED = "The page did not understand what the server sent:";

/** Stream into `answer`; call `grew` after each chunk. An error ends up in the answer; its status is returned. */
export async function stream(answer, body, signal, grew) {
  const times = { sent: performance.now(), first: 0, last: 0 };
  let finish = null;
  try {
    for await (const chunk of streamChat(body, signal)) {
      const { isToken, finish: reason, usage } = fold(answer, chunk);
      if (isToken) times.last = performance.now();
      if (isToken) times.first ||= times.last;
      finish ??= reason;
      if (usage && times.first) answer.stats = statsOf(usage, times);
      grew();
    }
    if (finish === "length") answer.stopped = CUT;
    return 200;
  } catch (error) {
    if (signal.aborted) answer.stopped = STOPPED;
    else
      answer.error = error instanceof ApiError ? error.message : `${UNEXPECTED} ${error.message}`;
    return error.status ?? 200;
  } finally {
    if (finish === null) delete answer.tool_calls; // half a call is none
  }
}
