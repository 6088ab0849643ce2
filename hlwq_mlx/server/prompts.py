"""Prepare a request for the engine: messages to ids, without the model, in any thread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..dialog import grammar, template
from ..dialog.tokenizer import Tokenizer
from ..engine.request import room_for_answer
from ..errors import ContextError, RequestError
from ..gemma4.config import Gemma4Config
from ..media.origin import Access
from ..media.processor import Processor
from ..prompt import ReadPrompt, read_prompt
from .request import Calls, ChatRequest, Message

TURN_END, RESULT_END, SYSTEM = "<turn|>", "<tool_response|>", "<|turn>system"
TURN_TOKENS = 4  # of a user's turn without a word: its opening, role, line feed and end
LEAST_LETTERS = 64  # of the longest token; an unknown vocabulary may have longer ones


class Ready(NamedTuple):
    """A prompt that the engine can take: what was read, and how its answer begins and ends.

    `instructions` is where the text of the system and the tools ends, and `marks` where the last
    turn or tool result does: other prompts may begin with as much.
    """

    read: ReadPrompt
    max_tokens: int
    may_think: bool
    in_thought: bool
    is_raw: bool
    instructions: int = 0
    marks: Sequence[int] = ()


@dataclass(frozen=True)
class PromptMaker:
    """Makes prompts for one model; `context` is how many tokens prompt and answer have together."""

    args: Gemma4Config
    tokenizer: Tokenizer
    processor: Processor
    access: Access
    context: int
    thinking: bool = False
    template_options: Mapping[str, Any] | None = None

    def make(self, request: ChatRequest) -> Ready:
        """Return a request's prompt.

        Raises: RequestError for what cannot be rendered, read or tokenized; ContextError for what
        is too long; SourceError for media that cannot be fetched.
        """
        read, may_think, in_thought = self._read(request)
        asked = -1 if request.max_tokens is None else request.max_tokens
        room = room_for_answer(len(read.ids), asked, self.context)
        is_raw = request.raw is not None
        return Ready(read, room, may_think, in_thought, is_raw, *self._ends(read.ids))

    def count(self, request: ChatRequest) -> int:
        """Return how many tokens a request's prompt has, which may be more than there is room for.

        Clients ask so that they know what to shorten. Raises: as `make`, but ContextError only for
        what is too long to be counted.
        """
        return len(self._read(request)[0].ids)

    def _read(self, request: ChatRequest) -> tuple[ReadPrompt, bool, bool]:
        """Return a prompt, whether its answer may think, and whether it begins with a thought."""
        if request.raw is not None:
            return self._raw(request.raw), False, False
        may_think = self.thinking if request.thinking is None else request.thinking
        rendered = self._render(request, may_think)
        read = read_prompt(
            self.args,
            self.processor,
            self.tokenizer,
            rendered,
            self.access,
            image_tokens=request.image_tokens,
        )
        return read, may_think, grammar.opens_thought(rendered.text)

    def _raw(self, raw: str | Sequence[int]) -> ReadPrompt:
        if isinstance(raw, str):
            self._require_short([raw])
            ids = template.encode(self.tokenizer, template.Rendered(raw))
        else:
            ids = [int(each) for each in raw]
            vocab_size = self.args.text_config.vocab_size
            if not all(0 <= each < vocab_size for each in ids):
                raise RequestError(
                    f"[prompt] needed token ids from 0 to {vocab_size - 1}, got others. "
                    "Take them from this model's tokenizer."
                )
        return ReadPrompt(ids, ids)

    def _render(self, request: ChatRequest, thinking: bool) -> template.Rendered:
        messages, begun = _take_begun(request.messages)
        turns = sum(message.get("role") == "user" for message in messages)
        self._require_short(list(_letters(messages)), max(len(messages), turns * TURN_TOKENS))
        rendered = template.render(
            self.tokenizer,
            messages,
            tools=() if request.tool_choice.calls is Calls.NONE else request.tools,
            thinking=thinking and not begun,
            options={**(self.template_options or {}), **request.template_options},
        )
        return template.continued(self.tokenizer, rendered, begun) if begun else rendered

    def _require_short(self, texts: Sequence[str], least: int = 0) -> None:
        """Refuse texts that cannot fit, or `least` tokens, before the work that grows with them."""
        least = max(least, -(-sum(map(len, texts)) // self._longest_token))
        if least >= self.context:
            raise ContextError(least, self.context)

    @cached_property
    def _longest_token(self) -> int:
        return max(LEAST_LETTERS, *map(len, self.tokenizer.get_vocab()))

    def _ends(self, ids: Sequence[int]) -> tuple[int, Sequence[int]]:
        """Return where the instructions end, 0 if there are none, and the last turn or result."""
        ends = {self.tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, RESULT_END)}
        at = [position + 1 for position, id in enumerate(ids) if id in ends]
        opening = self.tokenizer.encode(SYSTEM, add_special_tokens=False)
        has_instructions = list(ids[1 : 1 + len(opening)]) == opening
        return at[0] if at and has_instructions else 0, at[-1:]


def _take_begun(messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """Return the messages before an answer that is begun, and its text."""
    last = messages[-1] if messages else {}
    text = last.get("content")
    if last.get("role") != "assistant" or last.get("tool_calls") or not isinstance(text, str):
        return messages, ""
    return messages[:-1], text


def _letters(value: Any) -> Any:
    """Yield the texts of messages; media are no text of the prompt."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        parts = [value.get(key) for key in ("content", "text", "tool_calls", "reasoning_content")]
        for part in parts:
            yield from _letters(part)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _letters(each)
