"""Write a synthetic Gemma 4 repository in the published layout, at full size or smaller.

    python scripts/benchmarks/make_fullsize.py --variant PQ5 --output DIR
    python scripts/benchmarks/make_fullsize.py --model 26B-A4B --bits experts=3,mlp=5 --output DIR

Names, shapes and widths are those of the published variant's tensors, 2,130 of E4B, the tokenizer
is the real one where the model has its vocabulary. Codes are those of random blocks, repeated in
random order; norms and uncoded weights are drawn at the sizes that trained ones have. What such a
model says means nothing, but every byte is where a real one has it. Files are written a piece at a
time, and one that is whole is not written again: a run that was stopped goes on with the next file.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlwq_mlx.disk.tensorfile import TensorSpec, TensorWriter
from hlwq_mlx.folder import published
from hlwq_mlx.gemma4 import experts
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.packing import BLOCK, pack
from hlwq_mlx.quant.tables import centroids
from hlwq_mlx.source import rules

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
import real_tokenizer

from scripts.benchmarks.shapes import LARGER, e4b_config, larger_config

TABLE = "clip4_100"
POOL_BLOCKS = 1 << 13
POOL_WEIGHTS = 1 << 20
PIECE_BLOCKS = 1 << 17
CLIP = 64.0  # beyond what passes a tower's linear layers
LAYERS = 42
E4B = "E4B"
MIXTURE = "PQ-mixture"  # the folder of a variant that nobody published
GENERATION = {
    "do_sample": True,
    **{"temperature": 1.0, "top_k": 64, "top_p": 0.95},
    "eos_token_id": [1, 106, 50],
}

Shape = tuple[int, ...]
Piece = tuple[int, NDArray[Any]]
Pieces = Callable[[], Iterator[Piece]]


def config(layers: int = LAYERS, vocabulary: int | None = None, model: str = E4B) -> dict[str, Any]:
    """Return a model's config, or that of one with an even number of fewer layers, or words."""
    keys = () if vocabulary is None else ("vocab_size", "vocab_size_per_layer_input")
    words = dict.fromkeys(keys, vocabulary)
    if model != E4B:
        count = min(layers, LARGER[model]["num_hidden_layers"])
        return larger_config(model, num_hidden_layers=count, **words)
    settings = e4b_config(**words)
    text = settings["text_config"]
    if layers < LAYERS:
        text["num_hidden_layers"] = layers
        text["layer_types"] = ["sliding_attention", "full_attention"] * (layers // 2)
        text["num_kv_shared_layers"] = layers // 4 * 2
        for tower in ("vision_config", "audio_config"):
            settings[tower]["num_hidden_layers"] = min(layers, settings[tower]["num_hidden_layers"])
    return settings


class Draw:
    """Draws the bytes of tensors, the same ones for the same name."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._blocks = rng.standard_normal((POOL_BLOCKS, BLOCK), dtype=np.float32)
        self._normal = rng.standard_normal(POOL_WEIGHTS, dtype=np.float32)

    @functools.cache  # noqa: B019 (there is one Draw a run)
    def _packed(self, bits: int) -> NDArray[np.uint8]:
        codes, _ = codec.encode(self._blocks, centroids(TABLE, bits))
        return pack(codes, bits, "msb").reshape(POOL_BLOCKS, -1)

    @functools.cache  # noqa: B019
    def _scaled(self, mean: float, deviation: float) -> NDArray[np.uint16]:
        values = self._normal * np.float32(deviation) + np.float32(mean)
        return (values.view(np.uint32) >> 16).astype(np.uint16)

    def codes(self, name: str, blocks: int, bits: int) -> Iterator[Piece]:
        """Codes of whole blocks: bytes [blocks * 16 * bits]."""
        rng = _generator(name)
        for start in range(0, blocks, PIECE_BLOCKS):
            count = min(PIECE_BLOCKS, blocks - start)
            chosen = self._packed(bits)[rng.integers(0, POOL_BLOCKS, count)]
            yield start * BLOCK * bits // 8, chosen

    def norms(self, name: str, shape: Shape, columns: int) -> Iterator[Piece]:
        """Norms of blocks whose weights keep the size of what passes through them."""
        spread = _generator(name).standard_normal(shape, dtype=np.float32) / 10
        yield 0, (math.sqrt(BLOCK / columns) * np.clip(1 + spread, 0.5, 2)).astype(np.float16)

    def plain(self, name: str, shape: Shape) -> Iterator[Piece]:
        """Weights that are not coded, as bfloat16 bits."""
        pool = self._scaled(*distribution(name, shape))
        rng, count = _generator(name), math.prod(shape)
        done = 0
        while done < count:
            piece = pool[int(rng.integers(0, POOL_WEIGHTS // 2)) :][: count - done]
            yield 2 * done, piece
            done += piece.size


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def distribution(name: str, shape: Shape) -> tuple[float, float]:
    """Mean and deviation of an uncoded tensor's weights."""
    if not shape:
        return (CLIP if name.endswith("max") else -CLIP), 0.0
    if name.endswith(("per_dim_scale", "bias")):
        return 0.0, 0.1
    if "embed_tokens_per_layer" in name:
        return 0.0, 1 / 16  # the model multiplies by sqrt(256)
    if len(shape) == 1:
        return 1.0, 0.0 if name.endswith("layer_scalar") else 0.1
    return 0.0, 1 / math.sqrt(math.prod(shape[1:]))


def tensors(
    settings: dict[str, Any], rule: rules.Rule, draw: Draw
) -> tuple[dict[str, tuple[TensorSpec, Pieces]], dict[str, tuple[TensorSpec, Pieces]]]:
    """List what goes to codes.safetensors and to bf16.safetensors."""
    coded: dict[str, tuple[TensorSpec, Pieces]] = {}
    plain: dict[str, tuple[TensorSpec, Pieces]] = {}
    for name, shape in published.tensors(settings).items():
        bits = rule(name, shape)
        if bits is None:
            pieces = functools.partial(draw.plain, name, shape)
            plain[experts.published(name)] = TensorSpec("BF16", shape), pieces
            continue
        key = experts.published(name).replace(".", "__")
        N, columns = math.prod(shape[:-1]), shape[-1]
        blocks = -(-columns // BLOCK)
        meta = np.array([N, blocks, BLOCK, N * blocks * BLOCK])
        coded[f"{key}__packed"] = (
            TensorSpec("U8", (N * blocks * BLOCK * bits // 8,)),
            functools.partial(draw.codes, name, N * blocks, bits),
        )
        coded[f"{key}__norms"] = (
            TensorSpec("F16", (N, blocks)),
            functools.partial(draw.norms, name, (N, blocks), columns),
        )
        coded[f"{key}__meta"] = TensorSpec("I64", (4,)), lambda meta=meta: iter([(0, meta)])
    return coded, plain


def write(path: Path, contents: dict[str, tuple[TensorSpec, Pieces]]) -> None:
    """Write a file unless it is there; it gets its name when it is whole."""
    if path.exists():
        print(f"{path.name} is there", file=sys.stderr)
        return
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    specs = {name: spec for name, (spec, _) in contents.items()}
    with TensorWriter(partial, specs) as writer:
        for name, (_, pieces) in contents.items():
            for at, piece in pieces():
                writer.write(name, piece, at)
    partial.rename(path)


def make(
    root: Path, variant: str, settings: dict[str, Any], rule: rules.Rule | None = None
) -> Path:
    """Write the repository, or what it still lacks, and return the variant's folder.

    Without a rule of what is coded it is the published variant's.
    """
    folder = root / variant
    folder.mkdir(parents=True, exist_ok=True)
    coded, plain = tensors(settings, rule or rules.variant_rule(variant)[1], Draw())
    write(folder / "codes.safetensors", coded)
    write(folder / "bf16.safetensors", plain)
    is_whole = settings["text_config"]["vocab_size"] == len(real_tokenizer.read_vocabulary())
    if is_whole and not (root / "tokenizer.json").exists():
        real_tokenizer.write(root)
    for name, content in (("config", settings), ("generation_config", GENERATION)):
        (root / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return folder


def add_size_args(parser: argparse.ArgumentParser) -> None:
    """Add --model, and --layers and --vocabulary for a smaller one."""
    parser.add_argument("--model", choices=(E4B, *LARGER), default=E4B, help="default: E4B")
    parser.add_argument("--layers", type=int, default=LAYERS, help="an even number (default: all)")
    parser.add_argument("--vocabulary", type=int, help="words of the model (default: all)")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    width = parser.add_mutually_exclusive_group(required=True)
    width.add_argument("--variant", choices=rules.VARIANTS, help="a published one")
    width.add_argument("--bits", metavar="CLASS=N,...", help="classes of tensors, as quantize's")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="new, or to be finished"
    )
    add_size_args(parser)
    arguments = parser.parse_args(argv)
    settings = config(arguments.layers, arguments.vocabulary, arguments.model)
    rule = None
    if arguments.bits is not None:
        rule = rules.class_rule(rules.parse_bits(arguments.bits))
    print(make(arguments.output, arguments.variant or MIXTURE, settings, rule))


if __name__ == "__main__":
    main()
