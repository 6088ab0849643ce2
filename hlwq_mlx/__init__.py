"""Run Gemma 4 in HLWQ (Hadamard-Lloyd Weight Quantization) form with MLX.

    from hlwq_mlx import load, generate
    model, tokenizer = load("caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi", variant="PQ5")
    print(generate(model, tokenizer, [{"role": "user", "content": "What is 2+2?"}]))

Names are looked up when they are used, so that a command's --help need not wait for MLX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .library import generate, load, stream_generate

__all__ = ["generate", "load", "stream_generate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
