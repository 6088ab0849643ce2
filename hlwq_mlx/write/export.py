"""Write a model for programs that know nothing of HLWQ, a slice of rows at a time.

`export_affine` writes what stock mlx-lm's `gemma4` and programs built on it load: the text model
under their names, in MLX's own affine quantization. `export_bf16` writes the source's own layout,
decoded, which is transformers'. Both decode codes exactly and then round: affine is a second
quantization, bfloat16 rounds once.

Source: mlx-lm 0.32.2, models/gemma4.py and utils.load_model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..disk.atomic import building, require_room
from ..disk.sizes import format_bytes
from ..disk.tensorfile import TensorSpec
from ..folder.names import ROW_TABLE, TEXT, TIED_HEAD, text_shapes
from ..folder.side_files import copy_side_files
from ..gemma4.config import FLAT_IGNORED, Gemma4Config
from ..gemma4.experts import published
from ..gemma4.model import Model
from ..source.coded import CodedTensor
from ..source.repository import PlainTensor, Source
from ..source.rules import class_of
from .check import fit
from .output import (
    Output,
    Piece,
    bytes_bar,
    float_rows,
    float_slices,
    one_by_one,
    row_slices,
    total_bytes,
    write_json,
    write_shards,
)
from .quantize import bfloat16_bits, bfloat16_pieces

AFFINE_BITS = (4, 6, 8)
_GROUPS = (64, 32)  # columns that share a scale and a bias, the first that divides a row
_STOCK_TEXT = "language_model.model."
# 4-bit rows are known to give garbage, and small matrices are hardly worth it.
_LEAST_WIDE_BITS, _WIDE = 8, ("ple", "router")


@dataclass
class Exported:
    """What an export wrote."""

    what: str
    tensors: int
    written_bytes: int
    left_out: int
    warnings: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Return it as lines for a person."""
        yield f"{self.what}: {self.tensors} tensors, {format_bytes(self.written_bytes)}"
        if self.left_out:
            yield f"left out: {self.left_out} tensors that nothing reads"
        yield from (f"warning: {warning}" for warning in self.warnings)


def export_affine(source: Source, output: Path, bits: int) -> Exported:
    """Write the text model in MLX's affine quantization into the new folder `output`.

    Per-layer embeddings and their matrices, and routers, have 8 bits at least; a matrix whose rows
    no group divides stays bfloat16.
    Raises: SourceError when `output` exists; CheckpointError when the source does not fit its
    config; DeviceError when the disk is too small.
    """
    config, tensors, _ = fit(source)
    shapes = text_shapes(Model(Gemma4Config.from_dict(config)))
    outputs: list[Output] = []
    quantization: dict[str, Any] = {"group_size": _GROUPS[0], "bits": bits, "mode": "affine"}
    for name, shape in sorted(shapes.items()):
        group = next((size for size in _GROUPS if shape[-1] % size == 0), None)
        if len(shape) < 2 or group is None:
            stock_name = published(_stock_name(name))
            outputs.append(_bfloat16(source, stock_name, tensors[name], shape))
            continue
        is_wide = name == ROW_TABLE or class_of(name) in _WIDE
        own_bits = max(bits, _LEAST_WIDE_BITS) if is_wide else bits
        for part in _parts(name, shape):
            outputs.append(_affine(source, part, tensors[name], (group, own_bits)))
            if (group, own_bits) != (_GROUPS[0], bits):
                module = part.name.removesuffix(".weight")
                quantization[module] = {"group_size": group, "bits": own_bits}
    left_out = len(tensors) - len(shapes)
    settings = _stock_config(config, Gemma4Config.from_dict(config)) | {
        "quantization": quantization,
        "quantization_config": quantization,
    }
    return _write(source, output, outputs, settings, f"affine, {bits} bits", left_out)


def export_bf16(source: Source, output: Path) -> Exported:
    """Write every tensor in bfloat16, under the source's own names, into the new folder `output`.

    Padding is cut where the config tells the shape, which is in the text model; no tensor of the
    towers of a published E4B has any.
    Raises: as `export_affine`.
    """
    config, tensors, _ = fit(source)
    shapes = text_shapes(Model(Gemma4Config.from_dict(config)))
    outputs = [
        _bfloat16(source, published(tensor.name), tensor, shapes.get(name, tensor.shape))
        for name, tensor in tensors.items()
        if name != TIED_HEAD
    ]
    settings = {key: value for key, value in source.config.items() if key not in FLAT_IGNORED}
    left_out = len(tensors) - len(outputs)
    return _write(source, output, outputs, settings, "bfloat16", left_out)


def _bfloat16(
    source: Source, name: str, tensor: CodedTensor | PlainTensor, shape: tuple[int, ...]
) -> Output:
    """Plan a tensor in bfloat16, decoded if it is coded."""

    def pieces() -> Iterator[Piece]:
        if isinstance(tensor, PlainTensor):
            for at, piece in bfloat16_pieces(tensor):
                yield name, at, piece
            return
        columns = shape[-1]
        for start, rows in float_slices(tensor, source.readings, columns):
            yield name, start * columns * 2, bfloat16_bits(rows)

    return one_by_one({name: TensorSpec("BF16", shape)}, pieces)


class _Part(NamedTuple):
    """A tensor of mlx-lm's: its name and shape, and the rows of ours that it consists of."""

    name: str
    shape: tuple[int, ...]
    runs: list[tuple[int, int]]


def _stock_name(name: str) -> str:
    return _STOCK_TEXT + name.removeprefix(TEXT)


def _parts(name: str, shape: tuple[int, ...]) -> Iterator[_Part]:
    """Yield what a matrix of ours is in mlx-lm: there a stack of gate|up is two."""
    stock_name = _stock_name(name)
    if len(shape) == 2:
        yield _Part(stock_name, shape, [(0, shape[0])])
        return
    E, rows, columns = shape
    stack = stock_name.replace(".experts.", ".experts.switch_glu.")
    if ".down_proj." in name:
        yield _Part(stack, shape, [(0, E * rows)])
        return
    half = rows // 2
    for part, first in (("gate_proj", 0), ("up_proj", half)):
        starts = range(first, E * rows, rows)
        runs = [(start, start + half) for start in starts]
        yield _Part(stack.replace("gate_up_proj", part), (E, half, columns), runs)


def _affine(
    source: Source, part: _Part, tensor: CodedTensor | PlainTensor, grid: tuple[int, int]
) -> Output:
    """Plan a matrix as MLX quantizes it, scales and biases in bfloat16; grid is (group, bits)."""
    group, bits = grid
    name, module = part.name, part.name.removesuffix(".weight")
    *leading, K = part.shape
    word_columns, group_columns = K * bits // 32, K // group

    def pieces() -> Iterator[Piece]:
        done = 0
        for start, stop in part.runs:
            for first, last in row_slices(stop - start, 16 * K):
                rows = float_rows(tensor, source.readings, K, start + first, start + last)
                words, scales, biases = mx.quantize(mx.array(rows), group_size=group, bits=bits)
                yield name, done * word_columns * 4, np.array(words)
                for kind, values in (("scales", scales), ("biases", biases)):
                    yield f"{module}.{kind}", done * group_columns * 2, bfloat16_bits(values)
                done += last - first

    grid_spec = TensorSpec("BF16", (*leading, group_columns))
    specs = {
        name: TensorSpec("U32", (*leading, word_columns)),
        f"{module}.scales": grid_spec,
        f"{module}.biases": grid_spec,
    }
    return one_by_one(specs, pieces)


def _stock_config(config: Mapping[str, Any], args: Gemma4Config) -> dict[str, Any]:
    """Return a config in stock keys, for text alone, with every key whose default differs there."""
    text = dict(config["text_config"])
    text.pop("per_layer_config", None)
    text |= {
        "layer_types": list(args.text_config.layer_types),
        "global_head_dim": args.text_config.global_head_dim,
        "num_global_key_value_heads": args.text_config.num_global_key_value_heads,
    }
    kept = ("architectures", "dtype", "eos_token_id", "transformers_version")
    return {key: config[key] for key in kept if key in config} | {
        "model_type": "gemma4",
        "vocab_size": args.text_config.vocab_size,
        "tie_word_embeddings": True,
        "text_config": text,
    }


def _write(
    source: Source,
    output: Path,
    outputs: list[Output],
    config: dict[str, Any],
    what: str,
    left_out: int,
) -> Exported:
    with building(output) as folder, bytes_bar(outputs, "export") as progress:
        warnings = copy_side_files(source, folder).warnings
        require_room(folder, total_bytes(outputs))
        write_shards(folder, outputs, progress)
        write_json(folder / "config.json", config)
        written = sum(path.stat().st_size for path in folder.iterdir())
    return Exported(what, len(outputs), written, left_out, warnings)
