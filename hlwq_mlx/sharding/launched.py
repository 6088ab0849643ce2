"""Where this process stands in a group: what mlx.launch tells it by its environment."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import GroupError

RANK, HOSTS = "MLX_RANK", "MLX_HOSTFILE"
DEVICES, COORDINATOR = "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR"
RING, JACCL = "ring", "jaccl"


@dataclass(frozen=True)
class Launched:
    """A rank in a group that MLX's `backend` connects; rank 0 listens at `host` and `port`.

    `hosts` are the addresses of all ranks, where the backend names them.
    """

    rank: int
    size: int
    backend: str
    host: str
    port: int
    hosts: tuple[str, ...] = ()

    def name(self, rank: int) -> str:
        """Return how a rank is called in messages."""
        return f"rank {rank} ({self.hosts[rank]})" if self.hosts else f"rank {rank}"


def launched(environment: Mapping[str, str] = os.environ) -> Launched | None:
    """Return where this process stands, or None if mlx.launch did not start it beside others.

    Our own port is the one behind those that MLX uses.
    Raises: GroupError for an environment that is not mlx.launch's.
    """
    rank = environment.get(RANK)
    if rank is None:
        return None
    try:
        found = _by_jaccl if COORDINATOR in environment else _by_ring
        return found(int(rank), environment)
    except (LookupError, ValueError, TypeError, AttributeError, OSError) as problem:
        raise GroupError(
            f"[{RANK}] needed the environment that mlx.launch makes, got {problem!r}. Start the "
            "group by mlx.launch with the ring or the jaccl backend."
        ) from problem


def _by_ring(rank: int, environment: Mapping[str, str]) -> Launched | None:
    text = Path(environment[HOSTS]).read_text(encoding="utf-8")
    if not text.strip():  # mlx.launch writes none for a lone host
        return None
    addresses = [[each.rpartition(":") for each in node] for node in json.loads(text)]
    port = max(int(port) for node in addresses for _, _, port in node) + 1
    hosts = tuple(node[0][0] for node in addresses)
    return Launched(rank, len(hosts), RING, hosts[0], port, hosts)


def _by_jaccl(rank: int, environment: Mapping[str, str]) -> Launched:
    size = len(json.loads(Path(environment[DEVICES]).read_text(encoding="utf-8")))
    host, _, port = environment[COORDINATOR].rpartition(":")
    return Launched(rank, size, JACCL, host, int(port) + 1)
