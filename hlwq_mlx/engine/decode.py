"""From prompt ids to a stream of token ids.

Prefill is ours: chunks fill the caches and score nothing, and the layers that share keys and values
run for the last position alone. The decode loop is mlx-lm's. Knows ids, never text.
L prompt length, V vocabulary.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step, generation_stream, wired_limit

from ..errors import RequestError
from ..gemma4.caching import Caching
from ..gemma4.model import Model
from .finite import require_finite
from .prefix import Prefix
from .sampling import Sampling

PREFILL_STEP = 512  # bounds activations: a chunk of 2048 peaks several times higher on 16 GB
Progress = Callable[[int, int], None]


def generate_tokens(
    model: Model,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int,
    input_embeddings: mx.array | None = None,
    prefill_step: int = PREFILL_STEP,
    caching: Caching | None = None,
    prefix: Prefix | None = None,
    on_prefill: Progress = lambda done, total: None,
) -> Iterator[tuple[int, mx.array]]:
    """Yield token ids and their log probabilities, without end when `max_tokens` is -1.

    Media tokens are never chosen. `caching` says how keys and values are kept; `prefix` spares the
    work that an earlier prompt with it has done, which was cached alike; `on_prefill` is told how
    many of the prompt's tokens are processed.
    Shapes: input_embeddings [1, L, H], of a prompt with media; log probabilities float32 [V].
    Raises: RequestError for an empty prompt, a length that is neither positive nor -1, or a chunk
    of no tokens; CheckpointError where the scores are not finite, with the weight that is to blame.
    """
    _check(prompt, max_tokens, prefill_step)
    vocab_size = model.args.text_config.vocab_size
    sampler = sampling.sampler(vocab_size, forbidden=model.args.media_token_ids)
    prefix = prefix or Prefix()
    ids = list(prompt)
    with wired_limit(model, [generation_stream]):
        cache, begin = prefix.take(ids)
        cache = cache or model.make_cache(caching)
        with mx.stream(generation_stream):
            steps = chunks(ids, prefill_step, _inseparable(model), begin)
            logits = _prefill(model, ids, input_embeddings, cache, steps, on_prefill)
        try:
            for token, scores in _decode(model, logits, sampler, max_tokens, cache):
                require_finite(model, token, scores)
                ids.append(token)
                yield token, scores
        except GeneratorExit:  # the answer has come to its end
            prefix.keep(cache, ids)
            raise
        prefix.keep(cache, ids)


def _check(prompt: Sequence[int], max_tokens: int, prefill_step: int) -> None:
    if not prompt:
        raise RequestError("[prompt] needed at least one token, got none. Give a prompt.")
    if max_tokens < 1 and max_tokens != -1:
        raise RequestError(
            f"[max_tokens] needed a positive number or -1, got {max_tokens}. -1 means no limit."
        )
    if prefill_step < 1:
        raise RequestError(
            f"[prefill_step] needed at least 1, got {prefill_step}. It counts prompt tokens."
        )


def _decode(
    model: Model,
    logits: mx.array,
    sampler: Callable[[mx.array], mx.array],
    max_tokens: int,
    cache: list[Any],
) -> Iterator[tuple[int, mx.array]]:
    """Yield the token that the prompt's scores lead to, and what follows it.

    Shapes: logits [1, V].
    """
    with mx.stream(generation_stream):
        scores = logits - mx.logsumexp(logits, keepdims=True)
        token = sampler(scores)
        mx.eval(token)
    yield int(np.array(token)[0]), scores.squeeze(0)
    if max_tokens == 1:
        return
    yield from generate_step(
        token,
        model,
        max_tokens=max_tokens - 1 if max_tokens > 0 else -1,
        sampler=sampler,
        prompt_cache=cache,
    )


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
    """The tokens whose runs see each other whole, and so must be in one chunk."""
    is_causal = model.args.text_config.use_bidirectional_attention is None
    return () if is_causal else model.args.vision_token_ids


def _prefill(
    model: Model,
    prompt: Sequence[int],
    input_embeddings: mx.array | None,
    cache: list[Any],
    steps: Iterable[slice],
    on_prefill: Progress,
) -> mx.array:
    """Fill the caches and return the scores of what follows the prompt: float32 [1, V]."""
    ids = mx.array(list(prompt))[None]
    total = len(prompt)
    for step in steps:
        on_prefill(step.start, total)
        x = None if input_embeddings is None else input_embeddings[:, step]
        if step.stop == total:
            logits = model.prefill(ids[:, step], cache, x)[:, -1]
            mx.eval(logits)
        else:
            model.fill_cache(ids[:, step], cache, x)
            mx.eval([entry.state for entry in cache])
            mx.clear_cache()
    on_prefill(total, total)
    return logits
