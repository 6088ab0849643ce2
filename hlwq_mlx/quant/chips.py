"""What is chosen by the chip: the dtype of activations, the tiles of qmv, when qmm is worth it.

`chips.json` holds a line for each chip. `found` says where it is from: "counts" is the M1's
instructions (scripts/kernels/agx/chip_table.py), "measured" a run of scripts/first_mac_run, which
writes the same file with what it found: it may take this one's place unchanged.

M rows of x, N rows and K columns of a matrix.
"""

import json
import re
from collections.abc import Callable, Container
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..errors import ConfigError
from .packing import UNIT

PATH = Path(__file__).with_name("chips.json")
WIDTHS = range(1, 9)
MOST_TOKENS = 5  # rows of x that a tile multiplies at once; more are split
DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16}
LEAST_LANES = 4  # these divide the units of every row
FOUND = ("counts", "measured")


class Tile(NamedTuple):
    """The tile of qmv: rows a lane, lanes a row, simdgroups a threadgroup, rows of x at once."""

    rows: int
    lanes: int
    simdgroups: int
    tokens: int


class Chip(NamedTuple):
    """A chip's line of the table; the names are the file's.

    activations: their dtype. qmm_rows: up to so many rows of x, qmm is faster than decoding the
    weight for `mx.matmul`: a weight decoded costs the same for one row as for a thousand, and qmm
    decodes it for every 32 rows. rows: of a lane, by tokens at once and then by bits; few_outputs:
    matrices of fewer rows take 2, or cores would be idle. lanes: the first that divide a row.
    tokens_a_pass: how many the chip multiplies while memory delivers the weights, by bits.
    """

    generation: int
    found: str
    activations: mx.Dtype
    qmm_rows: int
    few_outputs: int
    simdgroups: int
    lanes: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    tokens_a_pass: tuple[int, ...]

    def tile(self, bits: int, M: int, N: int, K: int) -> Tile:
        """Return the tile for M rows; K alone chooses the lanes, which order the sums."""
        lanes = next(lanes for lanes in self.lanes if K // UNIT % lanes == 0)
        tokens = M if M <= MOST_TOKENS else -(-M // 2)
        rows = 2 if self.few_outputs > N else self.rows[tokens - 1][bits - 1]
        return Tile(rows, lanes, self.simdgroups, tokens)


@cache
def chips() -> dict[str, Chip]:
    """Return the package's table, by the chips' names: "M1 Pro"."""
    return read(PATH)


def chip_named(device_name: str, architecture: str) -> Chip:
    """Return the chip of these names of `mx.device_info()`.

    Without a line of its own it is taken for the first of its generation, or of the newest one.
    """
    known = chips()
    if chip := known.get(device_name.removeprefix("Apple ")):
        return chip
    generation = re.fullmatch(r"applegpu_g(\d+).*", architecture)
    first = {chip.generation: chip for chip in reversed(known.values())}
    return first.get(int(generation[1]) if generation else 0, first[max(first)])


def read(path: Path) -> dict[str, Chip]:
    """Read a table of chips.

    Raises: ConfigError that names the file, the chip and the key whose value no kernel can take.
    """
    try:
        table = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"[{path}] needed a table of chips in JSON, got {exc}. Restore the package's own."
        ) from exc
    if not isinstance(table, dict) or not table:
        raise _refused(path, "chips by name", table)
    return {name: _chip(f"{path}: {name}", line) for name, line in table.items()}


def _chip(where: str, line: Any) -> Chip:
    if not isinstance(line, dict) or line.keys() != set(Chip._fields):
        raise _refused(where, f"the keys {', '.join(Chip._fields)}", line)
    for key, (is_fit, needed) in CHECKS.items():
        if not is_fit(line[key]):
            raise _refused(f"{where}.{key}", needed, line[key])
    plain = {key: _tuples(value) for key, value in line.items()}
    return Chip(**{**plain, "activations": DTYPES[line["activations"]]})


def _refused(where: object, needed: str, got: Any) -> ConfigError:
    return ConfigError(f"[{where}] needed {needed}, got {got!r:.80}. Restore the package's table.")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


Check = Callable[[Any], bool]


def _one_of(allowed: Container[str]) -> Check:
    return lambda value: isinstance(value, str) and value in allowed


def _int_of(allowed: Container[int]) -> Check:
    return lambda value: type(value) is int and value in allowed


def _list_of(check: Check, length: int) -> Check:
    return lambda value: isinstance(value, list) and len(value) == length and all(map(check, value))


def _is_lanes(value: Any) -> bool:
    """The last lanes divide the units of any row, so that one number always does."""
    known = _int_of((32, 16, 8, LEAST_LANES))
    return isinstance(value, list) and value[-1:] == [LEAST_LANES] and all(map(known, value))


CHECKS: dict[str, tuple[Check, str]] = {
    "generation": (_int_of(range(13, 100)), "the number in the architecture's name"),
    "found": (_one_of(FOUND), " or ".join(FOUND)),
    "activations": (_one_of(DTYPES), " or ".join(DTYPES)),
    "qmm_rows": (_int_of(range(1, 1 << 20)), "a number of rows"),
    "few_outputs": (_int_of(range(1 << 20)), "a number of rows"),
    "simdgroups": (_int_of((1, 2, 4, 8)), "1, 2, 4 or 8"),
    "lanes": (_is_lanes, f"some of 32, 16, 8 and at last {LEAST_LANES}"),
    "rows": (
        _list_of(_list_of(_int_of((2, 4, 8)), len(WIDTHS)), MOST_TOKENS),
        f"2, 4 or 8 for 1 to {MOST_TOKENS} tokens at 1 to {len(WIDTHS)} bits",
    ),
    "tokens_a_pass": (
        _list_of(_int_of(range(1, MOST_TOKENS + 1)), len(WIDTHS)),
        f"1 to {MOST_TOKENS} for each of {len(WIDTHS)} widths",
    ),
}
