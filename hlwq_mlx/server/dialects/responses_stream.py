"""Write the answer to a Responses request: its items, one after another, as events.

Source: the types of the `openai` client 3.57; what Codex reads of them (codex-api/src/sse).
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

from ..errors import describe
from ..events import Begun, Call, Content, Done, Event, Failed, Thought, Usage, Waiting
from ..request import ChatRequest
from .dialect import Meta
from .named_events import named_event
from .openai_form import Form
from .responses_items import Item, Message, Reasoning
from .responses_tools import Offered, call_item

LENGTH = {"reason": "max_output_tokens"}
# What carries the argument of a call, by the type of its item.
CARRIERS = {
    "function_call": ("arguments", "function_call_arguments"),
    "custom_tool_call": ("input", "custom_tool_call_input"),
}


class ResponseWriter:
    """Writes the events of a streamed answer."""

    def __init__(self, request: ChatRequest, tools: Mapping[str, Offered], meta: Meta) -> None:
        self._request = request
        self._tools = tools
        self._meta = meta
        self._sequence = 0
        self._has_begun = False
        self._output: list[Form] = []
        self._open: Item | None = None

    def __call__(self, event: Event, choice: int = 0) -> bytes:
        """Return the bytes of an event."""
        written = b""
        for each in self.events(event):
            written += named_event({**each, "sequence_number": self._sequence})
            self._sequence += 1
        return written

    def close(self) -> bytes:
        """Return nothing: the last event ends the stream."""
        return b""

    def events(self, event: Event) -> Iterator[Form]:
        """Yield what an event becomes; the first one, whichever it is, begins the response."""
        if not self._has_begun:
            self._has_begun = True
            yield self._response("created", "in_progress")
            yield self._response("in_progress", "in_progress")
        elif isinstance(event, Waiting):  # Codex counts events as signs of life, comments not
            yield self._response("in_progress", "in_progress")
        match event:
            case Thought(text):
                item = yield from self._enter(Reasoning)
                yield from item.add(text)
            case Content(text, scores):
                item = yield from self._enter(Message)
                yield from item.add(text, scores)
            case Call():
                yield from self._call(event)
            case Done(reason, usage):
                status = "incomplete" if reason == "length" else "completed"
                yield from self._leave(status)
                yield self._response(status, status, usage=usage)
            case Failed(problem, http_status):
                told = describe(problem, http_status)
                error = {"code": told.code or "server_error", "message": told.message}
                yield self._response("failed", "failed", error=error)
            case Begun() | Waiting():
                pass

    def _enter(self, kind: type[Item]) -> Generator[Form, None, Item]:
        """Begin an item, unless it is being written, and return it."""
        if type(self._open) is kind:
            return self._open
        yield from self._leave("completed")
        self._open = item = kind(self._meta.token, len(self._output))
        yield from item.begin()
        return item

    def _leave(self, status: str) -> Iterator[Form]:
        """End the item that is being written, if one is."""
        if self._open is not None:
            yield from self._open.end(status)
            self._output.append(self._open.item(status))
            self._open = None

    def _call(self, call: Call) -> Iterator[Form]:
        yield from self._leave("completed")
        index = len(self._output)
        item = call_item(call, self._tools, f"{self._meta.token}_{index}", "completed")
        key, event = CARRIERS[item["type"]]
        at = {"item_id": item["id"], "output_index": index}
        begun = {**item, key: "", "status": "in_progress"}
        yield {"type": "response.output_item.added", "output_index": index, "item": begun}
        yield {"type": f"response.{event}.delta", **at, "delta": item[key]}
        named = {"name": item["name"]} if key == "arguments" else {}
        yield {"type": f"response.{event}.done", **at, **named, key: item[key]}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
        self._output.append(item)

    def _response(
        self, event: str, status: str, *, usage: Usage | None = None, error: Any = None
    ) -> Form:
        output = [] if status == "in_progress" else list(self._output)
        told = response(self._request, self._meta, status, output)
        told["error"] = error
        if usage is not None:
            told["usage"] = _usage(usage)
            told["completed_at"] = int(self._meta.created + usage.prompt_s + usage.answer_s)
        return {"type": f"response.{event}", "response": told}


def response(request: ChatRequest, meta: Meta, status: str, output: list[Form]) -> Form:
    """Return the response that every stage of an answer tells, with the request's own settings."""
    asked = request.body
    return {
        "id": f"resp_{meta.token}",
        "object": "response",
        "created_at": int(meta.created),
        "completed_at": None,
        "status": status,
        "error": None,
        "incomplete_details": LENGTH if status == "incomplete" else None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": request.max_tokens,
        "metadata": asked.get("metadata") or {},
        "model": meta.model,
        "output": output,
        "parallel_tool_calls": request.parallel_calls,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None} | (asked.get("reasoning") or {}),
        "store": False,
        "temperature": request.sampling.get("temp"),
        "text": {"format": {"type": "text"}} | (asked.get("text") or {}),
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked.get("tools") or [],
        "top_p": request.sampling.get("top_p"),
        "truncation": "disabled",
        "background": False,
        "usage": None,
        "user": asked.get("user"),
    }


def _usage(usage: Usage) -> Form:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
