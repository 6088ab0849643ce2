"""What watchers are told of the engine's states."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from hlwq_mlx.server import watch
from hlwq_mlx.server.engine import State


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        (State.LOADING, 503, "loading"),
        (State.READY, 200, "ok"),
        (State.UNLOADED, 200, "ok"),  # the next request loads it
        (State.DOWN, 503, "down"),
    ],
)
def test_health_is_that_of_the_engine(state, status, said):
    site = SimpleNamespace(service=SimpleNamespace(engine=SimpleNamespace(state=state)))
    response = asyncio.run(watch.health(site, None))
    assert response.status_code == status
    assert json.loads(response.body) == {"status": said, "model": state.value}
