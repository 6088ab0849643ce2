"""Time what the host does for a decoded token, where there is no GPU.

A model with E4B's 42 layers and small widths, which do not change what the host does, decodes by
the engine's steps. On Metal's path its kernels and `mx.fast` are stand-ins (see launches.py). Times
are processor time of the thread that decodes, which other jobs change little, and of this machine;
the CPU takes each operation that it is handed, where Metal would encode it. Python calls are
frames; what MLX does in C++ is no frame.

    python scripts/benchmarks/host_time.py [--building]
"""

import argparse
import io
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import mlx.core as mx

from hlwq_mlx.gemma4.model import Model
from hlwq_mlx.quant import fuse
from scripts.benchmarks import launches
from scripts.benchmarks.m1 import full
from scripts.benchmarks.shapes import e4b_config

TOKENS = 15
PROMPT = [list(range(1, 2 * launches.WINDOW))]
Where = Callable[[], AbstractContextManager[Any]]


class Building(NamedTuple):
    """What a token's graph takes: frames of Python, primitives, milliseconds."""

    calls: int
    primitives: int
    ms: float


class Turn(NamedTuple):
    """Milliseconds of a step: in all, and from known tokens to its first and its last work."""

    whole: float
    first: float
    last: float


def median(turns: list[Any]) -> list[float]:
    """Return the medians of each column."""
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def build(model: Any) -> Building:
    """Build the graphs of some tokens, each evaluated once it was timed."""
    cache = model.make_cache()
    mx.eval(model(mx.array(PROMPT), cache=cache))
    graph = partial(_graph, model, cache)
    calls, outputs = _count_calls(graph)
    dot = io.StringIO()
    mx.export_to_dot(dot, *outputs)
    primitives = len(re.findall(r'label ?= ?"([^"]+)", shape=rectangle', dot.getvalue()))
    times = []
    for _ in range(TOKENS):
        mx.eval(outputs)
        begun = time.thread_time()
        outputs = graph()
        times.append(1e3 * (time.thread_time() - begun))
    return Building(calls, primitives, statistics.median(times))


def _graph(model: Any, cache: list[Any]) -> list[mx.array]:
    """Build the graph of a token and of what the caches then hold."""
    token = mx.argmax(model(mx.array([[1]]), cache=cache)[:, -1], axis=-1)
    return [token, *(part for entry in cache for part in entry.state if _is_array(part))]


def _count_calls(graph: Callable[[], list[mx.array]]) -> tuple[int, list[mx.array]]:
    """Count the frames of Python, but for those of stand-ins."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename != launches.__file__

    sys.setprofile(count)
    try:
        outputs = graph()
    finally:
        sys.setprofile(None)
    return calls, outputs


def _is_array(part: Any) -> bool:
    return isinstance(part, mx.array)


def turns(model: Model, make_step: Callable[[Model], Any]) -> Turn:
    """Decode by a step, and note when the tokens were known and when MLX was given work."""
    from hlwq_mlx.engine import overlap, step
    from hlwq_mlx.engine.answer import make_chooser
    from hlwq_mlx.engine.decoding import Decoding

    caches = model.make_cache()
    row = step.Row(caches, -1, make_chooser(model, Decoding(), PROMPT[0]))
    step.start_row(row, model.prefill(mx.array(PROMPT), caches)[:, -1])
    decode = make_step(model)
    decode([row])
    found = []
    for _ in range(TOKENS):
        with _noting(mx, "async_eval") as given, _noting(step, "wait", overlap) as known:
            begun = time.thread_time()
            decode([row])
            ended = time.thread_time()
        # The plain step is called with tokens that are known.
        known_at = begun if decode.__class__ is step.PlainStep else known[-1]
        given_at = [at for at in given if at > known_at]
        found.append([1e3 * (at - known_at) for at in (given_at[0], given_at[-1])])
        found[-1].insert(0, 1e3 * (ended - begun))
    return Turn(*median(found))


@contextmanager
def _noting(owner: Any, name: str, *others: Any) -> Iterator[list[float]]:
    """Within the block, note when calls of a function end."""
    original, ends = getattr(owner, name), []

    def noted(*arguments: Any) -> None:
        original(*arguments)
        ends.append(time.thread_time())

    for each in (owner, *others):
        setattr(each, name, noted)
    try:
        yield ends
    finally:
        for each in (owner, *others):
            setattr(each, name, original)


def ours() -> Model:
    """Make our model, coded as `convert` does by default."""
    return launches.coded_model(e4b_config(**launches.SMALL), full(), launches.DTYPE)


def paths() -> Iterator[tuple[str, Model, Where]]:
    """Yield our model on Metal's path and on the CPU's own."""
    model = ours()
    with launches.standing_in():
        for block in fuse.blocks(model):
            fuse.fuse(block)
    yield "Metal's path", model, launches.standing_in
    yield "the CPU's own", ours(), nullcontext


def print_building() -> None:
    """Print what building takes, ours and stock mlx-lm's."""
    print("| graph of a token | Python calls | primitives | ms |\n|---|---|---|---|")
    stock = launches.stock_model(e4b_config(**launches.SMALL), 4, launches.DTYPE)
    with launches.standing_in():
        print(_line("mlx-lm, Metal's path", build(stock)))
    print(_line("mlx-lm, the CPU's own", build(stock)))
    for name, model, where in paths():
        with where():
            print(_line(f"ours, {name}", build(model)))


def print_turns() -> None:
    """Print what the engine's steps take on the host."""
    from hlwq_mlx.engine.overlap import OverlappedStep
    from hlwq_mlx.engine.step import PlainStep

    print("\n| step | in all, ms | tokens known to first work | to last work |\n|---|---|---|---|")
    for name, model, where in paths():
        for make in (PlainStep, OverlappedStep):
            with where():
                print(_line(f"{make.__name__}, {name}", turns(model, make)))


def _line(name: str, numbers: tuple[float, ...]) -> str:
    shown = [f"{n:,}" if isinstance(n, int) else f"{n:,.2f}" for n in numbers]
    return f"| {name} | {' | '.join(shown)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--building", action="store_true", help="the first table alone")
    options = parser.parse_args()
    print_building()
    if not options.building:
        print_turns()


if __name__ == "__main__":
    main()
