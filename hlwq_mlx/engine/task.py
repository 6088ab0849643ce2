"""What the scheduler is given, and what it tells: plain values, but for the prompt to be prepared.

A task may be made in any thread. Updates come in order: one Admitted, a Token for each token of the
answer, one Finished; or Failed in the place of any of them, and nothing after it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..errors import HLWQError, RequestError
from ..gemma4.model import Model
from .decoding import Decoding
from .request import Prepared, require_answerable

MOST_TOP = 20
Prepare = Callable[[Model], Iterator[Prepared | None]]


@dataclass(frozen=True)
class Task:
    """A request to the scheduler.

    `keys` are those of the prompt (see Prepared). `prepare` is needed for media alone: it runs in
    the engine's thread, if soft tokens are to be read, and yields None after each piece of work, as
    a picture, and the prepared prompt last. The answer ends with
    the first id of `stop_ids`, after `max_tokens` (-1 is no limit), or where the context is full.
    With each token come the `top_logprobs` likeliest ones. Prompts share what was read of others
    with the same `salt` alone. Others may be equal up to `instructions`, where the text of system
    and tools ends, and up to the `marks`; by default no such place is known.
    Raises: RequestError for an empty prompt, or a limit that cannot be followed.
    """

    keys: Sequence[int]
    prepare: Prepare | None = None
    decoding: Decoding = field(default_factory=Decoding)
    max_tokens: int = -1
    stop_ids: Collection[int] = ()
    top_logprobs: int | None = None
    salt: str = ""
    instructions: int = 0
    marks: Sequence[int] = ()

    def __post_init__(self) -> None:
        require_answerable(self.keys, self.max_tokens)
        if not 0 <= (self.top_logprobs or 0) <= MOST_TOP:
            raise RequestError(
                f"[top_logprobs] needed 0 to {MOST_TOP}, got {self.top_logprobs}. "
                "It counts the likeliest tokens that are told with each one."
            )


@dataclass(frozen=True)
class Admitted:
    """The prompt is being read; `cached` of its tokens were known."""

    cached: int


class Token(NamedTuple):
    """A token of the answer, the one that ends it too.

    Its log probability is the model's own, before sampling options, as are those of the `top`
    likeliest ones: ids with log probabilities, the likeliest first.
    """

    id: int
    logprob: float
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is whole, or as long as it may be."""

    reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Failed:
    """The answer ended by an error."""

    problem: HLWQError


Update = Admitted | Token | Finished | Failed
Deliver = Callable[[Update], None]
