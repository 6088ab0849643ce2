"""Run what cannot be trusted in a child process that has limits of time and memory.

This file is also what the child runs: it takes the limits upon itself and then runs the script.
It imports nothing of ours, so that the child starts in a moment. Linux enforces both limits;
macOS enforces the time alone, so the parent watches the memory; `watched` does so for any process.
"""

import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_GLANCE_S = 0.005
_TOO_LONG = (-signal.SIGXCPU, -signal.SIGKILL)


@dataclass(frozen=True)
class Limits:
    """Seconds of computing, bytes of memory, and seconds by the clock on a busy machine."""

    cpu_s: int
    memory_bytes: int
    wall_s: float = 60.0

    @property
    def starved(self) -> str:
        """The reason of a child that was ended by the clock."""
        return f"no end within {self.wall_s:.0f} s on a busy machine"


class Ended(Exception):
    """The child was ended at a limit, or ended without an answer."""


class Starved(Ended):
    """The clock ran out before the child had computed for as long as it may: nobody's fault."""


def run(script: Path, given: bytes, limits: Limits) -> bytes:
    """Run a script with `given` on its stdin, and return what it wrote on stdout.

    Raises: Ended when it reached a limit or failed; Starved when that is for want of a processor.
    """
    numbers = (str(limits.cpu_s), str(limits.memory_bytes))
    # -P keeps modules of the current folder, which may be a model's, from being imported.
    command = [sys.executable, "-P", __file__, str(script), *numbers]
    with tempfile.TemporaryFile() as inward, tempfile.TemporaryFile() as outward:
        inward.write(given)
        inward.seek(0)
        process = subprocess.Popen(command, stdin=inward, stdout=outward, stderr=subprocess.DEVNULL)
        with watched(process, limits) as reasons:
            process.wait()
        if reasons:
            raise (Starved if reasons[0] == limits.starved else Ended)(reasons[0])
        if process.returncode in _TOO_LONG:
            raise Ended(f"more than {limits.cpu_s} s of computing")
        if process.returncode:
            raise Ended(f"a process that ended with {process.returncode}")
        outward.seek(0)
        return outward.read()


@contextmanager
def watched(process: "subprocess.Popen[bytes]", limits: Limits) -> Iterator[list[str]]:
    """End a process when it passes a limit of memory or of the clock, or when the block is left.

    A thread watches, so that the block can read from the process. After the block, the list holds
    the reason if the process was ended at a limit.
    """
    reasons: list[str] = []
    watch = threading.Thread(target=_watch, args=(process, limits, reasons), daemon=True)
    watch.start()
    try:
        yield reasons
        process.wait()
    finally:
        process.kill()
        process.wait()
        watch.join()


def _watch(process: "subprocess.Popen[bytes]", limits: Limits, reasons: list[str]) -> None:
    """Wait for a process to end, or end it and add the reason."""
    deadline = time.monotonic() + limits.wall_s
    while not reasons:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GLANCE_S)
            return
        if _resident_bytes(process.pid) > limits.memory_bytes:
            reasons.append(f"more than {limits.memory_bytes / 1e6:.0f} MB of memory")
        elif time.monotonic() > deadline:
            reasons.append(limits.starved)
    process.kill()


def _resident_bytes(pid: int) -> int:
    import psutil  # the child starts faster without

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has ended
        return 0


def _limit_self(cpu_s: int, memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


if __name__ == "__main__":
    _limit_self(int(sys.argv[2]), int(sys.argv[3]))
    runpy.run_path(sys.argv[1], run_name="__main__")
