"""Convert parsed arguments to memory settings, a loaded model and a message's content.

Heavy imports are inside the functions, so that --help does not wait for them.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import RequestError
from .console import note, progress
from .machines import agree, load_model
from .options import PREFILL_STEP

if TYPE_CHECKING:
    from ..dialog.tokenizer import Tokenizer
    from ..engine.draft import Drafter
    from ..engine.sampling import Sampling
    from ..folder.folder import DrafterFolder, Folder
    from ..gemma4.model import Model
    from ..memory.need import Settings


def content_of(media: Sequence[dict[str, Any]], text: str) -> str | list[dict[str, Any]]:
    """Return a message's content: media, and the text after them."""
    return [*media, {"type": "text", "text": text}] if media else text


def answer_options(
    arguments: argparse.Namespace, settings: "Settings", loaded: "Loaded"
) -> dict[str, Any]:
    """Return the options of `library.stream_generate`, with progress bars."""
    return {
        "max_tokens": arguments.max_tokens,
        "sampling": loaded.sampling,
        "prefill_step": settings.prefill_step,
        "caching": settings.caching,
        "draft": loaded.drafter,
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
    return Settings(context, arguments.prefill_step_size or PREFILL_STEP, caching, has_towers)


def with_chunk(arguments: argparse.Namespace, folder: "Folder", settings: "Settings") -> "Settings":
    """Return the settings with a chunk as long as the memory allows, unless one was asked for.

    It is for a model that answers one prompt at a time: others would wait for the chunk.
    """
    from ..memory.inventory import of_converted
    from ..memory.machine import this_machine
    from ..memory.verdict import with_long_chunk

    if arguments.prefill_step_size is not None or arguments.group is not None:
        return settings
    return with_long_chunk(of_converted(folder), settings, this_machine(folder.path))


def folder_for(arguments: argparse.Namespace, settings: "Settings") -> "Folder":
    """Open the converted folder of the model that the arguments name, with its drafter.

    Without --model it is the demo's, and stderr says so. Its `drafter` is the one to draft with.
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
    is_checked = not arguments.force and arguments.group is None  # a group checks its parts
    if is_checked:
        check_before_download(model, variant, settings)
    folder = open_folder(model, variant)
    folder.drafter = None if arguments.group is not None else drafter_for(arguments, folder)
    if is_checked:
        plan(folder, settings).require()
    return folder


def drafter_for(arguments: argparse.Namespace, folder: "Folder") -> "DrafterFolder | None":
    """Return the folder of the drafter that the arguments name, or else of the model's own.

    Raises: RequestError when they contradict each other, or ask for a drafter that is not there.
    """
    from ..gemma4.drafter_config import require_fit
    from ..write.cache import open_drafter

    if arguments.draft not in (None, "model"):
        if arguments.draft_model is not None:
            raise RequestError(
                f"[--draft-model] needed --draft model, or none of it, got --draft "
                f"{arguments.draft}. Leave out one or the other."
            )
        return None
    if arguments.draft_model is not None:
        given = open_drafter(arguments.draft_model)
        require_fit(given.args, folder.args.text_config)
        return given
    if arguments.draft == "model" and folder.drafter is None:
        raise RequestError(
            f"[--draft] needed a drafter for model, got none in {folder.path}. "
            "Name one with --draft-model."
        )
    return folder.drafter


class Loaded(NamedTuple):
    """What a command answers with."""

    folder: "Folder"
    model: "Model"
    tokenizer: "Tokenizer"
    sampling: "Sampling"
    drafter: "Drafter | None"


def load_for(arguments: argparse.Namespace, settings: "Settings") -> Loaded:
    """Load what the arguments name: a model, its tokenizer, its sampling and what drafts for it."""
    from ..engine.sampling import Sampling
    from ..folder import loading, side_files

    given = {name: getattr(arguments, name) for name in ("temp", "top_p", "top_k", "min_p")}
    Sampling().override(**given)  # first, so that a wrong option is refused before the work
    folder = folder_for(arguments, settings)
    tokenizer = side_files.open_tokenizer(folder)  # first, so that damage is found before the work
    recommended = Sampling.from_generation_config(folder.generation)
    model = load_model(folder, agree(arguments, folder, settings))
    drafter = loading.find_drafter(model, folder, arguments.draft)
    return Loaded(folder, model, tokenizer, recommended.override(**given), drafter)
