"""Call the compiled library: arrays are handed over as they lie in memory, results are new.

HLWQ_NATIVE=0 does without it. HLWQ_NATIVE_MODE=integer multiplies codes as 16-bit integers, for all
rows alike: results differ from the exact ones by 5e-4 of their length at most, but where sums of a
row cancel. HLWQ_THREADS says how many threads a product has, by default as many as this process may
use.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ....disk.cache import CACHE_VARIABLE
from ....errors import DeviceError, ShapeError
from ... import device
from ...matrix import CodedMatrix
from ...packing import BLOCK
from . import build
from .coding import Coding

SWITCH, MODE, THREADS = "HLWQ_NATIVE", "HLWQ_NATIVE_MODE", "HLWQ_THREADS"
EXACT, INTEGER = "exact", "integer"
MOST_THREADS = 256
FORMATS = {mx.bfloat16: 16, mx.float16: 17, mx.float32: 32}

Floats = NDArray[np.float32]

logger = logging.getLogger("hlwq_mlx")


class _Weight(ctypes.Structure):
    """`Weight` of products.h."""

    _fields_ = (
        ("format", ctypes.c_int32),
        ("is_integer", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("norms", ctypes.c_void_p),
        ("centroids", ctypes.c_void_p),
    )


class _Residual(ctypes.Structure):
    _fields_ = (
        ("columns", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("weight", ctypes.c_void_p),
        ("next", ctypes.c_void_p),
    )


class _Rest(ctypes.Structure):
    _fields_ = (
        *((name, _Residual) for name in ("attended", "fed", "added")),
        *((name, ctypes.c_void_p) for name in ("gate_up", "up", "down", "gate", "projection")),
    )


class _Heads(ctypes.Structure):
    _fields_ = (
        ("heads", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("weight", ctypes.c_void_p),
        ("waves", ctypes.c_void_p),
    )


class _Seen(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("key_stride", ctypes.c_int64),
        ("value_stride", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("sequences", "heads", "kv_heads", "queries")),
        *((name, ctypes.c_int64) for name in ("columns", "window", "advance")),
        *((name, ctypes.c_void_p) for name in ("x", "seen", "y")),
    )


class Keys(NamedTuple):
    """What one sequence's queries attend to.

    Shapes: keys and values [kv_heads, count, D], mask bool [L, count] or None.
    """

    keys: Floats
    values: Floats
    mask: NDArray[np.bool_] | None


class Norm(NamedTuple):
    """How an update joins the residual stream, and by which weight the sum is normed after that.

    Shapes: weight and following [K].
    """

    weight: Floats
    epsilon: float
    scale: float = 1.0
    following: Floats | None = None

    def structure(self) -> _Residual:
        """Return `Residual` of products.h, which holds as long as this does."""
        pointers = self.weight.ctypes.data, _pointer(self.following)
        return _Residual(self.weight.size, self.epsilon, self.scale, *pointers)


class Weight:
    """A weight in MLX's memory, which stays where it is as long as this lives.

    Shapes: coded [rows, columns], or plain numbers in any format of FORMATS.
    """

    def __init__(self, form: int, shape: tuple[int, int], arrays: Sequence[mx.array]) -> None:
        # Views keep the memory. Bytes, because numpy knows no bfloat16.
        self._views = [_bytes_of(array) for array in arrays]
        pointers = [view.ctypes.data for view in self._views] + [None] * (3 - len(arrays))
        self.rows, self.columns = shape
        self.structure = _Weight(form, is_integer(), *shape, *pointers)
        self.reference = ctypes.byref(self.structure)

    def fits(self, columns: int) -> bool:
        """Return whether rows of so many columns, but for the padding, can be multiplied."""
        return columns <= self.columns < columns + BLOCK

    @classmethod
    def coded(cls, matrix: CodedMatrix) -> "Weight":
        """Take a coded matrix."""
        arrays = matrix.codes, matrix.norms.astype(mx.float16), matrix.centroids.astype(mx.float32)
        return cls(matrix.bits, matrix.shape, arrays)

    @classmethod
    def plain(cls, weight: mx.array) -> "Weight":
        """Take a matrix of plain numbers: [rows, columns]."""
        rows, columns = weight.shape
        return cls(FORMATS[weight.dtype], (rows, columns), [weight])


class Rest:
    """What a layer does behind its attention: norms, and weights gate|up, down, gate, projection.

    The last two, and the third norm, are of the layer's own input; without it there are none. Gate
    and up may be two weights.
    """

    def __init__(self, norms: Sequence[Norm], mlp: Sequence[Weight], own: Sequence[Weight]) -> None:
        """Take what fits together: gate|up, or gate and up, then down; gate and projection.

        Raises: ShapeError for what does not.
        """
        self.width, self.own_width = norms[0].weight.size, own[0].rows if own else 0
        *gate_and_up, down = mlp
        inner = sum(weight.rows for weight in gate_and_up) // 2
        K, d = self.width, self.own_width
        heights = (inner, inner) if len(gate_and_up) > 1 else (2 * inner,)
        wanted = [*((height, K) for height in heights), (K, inner), (d, K), (K, d)]
        weights = [*mlp, *own]
        for weight, (rows, columns) in zip(weights, wanted, strict=False):
            if weight.rows != rows or not weight.fits(columns):
                raise ShapeError(
                    f"[native.Rest] needed a weight {[rows, columns]}, got "
                    f"{[weight.rows, weight.columns]}. Check the order of the layers."
                )
        self._kept = norms, weights
        residuals = [norm.structure() for norm in norms] + [_Residual()] * (3 - len(norms))
        places = [gate_and_up[0], gate_and_up[1] if len(heights) > 1 else None, down, *own]
        pointers = [each and ctypes.addressof(each.structure) for each in places]
        self.structure = _Rest(*residuals, *pointers, *[None] * (5 - len(pointers)))
        self.has_following = norms[-1].following is not None

    def check(self, x: Floats, attended: Floats, own: Floats | None) -> None:
        """Refuse what `Library.finish` cannot take.

        Raises: ShapeError.
        """
        M = len(x)
        found = x.shape, attended.shape, (M, 0) if own is None else own.shape
        wanted = (M, self.width), (M, self.width), (M, self.own_width)
        if found != wanted:
            raise ShapeError(
                f"[native.Rest] needed x, attended and own {wanted}, got {found}. "
                "Check the order of the layers."
            )


def _bytes_of(array: mx.array) -> NDArray[np.uint8]:
    mx.eval(array)
    return np.ascontiguousarray(np.asarray(array.view(mx.uint8)))


def floats(x: mx.array) -> Floats:
    """Return x [..., K] as a matrix in memory, evaluated: [M, K]."""
    rows = np.asarray(x.astype(mx.float32)).reshape(-1, x.shape[-1])
    return np.ascontiguousarray(rows)


class Library:
    """The functions of library.cpp."""

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        self.coding = Coding(self._functions)
        self._functions.hlwq_instructions.restype = ctypes.c_char_p
        self._functions.hlwq_set_threads(thread_count())

    @property
    def instructions(self) -> str:
        """The kind of instructions that are in use."""
        return str(self._functions.hlwq_instructions().decode())

    @property
    def origin(self) -> str:
        """What a result's bits follow from, beside the numbers: the source, the way, the mode."""
        mode = INTEGER if is_integer() else EXACT
        return f"{build.library_path().stem} {self.instructions} {mode}"

    def use(self, instructions: str) -> bool:
        """Take other instructions, if this processor has them."""
        return bool(self._functions.hlwq_use(instructions.encode()))

    def set_threads(self, count: int) -> None:
        """Let so many threads share a product from now on."""
        self._functions.hlwq_set_threads(count)

    def multiply(self, weight: Weight, x: Floats, *, gated: bool = False) -> Floats:
        """Return x times the weight, or with its two halves gelu(first) * second.

        Shapes: x [M, up to columns] -> [M, rows], gated [M, rows / 2].
        Raises: ShapeError when x does not fit.
        """
        M, columns = x.shape
        if not weight.fits(columns):
            raise ShapeError(
                f"[native.multiply] needed x [..., {weight.columns}], got {columns} columns. "
                "Check the order of the layers."
            )
        y = np.empty((M, weight.rows // (2 if gated else 1)), np.float32)
        self._functions.hlwq_multiply(
            weight.reference, _at(x), _int(M), _int(columns), _at(y), gated
        )
        return y

    def multiply_experts(
        self, weight: Weight, x: Floats, experts: NDArray[np.uint32], count: int
    ) -> Floats:
        """Return each row of x times its experts among the `count` of a stack.

        Shapes: x [M, K], experts [M, k] -> [M, k, rows / count].
        """
        (M, columns), chosen = x.shape, experts.shape[1]
        height = weight.rows // count
        y = np.empty((M, chosen, height), np.float32)
        self._functions.hlwq_multiply_experts(
            weight.reference,
            *(_at(x), _int(M), _int(columns)),
            *(_at(experts), _int(chosen), _int(height), _at(y)),
        )
        return y

    def look_up(self, weight: Weight, ids: NDArray[np.int64]) -> Floats:
        """Return rows of a coded weight, rotated back: ids [P] -> [P, columns]."""
        y = np.empty((ids.size, weight.columns), np.float32)
        self._functions.hlwq_look_up(weight.reference, _at(ids), _int(ids.size), _at(y))
        return y

    def gelu_mul(self, gate: Floats, up: Floats) -> Floats:
        """Return gelu(gate) * up: both [M, K]."""
        y = np.empty_like(gate)
        self._functions.hlwq_gelu_mul(_at(gate), _at(up), _at(y), _int(gate.size))
        return y

    def cap_scores(self, x: Floats, cap: float) -> Floats:
        """Return cap * tanh(x / cap): [M, K]."""
        y = np.empty_like(x)
        self._functions.hlwq_cap_scores(_at(x), ctypes.c_float(cap), _at(y), _int(x.size))
        return y

    def residual_norm(self, norm: Norm, x: Floats, update: Floats) -> tuple[Floats, Floats]:
        """Return h = (x + norm(update)) * scale, and h normed with the following weight, if any.

        Shapes: x, update [M, K] -> twice [M, K].
        """
        h = np.empty_like(x)
        normed = None if norm.following is None else np.empty_like(x)
        self._functions.hlwq_residual_norm(
            ctypes.byref(norm.structure()), _at(x), _at(update), _at(h), _at(normed), _int(len(x))
        )
        return h, h if normed is None else normed

    def finish(
        self, rest: Rest, x: Floats, attended: Floats, own: Floats | None
    ) -> tuple[Floats, Floats]:
        """Return a layer's output, and that normed with the weight that follows, if any.

        Shapes: x, attended [M, K], the layer's own input [M, d] -> twice [M, K].
        Raises: ShapeError.
        """
        rest.check(x, attended, own)
        h = np.empty_like(x)
        normed = np.empty_like(x) if rest.has_following else None
        self._functions.hlwq_rest(
            ctypes.byref(rest.structure),
            *(_at(x), _at(attended), _at(own), _at(h), _at(normed), _int(len(x))),
        )
        return h, h if normed is None else normed

    def heads(
        self,
        x: Floats,
        weight: Floats | None,
        epsilon: float,
        waves: Floats | None,
        offsets: NDArray[np.int64],
        columns: int,
    ) -> Floats:
        """Norm each head and rotate it by its position's angles.

        Shapes: x [B, L, heads * D], weight [D], waves [D/2], offsets [B] -> [B, heads, L, D].
        """
        B, L, width = x.shape
        y = np.empty((B, width // columns, L, columns), np.float32)
        of = _Heads(width // columns, columns, epsilon, _pointer(weight), _pointer(waves))
        self._functions.hlwq_heads(
            ctypes.byref(of), _at(x), _int(width), _at(offsets), _int(B), _int(L), _at(y)
        )
        return y

    def attend(
        self, x: Floats, seen: Sequence[Keys], *, window: int = 0, is_causal: bool = True
    ) -> Floats:
        """Mix values by a softmax of unscaled scores, for each sequence's own keys.

        The last key is the last query's own, or every query sees all. A window counts its own key.
        Shapes: x [B, heads, L, D] -> the same.
        """
        B, heads, L, D = x.shape
        of_each = (_Seen * B)(
            *(
                _Seen(
                    *(each.keys.ctypes.data, each.values.ctypes.data, each.keys.shape[1]),
                    *(each.keys.strides[0] // 4, each.values.strides[0] // 4, _pointer(each.mask)),
                )
                for each in seen
            )
        )
        y = np.empty_like(x)
        pointers = x.ctypes.data, ctypes.addressof(of_each), y.ctypes.data
        kv_heads = seen[0].keys.shape[0]
        of = _Attention(B, heads, kv_heads, L, D, window, int(is_causal), *pointers)
        self._functions.hlwq_attend(ctypes.byref(of))
        return y


_int = ctypes.c_int64


def _pointer(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def _at(array: NDArray[Any] | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(_pointer(array))


def _given(variable: str, default: str) -> str:
    return os.environ.get(variable) or default


def is_integer() -> bool:
    """Return whether codes are multiplied in the integer mode.

    Raises: DeviceError for a mode that does not exist.
    """
    mode = _given(MODE, EXACT)
    if mode not in (EXACT, INTEGER):
        raise DeviceError(
            f"[{MODE}] needed {EXACT} or {INTEGER}, got {mode}. Unset it for {EXACT}."
        )
    return mode == INTEGER


def thread_count() -> int:
    """Return how many threads a product has.

    Raises: DeviceError for what is no number of threads.
    """
    given = _given(THREADS, "")
    if given:
        if not (given.isascii() and given.isdigit() and 0 < int(given) <= MOST_THREADS):
            raise DeviceError(
                f"[{THREADS}] needed a number from 1 to {MOST_THREADS}, got {given}. Unset it for "
                "as many threads as this process may use."
            )
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def library() -> Library | None:
    """Return the library, or None where it is turned off or not built yet.

    The first answer does not wait for a compiler: it runs beside, for the processes that follow.
    Raises: DeviceError for a variable that says nothing known.
    """
    switch = _given(SWITCH, "1")
    if switch not in ("0", "1"):
        raise DeviceError(f"[{SWITCH}] needed 0 or 1, got {switch}. Unset it for 1.")
    is_integer()  # they refuse what says nothing known, whether or not there is a library
    thread_count()
    if switch == "0":
        return None
    with suppress(DeviceError):  # it may be a wheel of another system
        if build.is_whole(build.shipped_path()):
            return _load(build.shipped_path())
    try:
        if build.is_whole(build.library_path()):
            return _load(build.library_path())
        build.require_buildable()
    except DeviceError as problem:
        logger.warning("products run by stock MLX, many times slower: %s", problem)
        return None
    logger.debug("compiling faster products for the next start: %s", build.library_path())
    _beside.append(build.build_beside())
    return None


_beside: list[Any] = []  # kept, for Python warns of a process that it forgot


def native_library() -> Library | None:
    """Return the library where arrays are computed by a CPU."""
    return library() if device.is_cpu() and not device.has_metal() else None


def _load(path: Path) -> Library:
    try:
        return Library(path)
    except OSError as exc:
        raise DeviceError(
            f"[native] needed a library that loads, got: {exc}. Delete it to compile it again, or "
            f"name another folder by {CACHE_VARIABLE}."
        ) from exc


def require_library() -> Library:
    """Return the library, compiled now if it is not there.

    Raises: DeviceError when it cannot be compiled or loaded.
    """
    build.build()
    library.cache_clear()
    found = library()
    if found is None:
        raise DeviceError(f"[native] needed {build.library_path()}, got none that loads.")
    return found
