"""Ways to code a matrix, ours and others', each with the bytes it takes: for `quality.py`.

MLX's own formats come from MLX, GGUF's from ggml's library in llama-cpp-python, without an
importance matrix. GGUF's superblocks of 256 weights are laid over rows end to end where a row is
shorter, which llama.cpp would refuse; the mixtures of types are its own.

N rows, K columns.
"""

import ctypes
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from hlwq_mlx.quant import codec, means
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.write.quantize import Encoder

Weight = NDArray[np.float32]
WIDTHS = (1, 2, 3, 4, 5, 6, 8)
PUBLISHED, BEST = "as published", "converged, refit"
ENCODERS = {
    PUBLISHED: Encoder("clip4_100"),
    "refit": Encoder("clip4_100", codec.BEST_NORM),
    "converged": Encoder("converged"),
    BEST: Encoder("converged", codec.BEST_NORM),
}
AFFINE = (2, 3, 4, 5, 6, 8)
GGUF_TYPES = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q5_0", "Q8_0"),
    *("IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL"),
)
MIXTURES = ("Q3_K_M", "Q4_K_M", "Q5_K_M")
SUPERBLOCK = 256


class Place(NamedTuple):
    """Where a matrix stands in a model: q, k, v, o, gate, up or down of a layer."""

    kind: str
    layer: int
    layers: int


class Coded(NamedTuple):
    """What a matrix decodes to, and the bytes that it takes: codes, scales and padding."""

    weight: Weight
    nbytes: int


class Format(NamedTuple):
    """A way to code matrices; `curve` names the encoder, `bits` the width, of our own."""

    name: str
    code: Callable[[Place, Weight], Coded]
    curve: str | None = None
    bits: int = 0


def formats() -> Iterator[Format]:
    """List all ways there are on this machine."""
    for bits in WIDTHS:
        for encoder in ENCODERS:
            yield Format(f"PQ{bits}, {encoder}", partial(_ours, bits, encoder), encoder, bits)
    for bits in AFFINE:
        settings = {"bits": bits, "group_size": 64}
        yield Format(f"MLX affine {bits}, groups of 64", partial(_mlx, settings))
    for mode in ("mxfp4", "nvfp4"):
        yield Format(f"MLX {mode}", partial(_mlx, {"mode": mode}))
    if has_ggml():
        for name in GGUF_TYPES:
            yield Format(name, partial(_gguf, name))
        for name in MIXTURES:
            yield Format(name, partial(_mixture, name))


def with_means(bits: int) -> Iterator[Format]:
    """List our ways to code what is left of a matrix without the means of its blocks."""
    for encoder in ("converged", BEST):
        code = partial(_ours, bits, encoder, has_means=True)
        yield Format(f"PQ{bits}, {encoder}, means beside", code)


def has_ggml() -> bool:
    """Return whether ggml's library and the reader of its formats are installed."""
    return find_spec("llama_cpp") is not None and find_spec("gguf") is not None


def _ours(bits: int, encoder: str, place: Place, weight: Weight, has_means: bool = False) -> Coded:
    made = ENCODERS[encoder]
    coded, columns = made.coder(bits, has_means)(weight), weight.shape[1]
    decoded = codec.decode(coded.codes, coded.norms, centroids(made.table, bits))[:, :columns]
    nbytes = coded.codes.size * bits // 8 + coded.norms.nbytes
    if coded.means is not None:
        return Coded(decoded + means.spread(coded.means, columns), nbytes + coded.means.nbytes)
    return Coded(decoded, nbytes)


def _mlx(settings: dict[str, Any], place: Place, weight: Weight) -> Coded:
    # Scales get the dtype of the weight: float16 is finer than bfloat16 here.
    parts = mx.quantize(mx.array(weight).astype(mx.float16), **settings)
    decoded = np.array(mx.dequantize(*parts, **settings).astype(mx.float32))
    return Coded(decoded, sum(part.nbytes for part in parts))


def _gguf(name: str, place: Place, weight: Weight) -> Coded:
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    together = SUPERBLOCK // math.gcd(SUPERBLOCK, weight.shape[1])
    rows = np.ascontiguousarray(weight).reshape(weight.shape[0] // together, -1)
    packed = np.empty((len(rows), rows.shape[1] // block * block_bytes), dtype=np.uint8)
    written = _quantize_chunk()(
        *(int(kind), rows.ctypes.data, packed.ctypes.data, 0, *rows.shape, None)
    )
    assert written == packed.nbytes, f"{name}: {written} bytes for {packed.nbytes}"
    return Coded(gguf.quants.dequantize(packed, kind).reshape(weight.shape), packed.nbytes)


def _mixture(name: str, place: Place, weight: Weight) -> Coded:
    return _gguf(mixed_type(name, place), place, weight)


def mixed_type(name: str, place: Place) -> str:
    """Return the type that llama.cpp gives a matrix of a dense model in one of MIXTURES."""
    kind, layer, layers = place
    eighth = layers // 8
    has_more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    base = name.removesuffix("_M")
    if name == "Q3_K_M":
        more = {"v": layer < 2, "down": layer < layers // 16}
        if kind in more:
            return "Q5_K" if more[kind] else "Q4_K"
        return "Q4_K" if kind == "o" else base
    return "Q6_K" if kind in ("v", "down") and has_more else base


@cache
def _quantize_chunk() -> Any:
    """Return ggml's `ggml_quantize_chunk`."""
    spec = find_spec("llama_cpp")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    (library,) = (each for each in folder.glob("*ggml-base.*") if each.suffix in (".so", ".dylib"))
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    sizes = (ctypes.c_int64,) * 3  # where to begin, rows, columns
    function.argtypes = (ctypes.c_int, *(ctypes.c_void_p,) * 2, *sizes, ctypes.c_void_p)
    function.restype = ctypes.c_size_t
    return function
