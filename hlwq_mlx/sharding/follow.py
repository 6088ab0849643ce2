"""Another rank's work: do what rank 0 says until the work is done."""

from typing import Any

import mlx.core as mx
import numpy as np

from .control import SILENCE_S, Follower
from .mirror import Mirror
from .passes import Worker


def follow(worker: Worker, follower: Follower) -> None:
    """Take part in every pass, until rank 0 says that there are no more."""
    mirror = Mirror(worker.part.args.text_config, worker.layers)
    while True:
        message = follower.hear()
        if message["do"] == "end":
            return
        if message["do"] == "begin":
            follower.peer.expect(SILENCE_S)
            continue
        mirror.apply(message.get("notes", ()))
        ids = mx.array(np.array(message["ids"], dtype=np.int32))
        if message["do"] == "embed":
            worker.embed(ids)
        else:
            _run(worker, mirror, message, ids)


def _run(worker: Worker, mirror: Mirror, message: Any, ids: mx.array) -> None:
    caches = mirror.together(message["sequences"])
    hidden = worker.run(message["kind"], ids, caches, None, message["has_x"])
    if hidden is not None and "most" in message:
        mx.eval(worker.likeliest(hidden, message["most"]))
    elif hidden is not None:
        worker.score(hidden)
    mx.eval([entry.state for entry in caches])
    if ids.shape[1] > 1:
        mx.clear_cache()  # or the activations of all chunks would be in memory at once
