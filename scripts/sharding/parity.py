"""Compare groups of processes on this machine's loopback with one process, and print a table.

    python scripts/sharding/parity.py [--sizes 2 4] [--tokens 200]

Each line is a group that mlx.launch started, with the ring over TCP: the largest difference of
float32 logits (read whole, in chunks, token by token), how many greedy tokens are one process's:
plain, drafted by lookup, behind a prefix read before. Read is the largest share of the
language model's bytes that a rank read from disk; bytes a token are those that rank 0 sends.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parents[2] / "tests" / each) for each in ("", "support")]
import tiny
from tqdm import tqdm

from hlwq_mlx.disk.tensorfile import TensorSpec
from hlwq_mlx.engine.step import LISTED
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.towers.tower import TOWER_PREFIXES
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert
from hlwq_mlx.write.cache import DEMO

ROOT = Path(__file__).parents[2]
SIZES, TOKENS = (2, 4), 200
PATIENCE_S = 3600
# Heads that part in whole blocks, and columns of 16.5.
WIDE = {
    **{"head_dim": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
    "intermediate_size": 2112,
}
FLOAT = 4  # bytes, of activations on a CPU
COLUMNS = (
    *("model", "split", "processes", "text", "image", "sound", "tokens", "drafted", "warm"),
    *("batch", "read", "bytes a token", "by formula", "by TCP", "orders"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        folders = dict(models(Path(work)))
        cases = [
            (name, split, size)
            for size in arguments.sizes
            for name in folders
            for split in ("layers", "tensors")
        ]
        for name, split, size in tqdm(cases, unit=" group"):
            found = launch(folders[name], split, size, arguments.tokens)
            print(line(name, folders[name], split, size, found), flush=True)


def models(work: Path) -> Iterator[tuple[str, Path]]:
    """Write the models, converted: the demo in 16 bits, and tiny ones, coded."""
    convert.convert(Source(DEMO), work / "demo")
    yield "demo, 16 bits", work / "demo"
    yield "dense, coded", coded(work / "dense", dense())
    yield "experts, coded", coded(work / "experts", experts())


def dense() -> dict[str, Any]:
    """Return a config whose layers part in four, and heads and columns in uneven whole blocks."""
    settings = tiny.config()
    layer_types = settings["text_config"]["layer_types"][:2] * 3
    settings["text_config"] |= {
        **{**WIDE, "num_kv_shared_layers": 1},
        **{"num_hidden_layers": len(layer_types), "layer_types": layer_types},
    }
    return settings


def experts() -> dict[str, Any]:
    """Return the same with experts of 5.5 blocks, nothing shared and no per-layer inputs."""
    settings = tiny.experts_config()
    settings["text_config"] |= {**WIDE, "num_experts": 8, "moe_intermediate_size": 704}
    return settings


def coded(folder: Path, settings: dict[str, Any]) -> Path:
    """Write a model with every matrix coded, each class at another width.

    Scores of attention have the size of a trained model's: of larger ones rounding is all.
    """
    root = tiny.write_root(folder / "source", settings)
    weights = tiny.make_weights(settings, has_dead=False, has_towers=False)
    for name in weights:
        if name.endswith("q_norm.weight"):
            weights[name] = tiny.as_float(
                tiny.as_bfloat16(weights[name] / weights[name].size ** 0.5)
            )
    tiny.publish(root / "PQ5", weights, tiny.all_coded)
    convert.convert(Source(root / "PQ5", "PQ5"), folder / "converted")
    return folder / "converted"


def launch(folder: Path, split: str, size: int, tokens: int, prompt: int = 96) -> dict[str, Any]:
    """Run a group and return what rank 0 found."""
    python = Path(sys.executable)
    rank = [str(python), "-m", "scripts.sharding.rank", str(folder)]
    silent, end = os.pipe()  # mlx.launch reads its input, and at its end without a pause
    try:
        run = subprocess.run(
            [
                *(python.parent / "mlx.launch", "-n", str(size), "-p", str(free_ports(size + 1))),
                *("--env", f"PYTHONPATH={ROOT}", "--cwd", ROOT, "--", *rank),
                *("--split", split, "--tokens", str(tokens), "--prompt", str(prompt)),
            ],
            stdin=silent,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    finally:
        os.close(silent)
        os.close(end)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{run.stdout}\n{run.stderr}")
    return dict(json.loads(lines[0]))


def free_ports(count: int) -> int:
    """Return the first of some neighbouring ports that nobody has."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as server:
            first = server.getsockname()[1]
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


def line(name: str, folder: Path, split: str, size: int, found: dict[str, Any]) -> str:
    """Return a line of the table."""
    opened = Folder.open(folder)
    largest = max(found["read"]) / text_bytes(opened)
    differences = [f"{found[kind]:.1e}" if kind in found else "–" for kind in COLUMNS[3:6]]
    cells = [
        *(name, split, str(size), *differences),
        *(str(found[kind]) for kind in ("greedy", "drafted", "warm")),
        "alike" if found["batch"] else "differs",
        f"{largest:.3f}",
        *(f"{found['counted']:,.0f}", f"{formula(opened.args, split, size):,}"),
        *(f"{found['tcp']:,.0f}", f"{found['told']:,.0f}"),
    ]
    return f"| {' | '.join(cells)} |"


def text_bytes(folder: Folder) -> int:
    """Return the bytes of a language model's weights on disk, without its table of rows."""
    specs: dict[str, TensorSpec] = dict(folder.specs)
    return sum(spec.nbytes for name, spec in specs.items() if not name.startswith(TOWER_PREFIXES))


def formula(args: Gemma4Config, split: str, size: int) -> int:
    """Return the bytes that rank 0 sends for a token.

    By layers that is a hidden state, and the embedding that per-layer inputs are made of. By
    tensors it is what sums need, two states a layer, or three with experts, and one for the
    embedding; and this machine's likeliest tokens with their numbers and the sum of all: as often
    as there are other machines.
    """
    text = args.text_config
    state = FLOAT * text.hidden_size
    if split == "layers":
        return state * (1 + (text.hidden_size_per_layer_input > 0))
    sums = text.num_hidden_layers * (3 if text.enable_moe_block else 2) + 1
    return (sums * state + FLOAT * (2 * LISTED + 1)) * (size - 1)


if __name__ == "__main__":
    main()
