"""What parsed arguments mean: memory settings, a loaded model, a message's content.

Heavy imports wait inside the functions, so that --help does not.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import note, progress

if TYPE_CHECKING:
    from ..folder.folder import Folder
    from ..memory.need import Settings


def content_of(media: Sequence[dict[str, Any]], text: str) -> str | list[dict[str, Any]]:
    """Make a message's content of media and the text after them."""
    return [*media, {"type": "text", "text": text}] if media else text


def media_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the media arguments mean to `library.stream_generate`, with progress shown."""
    return {
        "image_tokens": arguments.image_tokens,
        "http": arguments.allow_http,
        "on_media": progress("look and listen", "media"),
        "on_prefill": progress("read the prompt", "tokens"),
    }


@contextmanager
def tuned() -> Iterator[None]:
    """Set how much MLX keeps and hands the GPU at once; enter before a model is loaded."""
    import mlx.core as mx

    from ..memory.machine import many_in_flight, ram_bytes, this_machine
    from ..quant import device

    # Asking MLX about a GPU is its first use.
    with many_in_flight(has_metal=device.has_metal(), ram=ram_bytes()):
        machine = this_machine(Path.cwd())
        before = mx.set_cache_limit(machine.cache_bytes)
        try:
            yield
        finally:
            mx.set_cache_limit(before)


def settings_for(arguments: argparse.Namespace, context: int) -> "Settings":
    """Gather what the arguments say that changes how much memory is needed."""
    from ..gemma4.caches import Caching
    from ..memory.need import Settings

    caching = Caching(arguments.kv_bits, arguments.kv_group_size, arguments.max_kv_size)
    has_towers = bool(getattr(arguments, "media", ()))
    return Settings(context, arguments.prefill_step_size, caching, has_towers)


def folder_for(arguments: argparse.Namespace, settings: "Settings") -> "Folder":
    """Open the converted folder of the model that the arguments name.

    Without --model it is the demo's, and stderr says so.
    Raises: DeviceError for a model that this machine has no room for, unless --force is given.
    """
    from .. import library
    from ..memory.verdict import check_before_download, plan

    model, variant = arguments.model, arguments.variant
    if model is None:
        model, variant = str(library.DEMO), variant or library.DEMO_VARIANT
        note(
            f"This is the demo model ({variant}), which knows toy stories, small sums and digits. "
            "Name a real one with --model, as in\n"
            "  --model caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi --variant PQ5"
        )
    if not arguments.force:
        check_before_download(model, variant, settings)
    folder = library.open_folder(model, variant)
    if not arguments.force:
        plan(folder, settings).require()
    return folder


def load_for(arguments: argparse.Namespace, settings: "Settings") -> tuple[Any, Any, Any]:
    """Load the model that the arguments name, its tokenizer and its sampling."""
    from .. import library
    from ..engine.sampling import Sampling

    given = {name: getattr(arguments, name) for name in ("temp", "top_p", "top_k", "min_p")}
    Sampling().override(**given)  # what cannot be followed is told before the work
    folder = folder_for(arguments, settings)
    recommended = Sampling.from_generation_config(folder.generation)
    return *library.load_folder(folder), recommended.override(**given)
