"""The steps of the first run on a Mac: each yields rows of a table as it finds them.

What they time is in kernel_times and model_times; how much, in sizes. Writing a report, and going
on when a step fails or has taken its share of the time, is mac_report's.
"""

from collections.abc import Callable, Iterator
from typing import Any

from hlwq_mlx import library
from scripts.mac import kernel_times, model_times
from scripts.mac.self_tests import self_tests
from scripts.mac.sizes import Sizes

Row = dict[str, Any]
Steps = dict[str, Callable[[], Iterator[Row]]]

SELF_TESTS = "Every variant compiles and passes its self-test"
ROWS, TILES, MANY = (
    "qmv, several rows",
    "qmv, other tiles",
    "Many rows: qmm, or decode and mx.matmul",
)
MODEL = "The model"
# What steps may take of the time that there is for all but the model, beside 1 for the others.
SHARES = {SELF_TESTS: 5, ROWS: 2, TILES: 2, MANY: 2}


def steps(sizes: Sizes, model: str | None, variant: str | None) -> Steps:
    """Return the steps in their order; the last one only if there is a model."""
    found: Steps = {
        "Memory's bandwidth": lambda: kernel_times.time_bandwidth(sizes),
        SELF_TESTS: lambda: self_tests(sizes),
        "qmv, one row": lambda: kernel_times.time_qmv(sizes),
        "The demo model": lambda: model_times.answers(
            str(library.DEMO), library.DEMO_VARIANT, sizes
        ),
        ROWS: lambda: kernel_times.time_rows(sizes),
        TILES: lambda: kernel_times.time_tiles(sizes),
        MANY: lambda: kernel_times.time_many(sizes),
        "Variants of the kernels": lambda: kernel_times.time_variants(sizes),
        "The other kernels": lambda: kernel_times.time_others(sizes),
        "Prefill, part by part": lambda: model_times.time_prefill(sizes),
        "The host's work for a token": lambda: model_times.time_host(sizes),
    }
    if model is not None:
        found[MODEL] = lambda: model_times.answers(model, variant, sizes)
    return found


def limits(names: list[str], seconds: float) -> dict[str, float]:
    """Return how long each step may take, so that all end in time; a model takes what it takes."""
    shares = {name: SHARES.get(name, 1) for name in names if name != MODEL}
    return {name: seconds * share / sum(shares.values()) for name, share in shares.items()}
