"""Answer several requests at once: when a row ends, the next request takes its place.

Rows share the model's products, and each attends to its own caches, so an answer is the same as
alone. This module never sees text.
"""

from collections import deque
from collections.abc import Sequence

from ..gemma4.model import Model
from .answer import begin_row
from .finite import require_finite
from .request import Request
from .step import PlainStep, Row

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
            caches = model.make_cache(requests[number].caching)
            rows[number], first = begin_row(model, requests[number], caches)
            require_finite(model, *first)
            answers[number].append(first.token)
        else:
            for number, chosen in zip(rows, step([*rows.values()]), strict=True):
                for each in chosen:
                    require_finite(model, *each)
                answers[number] += [each.token for each in chosen]
        for number in [n for n in rows if _is_over(requests[n], answers[n])]:
            del rows[number]
    return answers


def _is_over(request: Request, answer: Sequence[int]) -> bool:
    return answer[-1] in request.stop_ids or len(answer) == request.max_tokens
