"""A machine's memory and disk: this one's, or that of a Mac that is described by its size."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..disk.sizes import format_bytes
from ..quant import device
from ..quant.backends.native.library import native_library

MIB, GIB = 1 << 20, 1 << 30
CACHE_BYTES = 512 * MIB  # holds what a chunk of prefill frees; more would be kept from others
CACHE_SHARE = 20  # a machine of 8 GB gives it less
OS_BYTES = 4 * GIB  # what a raised limit has to leave to macOS and to other programs
# How many launches and megabytes MLX hands the GPU at once. Others report 5 to 13 % more tokens a
# second for models of many launches, as this one is; nothing was measured here. Buffers in flight
# stay in memory, so small Macs keep MLX's own numbers.
IN_FLIGHT = {"MLX_MAX_OPS_PER_BUFFER": 1000, "MLX_MAX_MB_PER_BUFFER": 400}
OWN_MB_IN_FLIGHT = 40
SMALL_RAM_BYTES = 12 * GIB


@dataclass(frozen=True)
class Machine:
    """A machine: its memory, and how much of it MLX may fill before the machine swaps."""

    name: str
    ram_bytes: int
    limit_bytes: int
    has_metal: bool
    wired_limit_mb: int = 0  # 0 where the system chooses
    free_disk_bytes: int | None = None
    has_library: bool = False  # the native one, which reads weights as they lie on disk

    @property
    def cache_bytes(self) -> int:
        """Bytes of freed memory that MLX should keep."""
        return min(CACHE_BYTES, self.limit_bytes // CACHE_SHARE)

    @property
    def in_flight_bytes(self) -> int:
        """Bytes held for launches that the GPU has not finished."""
        if not self.has_metal:
            return 0
        is_small = self.ram_bytes < SMALL_RAM_BYTES
        megabytes = OWN_MB_IN_FLIGHT if is_small else IN_FLIGHT["MLX_MAX_MB_PER_BUFFER"]
        return megabytes * 10**6

    @property
    def largest_limit_bytes(self) -> int:
        """The highest limit that a user can set; 0 without Metal, where there is none to set."""
        return max(self.limit_bytes, self.ram_bytes - OS_BYTES) if self.has_metal else 0


# macOS 15 gives the GPU two thirds of 8 and of 16 GB; macOS 26 gives it 12,713,115,648 bytes of
# 16 GB. The same share of 8 and 24 GB is an assumption.
# Source: spec ecosystem §5.1.
_SHARES = {15: 2 / 3, 26: 12_713_115_648 / (16 * GIB)}
RAM_GB = (8, 16, 24)
RELEASES = tuple(_SHARES)
OLDEST = min(RELEASES)  # which gives the least


def mac(ram_gb: int, release: int) -> Machine:
    """Describe a Mac by its memory and its release of macOS."""
    ram = ram_gb * GIB
    return Machine(f"{ram_gb} GB, macOS {release}", ram, int(ram * _SHARES[release]), True)


def this_machine(folder: Path) -> Machine:
    """Describe this machine, and the disk that a folder is on or will be on."""
    info = mx.device_info()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if device.has_metal():
        limit = int(info["max_recommended_working_set_size"])
        name, asked_mb = str(info["device_name"]), _wired_limit_mb()
        return Machine(name, int(info["memory_size"]), limit, True, asked_mb, free)
    name, has_library = str(info["device_name"]), native_library() is not None
    return Machine(name, ram_bytes(), _available_bytes(), False, 0, free, has_library)


def ram_bytes() -> int:
    """Return how much memory this machine has; MLX is not asked."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def describe(machine: Machine) -> Iterator[str]:
    """Yield a line about a machine's memory and disk."""
    given = format_bytes(machine.limit_bytes)
    memory = f"{format_bytes(machine.ram_bytes)} of memory, {given} of it for MLX"
    chosen = f" (iogpu.wired_limit_mb={machine.wired_limit_mb})" if machine.wired_limit_mb else ""
    disk = machine.free_disk_bytes
    free = "" if disk is None else f", {format_bytes(disk)} free on disk"
    yield f"{machine.name}: {memory}{chosen}{free}"


def _wired_limit_mb() -> int:
    """Return what the user set `sysctl iogpu.wired_limit_mb` to, 0 by default."""
    asked = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(asked.stdout) if asked.stdout.strip().isdigit() else 0


def _available_bytes() -> int:
    """Return how much memory is free without swapping."""
    if sys.platform != "linux":
        return max(0, ram_bytes() - OS_BYTES)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["MemAvailable"] * 1024


@contextmanager
def many_in_flight(*, has_metal: bool, ram: int) -> Iterator[None]:
    """Raise how much MLX hands the GPU at once, unless the environment says how much.

    Enter before the first use of the GPU, because MLX reads these variables then, even if the GPU
    is only described. The variables are removed at the end.
    """
    is_for = has_metal and ram >= SMALL_RAM_BYTES
    added = [name for name in IN_FLIGHT if is_for and name not in os.environ]
    os.environ.update({name: str(IN_FLIGHT[name]) for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
