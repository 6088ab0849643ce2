"""Code a 16-bit Gemma 4 and write it in the published layout, a slice of rows at a time.

Which tensors are coded, and at how many bits, is a rule over names and shapes; the publisher's two
are here (spec: hlwq_format §3.4, §3.5). The reader that has to understand the result is `source`.

N rows, K columns padded to blocks.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import RequestError
from ..quant import codec
from ..quant.packing import BLOCK, pack
from ..quant.tables import centroids
from .atomic import building
from .source import PlainTensor, Source
from .tensorfile import TensorSpec, TensorWriter

Rule = Callable[[str, tuple[int, ...]], int | None]
"""From a tensor's name and shape to its bits, or None for a tensor that stays as it is."""

VARIANTS = ("PQ1", "PQ2", "PQ3", "PQ4", "PQ5", "PQ6", "PQ8", "PQ2-Mixed")
_LEFT_OUT = ("norm", "embed", "gate", "per_layer", "vision")
_SLICE_WEIGHTS = 1 << 21
_MLP = re.compile(r"\.language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight$")
_ATTENTION = re.compile(r"\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight$")


def variant_rule(variant: str) -> Rule:
    """Return the publisher's rule for a variant.

    Raises: RequestError for a variant that was never published.
    """
    by_name = {name.lower(): name for name in VARIANTS}
    name = by_name.get(variant.lower())
    if name is None:
        raise RequestError(
            f"[variant] needed one of {', '.join(VARIANTS)}, got {variant}. Choose one of these."
        )
    return _mixed_rule if name == "PQ2-Mixed" else _pure_rule(int(name[2:]))


def _pure_rule(bits: int) -> Rule:
    def rule(name: str, shape: tuple[int, ...]) -> int | None:
        is_coded = len(shape) == 2 and not any(part in name for part in _LEFT_OUT)
        return bits if is_coded else None

    return rule


def _mixed_rule(name: str, shape: tuple[int, ...]) -> int | None:
    if _MLP.search(name):
        return 2
    return 4 if _ATTENTION.search(name) else None


def write_published(source: Source, rule: Rule, table: str, output: Path) -> None:
    """Write `codes.safetensors` and `bf16.safetensors` into the new folder `output`.

    Raises: DeviceError when the disk cannot hold them; SourceError when `output` exists.
    """
    coded: dict[str, tuple[PlainTensor, int]] = {}
    plain: list[PlainTensor] = []
    for tensor in source.plain.values():
        bits = rule(tensor.name, tensor.shape)
        if bits is None:
            plain.append(tensor)
        else:
            coded[tensor.name] = tensor, bits
    weights = sum(tensor.spec.nbytes for tensor in source.plain.values())
    with building(output) as folder, tqdm(total=weights, unit="B", unit_scale=True) as progress:
        _write_codes(folder / "codes.safetensors", coded, table, progress)
        _write_plain(folder / "bf16.safetensors", plain, progress)


def _write_codes(
    path: Path, coded: dict[str, tuple[PlainTensor, int]], table: str, progress: "tqdm[Any]"
) -> None:
    specs: dict[str, TensorSpec] = {}
    for name, (tensor, bits) in coded.items():
        key = name.replace(".", "__")
        N, blocks = tensor.shape[0], -(-tensor.shape[1] // BLOCK)
        specs[f"{key}__packed"] = TensorSpec("U8", (N * blocks * BLOCK * bits // 8,))
        specs[f"{key}__norms"] = TensorSpec("F16", (N, blocks))
        specs[f"{key}__meta"] = TensorSpec("I64", (4,))
    with TensorWriter(path, specs) as writer:
        for name, (tensor, bits) in coded.items():
            key = name.replace(".", "__")
            N, blocks = specs[f"{key}__norms"].shape
            writer.write(f"{key}__meta", np.array([N, blocks, BLOCK, N * blocks * BLOCK]))
            for start, codes, norms in encode_slices(tensor, bits, table):
                writer.write(f"{key}__norms", norms, start * blocks * 2)
                packed = pack(codes, bits, "msb")
                writer.write(f"{key}__packed", packed, start * blocks * BLOCK * bits // 8)
                progress.update(tensor.spec.nbytes * len(codes) // N)


def encode_slices(
    tensor: PlainTensor, bits: int, table: str
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.float16]]]:
    """Code a matrix and yield (first row, codes, norms) of each slice."""
    step = max(1, _SLICE_WEIGHTS // tensor.shape[1])
    values = centroids(table, bits)
    for start in range(0, tensor.shape[0], step):
        codes, norms = codec.encode(tensor.float_rows(start, start + step), values)
        yield start, codes, norms


def _write_plain(path: Path, plain: list[PlainTensor], progress: "tqdm[Any]") -> None:
    specs = {tensor.name: TensorSpec("BF16", tensor.shape) for tensor in plain}
    with TensorWriter(path, specs) as writer:
        for tensor in plain:
            for at, piece in _bfloat16_pieces(tensor):
                progress.update(writer.write(tensor.name, piece, at))


def _bfloat16_pieces(tensor: PlainTensor) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Yield a tensor's bfloat16 bits as (byte offset, piece)."""
    flat = tensor.file.view(tensor.name).reshape(-1)
    for start in range(0, flat.size, _SLICE_WEIGHTS):
        piece = flat[start : start + _SLICE_WEIGHTS]
        if tensor.spec.dtype != "BF16":
            piece = np.array(mx.array(piece).astype(mx.bfloat16).view(mx.uint16))
        yield 2 * start, piece
