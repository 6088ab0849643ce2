"""Commands on several machines: rank 0 reads and prints, the others compute for it.

Heavy imports are inside the functions: one machine needs none of them.
"""

import argparse
import logging
import os
from typing import TYPE_CHECKING

from ..errors import RequestError

if TYPE_CHECKING:
    from ..folder.folder import Folder
    from ..gemma4.model import Model
    from ..memory.need import Settings
    from ..sharding.control import Follower
    from ..sharding.start import Planned

LAUNCHED = "MLX_RANK"  # of sharding.launched
SPLITS = ("layers", "tensors")  # of sharding.plan


def add_split_arg(parser: argparse.ArgumentParser) -> None:
    """Add --split; without `leads` a command is alone."""
    parser.set_defaults(group=None)
    group = parser.add_argument_group("several machines (mlx.launch; see sharding/README.md)")
    group.add_argument(
        "--split",
        choices=SPLITS,
        help="how they share the model: layers, for a model that one cannot hold, or tensors, for "
        f"2 or 4 machines and a fast link (default: {SPLITS[0]})",
    )


def leads(arguments: argparse.Namespace) -> bool:
    """Return whether this process is to do the command's work: it is alone, or rank 0.

    Another rank computes for rank 0 first, until that has no more to do. `arguments.group` becomes
    this process's end of the group, None where there is none.
    Raises: RequestError for options that a group cannot follow.
    """
    rank = os.environ.get(LAUNCHED)
    if rank is None:
        _require_alone(arguments)
        return True
    if rank == "0":  # which alone tells
        _require_shareable(arguments)
    else:
        os.environ["TQDM_DISABLE"] = "1"
        logging.getLogger("hlwq_mlx").setLevel(logging.WARNING)
    from ..sharding import start
    from ..sharding.control import Follower

    arguments.group = start.join()
    if arguments.group is None:
        _require_alone(arguments)
    if not isinstance(arguments.group, Follower):
        return True
    _follow(arguments, arguments.group)
    return False


def agree(
    arguments: argparse.Namespace, folder: "Folder", settings: "Settings"
) -> "Planned | None":
    """Plan with the other machines of a group who holds what; None for one that is alone.

    Raises: DeviceError for parts that do not fit their machines; RequestError for what cannot be
    split so.
    """
    if arguments.group is None:
        return None
    from ..sharding import start

    split, force = arguments.split or SPLITS[0], arguments.force
    return start.agree(arguments.group, folder, settings, split, is_forced=force)


def load_model(folder: "Folder", planned: "Planned | None") -> "Model":
    """Load a folder's model, or rank 0's part of it as the head of a group that has agreed.

    Raises: as loading.load_folder.
    """
    if planned is None:
        from ..folder import loading

        return loading.load_folder(folder)
    from ..sharding import start

    return start.lead(planned)


def _follow(arguments: argparse.Namespace, follower: "Follower") -> None:
    from ..sharding import start
    from ..write.cache import DEMO, DEMO_VARIANT
    from .arguments import folder_for, settings_for
    from .boundary import as_error
    from .options import CONTEXT

    if arguments.model is None:
        arguments.model, arguments.variant = str(DEMO), arguments.variant or DEMO_VARIANT

    def open_folder() -> "Folder":
        return folder_for(arguments, settings_for(arguments, CONTEXT))

    try:
        start.serve(follower, open_folder)
    except Exception as problem:  # noqa: BLE001 - of any kind, and rank 0 tells of it
        follower.fail(str(as_error(problem)))


def _require_alone(arguments: argparse.Namespace) -> None:
    """Refuse what one machine does not do."""
    if arguments.split is not None:
        raise RequestError(
            "[--split] needed several machines that mlx.launch started, got one. Name two or more "
            "to mlx.launch, or leave --split out."
        )


def _require_shareable(arguments: argparse.Namespace) -> None:
    """Refuse what a group does not do."""
    given = vars(arguments)
    refused = {
        "--draft model, which reads keys that other machines hold": given.get("draft") == "model"
        or given.get("draft_model"),
        "--prompt -, whose end mlx.launch never tells": given.get("prompt") == "-",
        "--prompt-cache-dir, since other machines hold parts of it": given.get("prompt_cache_dir"),
        "--idle-unload": given.get("idle_unload"),
    }
    for option, is_given in refused.items():
        if is_given:
            raise RequestError(
                f"[mlx.launch] needed options that several machines can follow, got {option}. "
                "Leave it out."
            )
