"""Put a server together from what the command was told: folder, limits, engine, application."""

import argparse
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple, Self

from starlette.types import ASGIApp

from .. import cli
from ..dialog.vocabulary import Vocabulary
from ..engine.feature_cache import FeatureCache
from ..engine.prefix_cache import PrefixCache
from ..engine.prefix_disk import PrefixStore, origin_of
from ..engine.sampling import Sampling
from ..engine.scheduler import Capacity
from ..engine.worker import Worker
from ..errors import SourceError
from ..folder import loading, side_files
from ..folder.folder import CONFIG, Folder
from ..folder.identity import MANIFEST_KEY
from ..gemma4.towers.config import AUDIO, VISION
from ..media.origin import Access
from ..media.processor import Processor
from ..memory.inventory import of_converted
from ..memory.machine import this_machine
from ..memory.need import Settings, Space
from ..memory.verdict import Verdict, judge
from .app import make_app
from .engine import Engine, State
from .limits import Limits
from .metrics import Metrics
from .model_card import ModelCard
from .prompts import PromptMaker
from .service import Service
from .site import Site

if TYPE_CHECKING:
    from ..sharding.start import Planned

PREFIX_SHARE = 3  # of the memory for conversations, a third is for those that may come back
CARD_CAPABILITIES = ("completion", "tools", "thinking")


class Started(NamedTuple):
    """An application, and what ends its answers within the time that the arguments give."""

    app: ASGIApp
    drain: Callable[[], bool]


@contextmanager
def application(arguments: argparse.Namespace) -> Iterator[Started]:
    """Load the model that the arguments name; within the block, its application answers.

    Raises: an HLWQError for what would keep every request from being answered.
    """
    settings = cli.settings_for(arguments, cli.CONTEXT)
    folder = cli.folder_for(arguments, settings)
    if arguments.prompt_cache_dir is not None:
        identity_of(folder)
    loading.require_loadable(folder)
    tokenizer = side_files.open_tokenizer(folder)
    sampling = Sampling.from_generation_config(folder.generation)
    inventory = of_converted(folder)
    with_towers = replace(settings, has_towers=True)  # any request may bring a picture
    verdict = judge(inventory, with_towers, this_machine(folder.path))
    weights = sum(entry.weights for entry in inventory.entries)
    planned = cli.agree(arguments, folder, with_towers)
    space = space_of(verdict, folder, settings) if planned is None else planned.space
    room = Room.of(space, folder.args.text_config.max_position_embeddings, arguments)
    prompts = PromptMaker(
        folder.args,
        tokenizer,
        Processor.from_folder(folder.path),
        Access(files=False, web=arguments.allow_http, public_only=True),
        room.capacity.context,
        arguments.think,
        arguments.chat_template_args,
    )
    limits = Limits(arguments.allowed_hosts, arguments.allowed_origins, arguments.api_key)
    vocab_size = folder.args.text_config.vocab_size
    features = FeatureCache()
    engine = Engine(  # last: what may fail does so before its thread begins to load
        partial(_load, arguments, folder, settings, room, planned),
        room.capacity,
        queue=arguments.max_queue,
        idle_s=arguments.idle_unload,
        on_unload=features.clear,
    )
    try:
        service = Service(engine, tokenizer, sampling, Metrics(), features, vocab_size)
        card = partial(_card, folder, verdict, room, engine, arguments.alias, weights)
        site = Site(service, prompts, Vocabulary(tokenizer), limits, card, version("hlwq-mlx"))
        yield Started(make_app(site), partial(engine.close, arguments.drain))
    finally:
        is_ended = engine.close()
    if not is_ended:
        leave_at_once()


def leave_at_once() -> None:
    """End the process with success while a model is being loaded, which nothing can interrupt.

    The interpreter's own end would abort: MLX's threads still hold Python objects.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@dataclass(frozen=True)
class Room:
    """How the memory that the weights leave is shared out."""

    capacity: Capacity
    prefix_bytes: int

    @classmethod
    def of(cls, space: Space, longest: int, arguments: argparse.Namespace) -> Self:
        """Share out memory: a part for prompts that may come again, the rest for answers.

        One conversation at least has room, even where the model was forced to load. No context is
        longer than the `longest`, in tokens.
        """
        bytes_of = space.bytes_of
        given = arguments.prompt_cache_bytes
        prefix_bytes = space.nbytes // PREFIX_SHARE if given is None else given
        rows = max(space.nbytes - prefix_bytes, bytes_of(min(cli.CONTEXT, longest)))
        fits = bisect_right(range(1, longest + 1), rows, key=bytes_of)
        context = fits if arguments.context is None else min(arguments.context, longest)
        return cls(Capacity(context, max(rows, bytes_of(context)), bytes_of), prefix_bytes)


def space_of(verdict: Verdict, folder: Folder, settings: Settings) -> Space:
    """Return the memory for keys and values that a model leaves on this machine alone."""
    item_bytes = 2 if verdict.machine.has_metal else 4
    nbytes = verdict.spare_bytes + verdict.needed.kv
    return Space.of(nbytes, folder.args.text_config, settings, item_bytes)


def _load(
    arguments: argparse.Namespace,
    folder: Folder,
    settings: Settings,
    room: Room,
    planned: "Planned | None",
) -> Worker:
    """Load the model, and what was kept of earlier prompts."""
    model = cli.load_model(folder, planned)
    store, cache_dir = None, arguments.prompt_cache_dir
    if cache_dir is not None:
        store = PrefixStore(cache_dir, origin_of(model, identity_of(folder), settings.caching))
    make_caches = partial(model.make_cache, settings.caching)
    prefixes = PrefixCache(make_caches, room.prefix_bytes, store)
    drafter = loading.find_drafter(model, folder, arguments.draft)
    return Worker(model, prefixes, settings.caching, settings.prefill_step, drafter)


def identity_of(folder: Folder) -> str:
    """Return what tells a conversion from all others, as prefixes on disk have to be.

    Raises: SourceError for a folder that was made before there were identities.
    """
    identity = folder.manifest.get(MANIFEST_KEY)
    if not identity:
        raise SourceError(
            f"[{folder.path}] needed an identity in config.json for --prompt-cache-dir, got none. "
            "Convert the model again, or leave the option out."
        )
    return str(identity)


def _card(
    folder: Folder, verdict: Verdict, room: Room, engine: Engine, alias: str | None, weights: int
) -> ModelCard:
    """Return the facts of the model at this moment."""
    towers = folder.args.towers
    heard = {VISION: "vision", AUDIO: "audio"}
    needed = verdict.needed
    is_loaded = engine.state is State.READY
    return ModelCard(
        name=alias or short_name(folder.path.resolve().name),
        variant=str(folder.manifest.get("variant") or "16-bit"),
        context=room.capacity.context,
        created=(folder.path / CONFIG).stat().st_mtime,
        capabilities=[*CARD_CAPABILITIES, *(heard[tower] for tower in heard if tower in towers)],
        parameters=weights,
        size_bytes=sum(shard.stat().st_size for shard in folder.shards),
        memory_bytes=needed.text + needed.towers + needed.drafter if is_loaded else 0,
        digest=str(folder.manifest.get(MANIFEST_KEY, "0" * 64)),
    )


def short_name(folder: str) -> str:
    """Return the name of a folder; of one in our cache, without owner and digest."""
    owner, *rest = folder.split("--")
    return "-".join(rest[:-1]) if len(rest) > 1 else owner
