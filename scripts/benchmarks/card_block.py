"""Run the model card's *Full Inference* as printed, but for its import line, on the demo.

    python scripts/benchmarks/card_block.py

Needs torch (2.13.0 was tried) beside this package; the demo lies where the block names the real
model.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hlwq_mlx import library

PRINTED = Path(__file__).parents[2] / "tests" / "data" / "card_full_inference.txt"
MODEL = "caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi"


def text() -> str:
    """Return the block with our import line."""
    printed = PRINTED.read_text(encoding="utf-8")
    theirs, ours = "from polarquant import HLWQModel\n", "from hlwq_mlx import HLWQModel\n"
    assert printed.count(theirs) == 1
    return printed.replace(theirs, ours)


def run(block: str, torch: Any, folder: Path) -> dict[str, Any]:
    """Run a block in a folder where the model's name leads to the demo, and return its names."""
    from transformers import AutoTokenizer

    (folder / MODEL).parent.mkdir(parents=True)
    (folder / MODEL).symlink_to(library.DEMO, target_is_directory=True)
    names: dict[str, Any] = {"torch": torch, "AutoTokenizer": AutoTokenizer}
    with contextlib.chdir(folder):
        exec(block, names)
    return names


def main() -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        output = run(text(), torch, Path(folder))["output"]
    print(f"torch {torch.__version__}, output {output.dtype} of shape {tuple(output.shape)}")


if __name__ == "__main__":
    main()
