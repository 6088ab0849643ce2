"""Answer one request: read its prompt, then step until it ends.

Prefill fills the caches chunk by chunk. Only the last position is scored, so only for it do the
layers run that share keys and values. This module never sees text.
L prompt length, V vocabulary.
"""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx

from ..gemma4.caches import rewind
from ..gemma4.model import Model
from .decoding import Chooser, Decoding
from .draft import Course, Drafter
from .finite import require_finite
from .pace import Credit
from .prefix_cache import PrefixCache
from .request import Prepared, Request
from .speculate import make_step
from .step import Chosen, Outcome, Row, Step, start_row


def generate_tokens(
    model: Model,
    request: Request,
    prefix_cache: PrefixCache | None = None,
    drafter: Drafter | None = None,
    credit: Credit | None = None,
) -> Iterator[Chosen]:
    """Yield an answer's tokens with their log probabilities; media tokens are never chosen.

    What a `prefix_cache` of this model and caching knows of the prompt is not read again, and the
    prompt and its answer are kept there. A drafter lets a pass bring several tokens, the same ones;
    `credit` is what answers may lose by it together, by default this one alone.
    Raises: CheckpointError where the scores are not finite; it names the weight at fault.
    """
    prefixes = prefix_cache or PrefixCache(partial(model.make_cache, request.caching), 0)
    keys = list(request.prompt.keys or request.prompt.ids)
    with wired():
        match = prefixes.find(keys)
        positions, caches = match.positions(len(keys)), match.restore()

        def keep(chunk: slice) -> None:
            for position in positions:
                if chunk.start < position <= chunk.stop:
                    prefixes.keep(keys, caches, position)

        row, first = begin_row(model, request, caches, match.length, keep)
        try:
            for chosen in _decode(make_step(model, drafter, credit), request, row, first):
                require_finite(model, chosen.token, chosen.scores)
                keys.append(chosen.token)
                yield chosen
        except GeneratorExit:  # the caller stopped early, and may go on with the same conversation
            if not row.is_broken:
                # A pass may have brought more tokens than were taken.
                rewind(caches, min(len(keys), caches[0].offset))
                prefixes.keep(keys, caches, caches[0].offset)
            raise
        prefixes.keep(keys, caches, caches[0].offset)


def begin_row(
    model: Model,
    request: Request,
    caches: list[Any],
    begin: int = 0,
    on_chunk: Callable[[slice], None] = lambda chunk: None,
) -> tuple[Row, Chosen]:
    """Read a prompt from position `begin` on and choose the first token behind it.

    `on_chunk` gets each part of the prompt as soon as the caches hold it.
    """
    chooser = make_chooser(model, Decoding(request.sampling), request.prompt.ids)
    left = math.inf if request.max_tokens == -1 else request.max_tokens
    course = Course(request.prompt.keys or request.prompt.ids)
    row = Row(caches, -1, chooser, request.stop_ids, left, course=course)
    return row, start_row(row, prefill(model, request, caches, begin, on_chunk, course))


def make_chooser(model: Model, decoding: Decoding, prompt: Sequence[int]) -> Chooser:
    """Return what chooses the tokens of an answer; media tokens are never chosen.

    Raises: RequestError for an option that does not fit the model.
    """
    args = model.args
    return decoding.chooser(args.text_config.vocab_size, args.media_token_ids, prompt)


def _decode(step: Step, request: Request, row: Row, first: Chosen) -> Iterator[Chosen]:
    """Yield the first token and those that follow, up to the request's end."""
    pending: Outcome = [first]
    count = 0
    while True:
        if isinstance(pending, Exception):
            raise pending
        for chosen in pending:
            yield chosen
            count += 1
            if chosen.token in request.stop_ids or count == request.max_tokens:
                return
        [pending] = step([row])


def prefill(
    model: Model,
    request: Request,
    caches: list[Any],
    begin: int = 0,
    on_chunk: Callable[[slice], None] = lambda chunk: None,
    course: Course | None = None,
) -> mx.array:
    """Read a prompt from position `begin` on and return the logits of its next token.

    `course` takes note of what drafting can begin with.
    Shapes: -> float32 [1, V], evaluated.
    """
    prompt, total = request.prompt, len(request.prompt.ids)
    for chunk in chunks(prompt.ids, request.prefill_step, inseparable(model), begin):
        request.on_prefill(chunk.start, total)
        logits = read_chunk(model, prompt, caches, chunk, course)
        on_chunk(chunk)
    request.on_prefill(total, total)
    assert logits is not None  # the last chunk is the prompt's end
    return logits


def read_chunk(
    model: Model,
    prompt: Prepared,
    caches: list[Any],
    chunk: slice,
    course: Course | None = None,
) -> mx.array | None:
    """Read a part of a prompt into the caches; return the next token's logits behind the last part.

    `course` as in `prefill`.
    Shapes: -> float32 [1, V], evaluated.
    """
    ids = mx.array([list(prompt.ids[chunk])])
    x = None if prompt.embeddings is None else prompt.embeddings[:, chunk]
    if chunk.stop == len(prompt.ids):
        hidden, scored = model.prefill_state(ids, caches, x)
        logits: mx.array = scored[:, -1]
        mx.eval(hidden, logits)
        if course is not None:
            course.hidden = caches[0].offset, hidden
        return logits
    model.fill_cache(ids, caches, x)
    # Or the activations of all chunks would be in memory at once.
    mx.eval([entry.state for entry in caches])
    mx.clear_cache()
    return None


def chunks(
    prompt: Sequence[int], step: int, inseparable: Container[int], begin: int = 0
) -> Iterator[slice]:
    """Cut a prompt from `begin` on into chunks of `step` tokens.

    A chunk that would end on an `inseparable` token is extended past the run of such tokens.
    """
    while begin < len(prompt):
        end = min(begin + step, len(prompt))
        while end < len(prompt) and prompt[end - 1] in inseparable:
            end += 1
        yield slice(begin, end)
        begin = end


def inseparable(model: Model) -> tuple[int, ...]:
    """Return the tokens whose runs see each other whole, and so must be in one chunk."""
    is_causal = model.args.text_config.use_bidirectional_attention is None
    return () if is_causal else model.args.vision_token_ids


@contextmanager
def wired() -> Iterator[None]:
    """Within the block, keep macOS from paging out as much memory as the GPU recommends."""
    if not mx.metal.is_available():
        yield
        return
    before = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)
