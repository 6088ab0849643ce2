"""A request in the one form that all dialects are read into.

It holds Python values alone, as the client gave them and checked; ids come later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Message = Mapping[str, Any]


class Calls(Enum):
    """Whether an answer may, must or must not call a tool."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True)
class ToolChoice:
    """The client's choice among tools; with a `name`, that tool must be called."""

    calls: Calls = Calls.AUTO
    name: str | None = None


@dataclass(frozen=True)
class Penalties:
    """What makes tokens that were used before less likely; 1.0 and 0.0 change nothing."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0


@dataclass(frozen=True)
class ChatRequest:
    """A request to answer messages, or to continue a raw prompt.

    `messages` and `tools` are in OpenAI's form, whatever the dialect; if the last message is the
    assistant's, its text is continued. A `raw` prompt is text or ids, with control tokens as its
    author wrote them. None leaves a choice to the server: `thinking`, `seed`, `max_tokens` and the
    fields of engine.sampling.Sampling that `sampling` lacks. `schema` is what the content must
    satisfy: None for any text, {} for any JSON object. `logprobs` is how many alternatives of each
    token are told, None for not even its own log probability. `body` is what the client sent, for
    the dialects whose answers repeat it.
    """

    model: str = ""
    messages: Sequence[Message] = ()
    raw: str | Sequence[int] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_calls: bool = True
    thinking: bool | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    penalties: Penalties = Penalties()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    count: int = 1
    schema: Mapping[str, Any] | None = None
    logprobs: int | None = None
    is_streamed: bool = False
    with_usage: bool = True
    template_options: Mapping[str, Any] = field(default_factory=dict)
    image_tokens: int | None = None
    keep_alive_s: float | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
