"""Answer several requests at once: when a row ends, the next request takes its place.

Rows share the model's products, and each attends to its own caches, so an answer is the same as
alone. This module never sees text.
"""

from collections import deque
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..gemma4.model import Model
from .answer import prefill
from .finite import require_finite
from .request import Request
from .step import PlainStep, Row, choose

WIDTH = 8  # rows; from more of them on, products may sum in another order than for one


def answer_together(
    model: Model, requests: Sequence[Request], width: int = WIDTH
) -> list[list[int]]:
    """Return the tokens of each answer, with the one that ends it.

    Raises: CheckpointError where scores are not finite; it names the weight at fault.
    """
    step = PlainStep(model)
    answers: list[list[int]] = [[] for _ in requests]
    waiting = deque(range(len(requests)))
    rows: dict[int, Row] = {}
    while waiting or rows:
        if waiting and len(rows) < width:
            number = waiting.popleft()
            rows[number] = _begin(model, requests[number])
            answers[number].append(rows[number].token)
        else:
            for number, chosen in zip(rows, step([*rows.values()]), strict=True):
                for each in chosen:
                    require_finite(model, *each)
                answers[number] += [each.token for each in chosen]
        for number in [n for n in rows if _is_over(requests[n], answers[n])]:
            del rows[number]
    return answers


def _begin(model: Model, request: Request) -> Row:
    """Read a prompt and choose the first token behind it."""
    caches = model.make_cache(request.caching)
    choose_id = request.sampling.choose(
        model.args.text_config.vocab_size, masked=model.args.media_token_ids
    )
    token, scores = choose(prefill(model, request, caches), choose_id)
    mx.eval(token, scores)
    require_finite(model, int(np.array(token)[0]), scores)
    return Row(caches, int(np.array(token)[0]), choose_id)


def _is_over(request: Request, answer: Sequence[int]) -> bool:
    return answer[-1] in request.stop_ids or len(answer) == request.max_tokens
