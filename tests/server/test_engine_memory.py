"""An idle engine gives the model's memory back, each time; on the demo."""

import gc
import threading
from functools import partial

import demo
import mlx.core as mx
import psutil
import pytest
from test_engine import WAIT_S, Told

from hlwq_mlx.engine.decoding import Decoding
from hlwq_mlx.engine.prefix_cache import PrefixCache
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.engine.scheduler import Capacity
from hlwq_mlx.engine.task import Finished, Task, Token
from hlwq_mlx.engine.worker import Worker
from hlwq_mlx.folder import loading
from hlwq_mlx.server.engine import Engine, State

ROOM = Capacity(4096, 10**9, lambda tokens: tokens)
MIB = 1 << 20


def load(path):
    model = loading.load(path)
    return Worker(model, PrefixCache(model.make_cache))


def rss():
    return psutil.Process().memory_info().rss


@pytest.mark.parametrize("cycles", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_memory_is_given_back_by_every_idle_time(cycles):
    path = demo.folder()
    gc.collect()
    mx.clear_cache()
    before, resident, answers = mx.get_active_memory(), [], []
    unloaded = threading.Event()
    engine = Engine(partial(load, path), ROOM, idle_s=0, on_unload=unloaded.set)
    decoding = Decoding(Sampling(temp=1.0), seed=3)
    for _ in range(cycles):
        told = Told()
        unloaded.clear()
        engine.submit(Task([*range(7, 107)], decoding=decoding, max_tokens=4), told, 1000)
        assert told.wait() == Finished("length")
        assert mx.get_active_memory() > before + MIB
        engine.keep_alive(0)
        assert unloaded.wait(WAIT_S)
        assert mx.get_active_memory() < before + MIB // 4
        assert mx.get_cache_memory() == 0
        resident.append(rss())
        answers.append([update.id for update in told if isinstance(update, Token)])
    assert engine.close()
    assert engine.state is State.DOWN
    assert answers == answers[:1] * cycles
    assert resident[-1] < resident[1] + 4 * MIB
    assert engine.numbers()["loads"] == cycles
