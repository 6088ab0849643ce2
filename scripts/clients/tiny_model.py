"""Write a tiny random Gemma 4 that has the real one's vocabulary, template and context.

    python scripts/clients/tiny_model.py DIR

Assistants' first requests are 10,000 tokens and more, which E4B would read for minutes without a
GPU. What this model says means nothing: `forced_server.py` chooses its words.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert
from scripts.benchmarks import make_fullsize

VARIANT = "PQ5"
LAYERS = 2  # one of each kind


def config() -> dict[str, Any]:
    """Return E4B's config with two narrow layers; its towers are cut down alike."""
    settings = make_fullsize.config(LAYERS)
    settings["text_config"] |= {
        **{"hidden_size": 128, "hidden_size_per_layer_input": 64, "intermediate_size": 256},
        **{"num_attention_heads": 2, "num_key_value_heads": 1},
        **{"head_dim": 64, "global_head_dim": 64},
    }
    settings["vision_config"] |= {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    settings["audio_config"] |= {"hidden_size": 128, "output_proj_dims": 256}
    return settings


def make(folder: Path) -> Path:
    """Write the model into a folder that is new, converted, and return it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        published = make_fullsize.make(Path(work), VARIANT, config())
        convert.convert(Source(published, VARIANT), folder)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    print(make(parser.parse_args(argv).folder))


if __name__ == "__main__":
    main()
