"""Run Gemma 4 in HLWQ (Hadamard-Lloyd Weight Quantization) form with MLX.

    from hlwq_mlx import load, generate
    model, tokenizer = load("caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi", variant="PQ5")
    print(generate(model, tokenizer, [{"role": "user", "content": "What is 2+2?"}]))

Names are imported when they are first used, so that a command's --help does not wait for MLX. The
import of this package lets stock mlx-lm load our folders (see mlxlm/plugin.py).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .mlxlm import plugin

if TYPE_CHECKING:
    from .compat.card import HLWQModel, PolarQuantModel
    from .dialog.grammar import parse_answer
    from .library import generate, load, load_drafter, stream_generate

_HOMES = {
    "HLWQModel": "compat.card",
    "PolarQuantModel": "compat.card",
    "generate": "library",
    "load": "library",
    "load_drafter": "library",
    "parse_answer": "dialog.grammar",
    "stream_generate": "library",
}
__all__ = [
    "HLWQModel",
    "PolarQuantModel",
    "generate",
    "load",
    "load_drafter",
    "parse_answer",
    "stream_generate",
]

plugin.install()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
