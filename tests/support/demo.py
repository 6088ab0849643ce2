"""The demo checkpoint as the tests meet it: converted once, loaded once a variant."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hlwq_mlx import library
from hlwq_mlx.gemma4.model import Model

CARD_QUESTION = "What is 2+2?"
STORY = (
    "Tom lived near the park. Tom had a red ball. Tom took the red ball to the shop. "
    'Lily was waiting at the shop. Lily had a blue kite. "I like your ball," said Lily. '
    "Tom gave the ball to Lily. Lily was happy and smiled."
)
STORY_QUESTION, STORY_ANSWER = "What color was the ball?", "red"
STORY_THOUGHT = "Tom had a red ball."
SHIPPED = (
    *("config.json", "generation_config.json", "processor_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("PQ5/codes.safetensors", "PQ5/bf16.safetensors"),
    *("drafter/config.json", "drafter/model.safetensors"),
)


@cache
def folder(variant: str = library.DEMO_VARIANT) -> Path:
    """The converted demo, in the session's cache folder (see conftest)."""
    return library.converted_folder(str(library.DEMO), variant)


@cache
def load(variant: str = library.DEMO_VARIANT) -> tuple[Model, Any]:
    return library.load(folder(variant))


def run(module: str, *arguments: str, stdin: str = "", **variables: str) -> Any:
    """Run `python -m module` as a person does, and return what it said and its exit code."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | variables,
        check=False,
    )
