"""Run what cannot be trusted in a child process that has limits of time and memory.

This file is also what the child runs: it takes the limits upon itself and then runs the script.
It imports nothing of ours, so that the child starts in a moment. Linux enforces both limits;
macOS enforces the time alone, so the parent watches the memory.
"""

import contextlib
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_GLANCE_S = 0.02
_TOO_LONG = (-signal.SIGXCPU, -signal.SIGKILL)


@dataclass(frozen=True)
class Limits:
    """Seconds of computing, bytes of memory, and seconds by the clock on a busy machine."""

    cpu_s: int
    memory_bytes: int
    wall_s: float = 60.0


class Ended(Exception):
    """The child was ended at a limit, or ended without an answer."""


def run(script: Path, given: bytes, limits: Limits) -> bytes:
    """Run a script with `given` on its stdin, and return what it wrote on stdout.

    Raises: Ended when it reached a limit or failed.
    """
    numbers = (str(limits.cpu_s), str(limits.memory_bytes))
    # -P keeps modules of the current folder, which may be a model's, from being imported.
    command = [sys.executable, "-P", __file__, str(script), *numbers]
    with tempfile.TemporaryFile() as inward, tempfile.TemporaryFile() as outward:
        inward.write(given)
        inward.seek(0)
        with subprocess.Popen(
            command, stdin=inward, stdout=outward, stderr=subprocess.DEVNULL
        ) as process:
            try:
                _watch(process, limits)
            finally:
                process.kill()
        if process.returncode in _TOO_LONG:
            raise Ended(f"more than {limits.cpu_s} s of computing")
        if process.returncode:
            raise Ended(f"a process that ended with {process.returncode}")
        outward.seek(0)
        return outward.read()


def _watch(process: "subprocess.Popen[bytes]", limits: Limits) -> None:
    """Wait for a process to end.

    Raises: Ended at a limit.
    """
    deadline = time.monotonic() + limits.wall_s
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GLANCE_S)
            return
        if _resident_bytes(process.pid) > limits.memory_bytes:
            raise Ended(f"more than {limits.memory_bytes >> 20} MB of memory")
        if time.monotonic() > deadline:
            raise Ended(f"more than {limits.wall_s:.0f} s")


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
