"""A request to the engine: a prepared prompt, and how its answer is made.

Callers that know text make it (the commands, the library, the server); the engine sees ids only.
L positions, H hidden size.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx

from ..errors import ContextError, RequestError
from ..gemma4.caches import WHOLE, Caching
from .sampling import Sampling

PREFILL_STEP = 512  # bounds activations: a chunk of 2048 peaks several times higher on 16 GB
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


class Prepared(NamedTuple):
    """A prompt as the model reads it.

    `keys` are what prompts are compared by: the ids, but with a negative number for each soft token
    of a medium, which the ids do not tell apart. Without media they may be left out.
    Shapes: ids and keys [L], embeddings [1, L, H] where there are media.
    """

    ids: Sequence[int]
    embeddings: mx.array | None = None
    keys: Sequence[int] = ()


@dataclass(frozen=True)
class Request:
    """A prompt and how to answer it.

    The answer ends with the first id of `stop_ids`, or after `max_tokens`; -1 is no limit. The
    prompt is read `prefill_step` tokens at a time; `on_prefill` gets how many are read, and of how
    many.
    Raises: RequestError for an empty prompt, a limit that is neither positive nor -1, or a chunk
    of no tokens.
    """

    prompt: Prepared
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = -1
    stop_ids: Collection[int] = ()
    caching: Caching = WHOLE
    prefill_step: int = PREFILL_STEP
    on_prefill: Progress = no_progress

    def __post_init__(self) -> None:
        require_answerable(self.prompt.ids, self.max_tokens)
        if self.prefill_step < 1:
            raise RequestError(
                f"[prefill_step] needed at least 1, got {self.prefill_step}. "
                "It counts prompt tokens."
            )


def require_answerable(prompt: Sequence[int], max_tokens: int) -> None:
    """Check that there is a prompt, and room for an answer.

    Raises: RequestError.
    """
    if not len(prompt):
        raise RequestError("[prompt] needed at least one token, got none. Give a prompt.")
    if max_tokens < 1 and max_tokens != -1:
        raise RequestError(
            f"[max_tokens] needed a positive number or -1, got {max_tokens}. -1 means no limit."
        )


def room_for_answer(prompt_tokens: int, max_tokens: int, context: int) -> int:
    """Return how many tokens an answer may have: prompt and answer share the context.

    Raises: ContextError when the prompt leaves no room.
    """
    room = context - prompt_tokens
    if room < 1:
        raise ContextError(prompt_tokens, context)
    return room if max_tokens == -1 else min(max_tokens, room)
