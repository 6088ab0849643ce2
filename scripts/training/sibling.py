"""Where the demo's sibling with experts lies, and how it becomes a folder to work with."""

import shutil
from pathlib import Path

from hlwq_mlx.library import DEMO

PUBLISHED = Path(__file__).parents[2] / "tests" / "data" / "experts"
SIDE_FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def assemble(folder: Path) -> Path:
    """Put the sibling's config and weights, and the demo's tokenizer, into a new folder."""
    folder.mkdir(parents=True)
    for path in PUBLISHED.iterdir():
        shutil.copyfile(path, folder / path.name)
    for name in SIDE_FILES:
        shutil.copyfile(DEMO / name, folder / name)
    return folder
