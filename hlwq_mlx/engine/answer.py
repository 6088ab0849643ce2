"""Answer one request: read its prompt, then step until it ends.

Prefill fills the caches chunk by chunk and scores nothing but the last position, for which alone
the layers run that share keys and values. Knows ids, never text.
L prompt length, V vocabulary.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from ..gemma4.model import Model
from .finite import require_finite
from .prefix_cache import PrefixCache
from .request import Request
from .step import Chosen, PlainStep, Row, choose


def generate_tokens(
    model: Model, request: Request, prefix_cache: PrefixCache | None = None
) -> Iterator[Chosen]:
    """Yield an answer's tokens with their log probabilities; media tokens are never chosen.

    `prefix_cache` spares the work that an earlier prompt with it has done, which was cached alike.
    Raises: CheckpointError where the scores are not finite, with the weight that is to blame.
    """
    prefix_cache = prefix_cache or PrefixCache()
    text = model.args.text_config
    choose_id = request.sampling.choose(text.vocab_size, masked=model.args.media_token_ids)
    ids = list(request.prompt.ids)
    with wired():
        caches, begin = prefix_cache.take(request.prompt)
        caches = caches or model.make_cache(request.caching)
        token, scores = choose(prefill(model, request, caches, begin), choose_id)
        mx.eval(token, scores)
        row = Row(caches, int(np.array(token)[0]), choose_id)
        try:
            for chosen in _decode(model, request, row, Chosen(row.token, scores)):
                require_finite(model, *chosen)
                ids.append(chosen.token)
                yield chosen
        except GeneratorExit:  # the reader has enough
            prefix_cache.keep(caches, ids)
            raise
        prefix_cache.keep(caches, ids)


def _decode(model: Model, request: Request, row: Row, first: Chosen) -> Iterator[Chosen]:
    """Yield the first token and those that follow, up to the request's end."""
    step = PlainStep(model)
    pending, count = [first], 0
    while True:
        for chosen in pending:
            yield chosen
            count += 1
            if chosen.token in request.stop_ids or count == request.max_tokens:
                return
        [pending] = step([row])


def prefill(model: Model, request: Request, caches: list[Any], begin: int = 0) -> mx.array:
    """Read a prompt from its position `begin` on and return what scores its next token.

    Shapes: -> logits float32 [1, V], evaluated.
    """
    ids, embeddings = mx.array(list(request.prompt.ids))[None], request.prompt.embeddings
    total = len(request.prompt.ids)
    for chunk in chunks(request.prompt.ids, request.prefill_step, _inseparable(model), begin):
        request.on_prefill(chunk.start, total)
        x = None if embeddings is None else embeddings[:, chunk]
        if chunk.stop == total:
            logits = model.prefill(ids[:, chunk], caches, x)[:, -1]
            mx.eval(logits)
        else:
            model.fill_cache(ids[:, chunk], caches, x)
            mx.eval([entry.state for entry in caches])
            mx.clear_cache()
    request.on_prefill(total, total)
    return logits


def chunks(
    prompt: Sequence[int], step: int, inseparable: Container[int], begin: int = 0
) -> Iterator[slice]:
    """Cut a prompt from `begin` on into pieces of `step` tokens, longer where a piece would end on
    a token that its successors must come with.
    """
    while begin < len(prompt):
        end = min(begin + step, len(prompt))
        while end < len(prompt) and prompt[end - 1] in inseparable:
            end += 1
        yield slice(begin, end)
        begin = end


def _inseparable(model: Model) -> tuple[int, ...]:
    """Return the tokens whose runs see each other whole, and so must be in one chunk."""
    is_causal = model.args.text_config.use_bidirectional_attention is None
    return () if is_causal else model.args.vision_token_ids


@contextmanager
def wired() -> Iterator[None]:
    """Keep as much as the GPU recommends in memory that macOS does not page out, and restore it."""
    if not mx.metal.is_available():
        yield
        return
    before = mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_wired_limit(before)
