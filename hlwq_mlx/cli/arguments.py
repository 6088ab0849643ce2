"""Convert parsed arguments to memory settings, a loaded model and a message's content.

Heavy imports are inside the functions, so that --help does not wait for them.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import note, progress

if TYPE_CHECKING:
    from ..dialog.tokenizer import Tokenizer
    from ..engine.sampling import Sampling
    from ..folder.folder import Folder
    from ..gemma4.model import Model
    from ..memory.need import Settings


def content_of(media: Sequence[dict[str, Any]], text: str) -> str | list[dict[str, Any]]:
    """Return a message's content: media, and the text after them."""
    return [*media, {"type": "text", "text": text}] if media else text


def answer_options(
    arguments: argparse.Namespace, settings: "Settings", sampling: "Sampling"
) -> dict[str, Any]:
    """Return the options of `library.stream_generate`, with progress bars."""
    return {
        "max_tokens": arguments.max_tokens,
        "sampling": sampling,
        "prefill_step": settings.prefill_step,
        "caching": settings.caching,
        "draft": arguments.draft,
        "image_tokens": arguments.image_tokens,
        "http": arguments.allow_http,
        "on_media": progress("encode media", "media"),
        "on_prefill": progress("read the prompt", "tokens"),
    }


@contextmanager
def tuned() -> Iterator[None]:
    """Set how much memory MLX keeps and hands the GPU at once; enter before a model is loaded."""
    import mlx.core as mx

    from ..memory.machine import many_in_flight, ram_bytes, this_machine
    from ..quant import device

    # `this_machine` asks MLX about the GPU, which is its first use.
    with many_in_flight(has_metal=device.has_metal(), ram=ram_bytes()):
        machine = this_machine(Path.cwd())
        before = mx.set_cache_limit(machine.cache_bytes)
        try:
            yield
        finally:
            mx.set_cache_limit(before)


def settings_for(arguments: argparse.Namespace, context: int) -> "Settings":
    """Return the settings, from the arguments, that change how much memory is needed."""
    from ..gemma4.caches import Caching
    from ..memory.need import Settings

    caching = Caching(arguments.kv_bits, arguments.kv_group_size, arguments.max_kv_size)
    has_towers = bool(getattr(arguments, "media", ()))
    return Settings(context, arguments.prefill_step_size, caching, has_towers)


def folder_for(arguments: argparse.Namespace, settings: "Settings") -> "Folder":
    """Open the converted folder of the model that the arguments name.

    Without --model it is the demo's, and stderr says so.
    Raises: DeviceError for a model that does not fit this machine, unless --force is given.
    """
    from ..memory.verdict import check_before_download, plan
    from ..write.cache import DEMO, DEMO_VARIANT, open_folder

    model, variant = arguments.model, arguments.variant
    if model is None:
        model, variant = str(DEMO), variant or DEMO_VARIANT
        note(
            f"This is the demo model ({variant}), which knows toy stories, small sums and digits. "
            "Name a real one with --model, as in\n"
            "  --model caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi --variant PQ5"
        )
    if not arguments.force:
        check_before_download(model, variant, settings)
    folder = open_folder(model, variant)
    if not arguments.force:
        plan(folder, settings).require()
    return folder


def load_for(
    arguments: argparse.Namespace, settings: "Settings"
) -> "tuple[Model, Tokenizer, Sampling]":
    """Load the model that the arguments name, its tokenizer and its sampling."""
    from ..engine.sampling import Sampling
    from ..folder import loading, side_files

    given = {name: getattr(arguments, name) for name in ("temp", "top_p", "top_k", "min_p")}
    Sampling().override(**given)  # first, so that a wrong option is refused before the work
    folder = folder_for(arguments, settings)
    tokenizer = side_files.open_tokenizer(folder)  # first, so that damage is found before the work
    recommended = Sampling.from_generation_config(folder.generation)
    return loading.load_folder(folder), tokenizer, recommended.override(**given)
