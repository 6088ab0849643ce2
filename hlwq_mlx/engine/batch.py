"""Answer several tasks at once, without a server.

Rows share the model's products, and each attends to its own caches, so an answer is the same as
alone. This module never sees text.
"""

from collections.abc import Sequence

from ..gemma4.model import Model
from .answer import wired
from .scheduler import Capacity, Scheduler
from .task import Failed, Task, Token, Update
from .worker import Worker


def answer_together(model: Model, tasks: Sequence[Task]) -> list[list[int]]:
    """Return the tokens of each answer, with the one that ends it.

    Raises: the error of a task that fails.
    """
    updates: list[list[Update]] = [[] for _ in tasks]
    context = model.args.text_config.max_position_embeddings
    worker = Worker(model)
    # So many rows at once, of any size.
    room = Capacity(context, nbytes=worker.width, bytes_of=lambda tokens: 1)
    scheduler = Scheduler(room.nbytes)
    for task, told in zip(tasks, updates, strict=True):
        scheduler.add(room.admit(task, told.append))
    with wired():
        while not scheduler.is_idle:
            scheduler.step(worker)
    return [_ids(told) for told in updates]


def _ids(told: Sequence[Update]) -> list[int]:
    last = told[-1]
    if isinstance(last, Failed):
        raise last.problem
    return [update.id for update in told if isinstance(update, Token)]
