"""Put a group together: its machines find each other, agree on model and plan, and load parts."""

import atexit
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from ..disk.sizes import format_bytes
from ..folder.folder import Folder
from ..memory.inventory import of_converted
from ..memory.machine import this_machine
from ..memory.need import Settings, Space
from ..quant import device
from ..quant.bodies import metal_folder
from . import load, room
from .control import Follower, Leader, Message
from .follow import follow
from .launched import Launched, launched
from .lead import LedModel
from .link import Link
from .passes import LayersWorker, TensorsWorker, Worker
from .plan import LAYERS, MAKERS, Plan, describe_parts
from .shares import Run
from .speed import CHIPS, Mac, link_of

_LOG = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]
CODE = (".py", ".cpp", ".h", ".json")
_SHOWN = 12  # characters of a digest

Group = Leader | Follower


def join() -> Group | None:
    """Return this process's end of the group that mlx.launch started; None if it is alone.

    A machine that is not reached, or has other versions, ends the process: rank 0 says why.
    """
    place = launched()
    if place is None:
        return None
    if place.rank:
        follower = Follower(place)
        follower.join(hello())
        return follower
    leader = Leader(place)
    leader.gather(hello())
    return leader


@dataclass(frozen=True)
class Planned:
    """A group that knows who holds what, before anybody loads it."""

    leader: Leader
    folder: Folder
    settings: Settings
    plan: Plan

    @property
    def space(self) -> Space:
        """The memory for keys and values that every machine has room for, in rank 0's bytes."""
        item_bytes = device.activation_dtype().size
        return room.space(self.plan, self.folder.args, self.settings, item_bytes)


def agree(
    leader: Leader, folder: Folder, settings: Settings, split: str, *, is_forced: bool
) -> Planned:
    """Ask every machine for its folder and its memory, and plan who holds what.

    Raises: RequestError for a model or a number of machines that cannot be split so; DeviceError
    for a part that does not fit its machine, unless `is_forced`.
    """
    others = leader.hear()
    facts = _facts(folder)
    leader.require_same(
        *("the folder", facts["folder"], {rank: told["folder"] for rank, told in others.items()}),
        "Copy rank 0's folder to every machine.",
    )
    limits = [facts["limit"], *(others[rank]["limit"] for rank in sorted(others))]
    # How fast they are changes no cut.
    hosts = leader.place.hosts or [f"by {leader.place.backend}"] * len(limits)
    macs = [Mac(host, limit, CHIPS["M1"]) for host, limit in zip(hosts, limits, strict=True)]
    plan = MAKERS[split](of_converted(folder), settings, macs, link_of(10))
    for line in describe_parts(plan, macs):
        _LOG.info("%s: %s", split, line)
    if not is_forced:
        plan.require()
    return Planned(leader, folder, settings, plan)


def lead(planned: Planned) -> LedModel:
    """Have every machine load its part, and return the whole model as rank 0's engine uses it."""
    leader, folder, plan = planned.leader, planned.folder, planned.plan
    layers = list(plan.layers)
    leader.tell({"do": "load", "split": plan.split, "layers": layers})
    worker, read_bytes = _load(folder, leader.place, plan.split, layers)
    told = leader.hear()
    leader.begin()
    atexit.register(leader.end)  # before, whatever ends this process is a failure
    sizes = [read_bytes, *(int(told[rank]["read_bytes"]) for rank in sorted(told))]
    parts = ", ".join(f"rank {rank} {format_bytes(size)}" for rank, size in enumerate(sizes))
    _LOG.info("%s: weights read by %s", plan.split, parts)
    return LedModel(folder.args, worker, leader, sizes)


def serve(follower: Follower, open_folder: Callable[[], Folder]) -> None:
    """Do another rank's work until rank 0 has no more."""
    folder = open_folder()
    follower.tell(_facts(folder))
    message = follower.hear()
    layers = [Run(*each) for each in message["layers"]]
    worker, read_bytes = _load(folder, follower.place, message["split"], layers)
    follower.tell({"read_bytes": read_bytes})
    follow(worker, follower)


def _load(folder: Folder, place: Launched, split: str, layers: list[Run]) -> tuple[Worker, int]:
    """Load this rank's part; return how many bytes of weights were read for it, too."""
    link = Link(mx.distributed.init(strict=True, backend=place.backend))
    if split == LAYERS:
        own = layers[link.rank]
        held = load.load_layers(folder, own)
        return LayersWorker(held.model, own, link), held.read_bytes
    held = load.load_tensors(folder, link)
    return TensorsWorker(held.model, link), held.read_bytes


def hello() -> Message:
    """Return what has to be the same on every machine."""
    return {
        "hlwq_mlx": f"{version('hlwq-mlx')} of {_own_digest()}",
        "mlx": version("mlx"),
        "dtype": str(device.activation_dtype()),
    }


def _own_digest() -> str:
    """Return a digest of this package's code: its version does not tell two checkouts apart."""
    digest = hashlib.sha256()
    files = {f"metal/{path.name}": path for path in metal_folder().glob("*.metal")}
    for kind in CODE:
        files |= {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob(f"*{kind}")}
    for name, path in sorted(files.items()):
        if path.name.startswith("."):  # as macOS leaves beside copied files
            continue
        text = path.read_bytes()
        digest.update(f"{name} {len(text)} ".encode() + text)
    return digest.hexdigest()[:_SHOWN]


def _facts(folder: Folder) -> dict[str, object]:
    text = json.dumps(folder.config, sort_keys=True)
    return {
        "folder": hashlib.sha256(text.encode()).hexdigest()[:_SHOWN],
        "limit": this_machine(folder.path).limit_bytes,
    }
