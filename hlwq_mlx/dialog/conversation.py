"""A conversation with a model: its messages, and the answer that is being read.

It neither reads input nor prints, so a terminal, a test or a server can use it.

    conversation.add_user("Hi")
    for event in conversation.take(pieces): ...  # what answers conversation.prompt(tokenizer)
    for call in conversation.pending: conversation.add_result(result)
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from ..errors import RequestError
from . import template
from .grammar import Answer, Event, ToolCall, collect, opens_thought, read_answer
from .interface import TokenizerLike
from .messages import normalize_tools


class Conversation:
    """Messages in OpenAI's form, and the settings that all its prompts share."""

    def __init__(
        self,
        *,
        system: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool = False,
    ) -> None:
        self.system = system
        normalize_tools(tools)  # refuses at once what no template could render later
        self.tools = list(tools)
        self.thinking = thinking
        self._messages: list[dict[str, Any]] = []
        self._pending: list[ToolCall] = []

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages so far, the instructions first."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self._messages]

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """The calls of the last answer that have no result yet, in order."""
        return tuple(self._pending)

    def reset(self) -> None:
        """Forget the messages; the settings stay."""
        self._messages = []
        self._pending = []

    def add_user(self, content: str | list[dict[str, Any]]) -> None:
        """Add what the user says: text, or parts with media."""
        self._expect_no_calls()
        self._messages.append({"role": "user", "content": content})

    def add_result(self, result: Any) -> None:
        """Add the result of the first call that waits for one: text or structured data.

        Raises: RequestError when none waits.
        """
        if not self._pending:
            raise RequestError(
                "[conversation] needed a tool call that waits for a result, got none. "
                "Add results only after an answer that makes calls."
            )
        asking = next(each for each in reversed(self._messages) if each["role"] == "assistant")
        calls = asking["tool_calls"]
        call = calls[len(calls) - len(self._pending)]
        del self._pending[0]
        named = {"tool_call_id": call["id"], "name": call["function"]["name"]}
        self._messages.append({"role": "tool", **named, "content": result})

    def undo(self) -> None:
        """Take back the last user message and all that followed it."""
        users = [at for at, each in enumerate(self._messages) if each["role"] == "user"]
        del self._messages[users[-1] if users else 0 :]
        self._pending = []

    def prompt(self, tokenizer: TokenizerLike) -> template.Rendered:
        """Render the conversation and the opening of the answer.

        Raises: RequestError when a call has no result yet.
        """
        self._expect_no_calls()
        return template.render(tokenizer, self.messages, tools=self.tools, thinking=self.thinking)

    def take(self, pieces: Iterable[str], *, prompt: str = "") -> Generator[Event]:
        """Yield the events of an answer to the prompt, and add the answer to the messages.

        If an exception or closing this iterator ends the answer early, what came of it is kept,
        without its calls.
        """
        events: list[Event] = []
        is_whole = False
        try:
            for event in read_answer(pieces, in_thought=opens_thought(prompt)):
                events.append(event)
                yield event
            is_whole = True
        finally:
            self._add_answer(collect(events), is_whole=is_whole)

    def _add_answer(self, answer: Answer, *, is_whole: bool) -> None:
        content = answer.content + "".join(broken.text for broken in answer.broken)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if answer.thought:
            message["reasoning_content"] = answer.thought
        calls = answer.calls if is_whole else ()
        if calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{len(self._messages)}_{at}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for at, call in enumerate(calls)
            ]
        if content or calls or is_whole:
            self._messages.append(message)
        self._pending = list(calls)

    def _expect_no_calls(self) -> None:
        if self._pending:
            names = ", ".join(call.name for call in self._pending)
            raise RequestError(
                f"[conversation] needed the result of every call first, got none for {names}. "
                "Add them, or take the question back."
            )
