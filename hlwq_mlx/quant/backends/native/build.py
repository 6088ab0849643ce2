"""Compile the library of `source/` once a machine, into the cache.

    python -m hlwq_mlx.quant.backends.native.build

Its name holds a digest of all that it is made from, so another version compiles its own, even
where a wheel brought one (scripts/wheel_hook.py). Beside it lies the digest of its own bytes, by
which one that was damaged is told: to load that would end the process. Nothing is downloaded. The
compiler is $CXX, the machine's own, or that of the package ziglang.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from ....disk import failures
from ....disk.atomic import place, scratch
from ....disk.cache import CACHE_VARIABLE, cache_folder
from ....disk.sizes import format_bytes
from ....errors import DeviceError

SOURCE = Path(__file__).parent / "source"
COMMON = ("pool", "library", "coding")
PRODUCTS = "products"  # is compiled for each kind of instructions
# The plainest come first: of a function that all of them have, the linker keeps the first.
INSTRUCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "portable": (),
        "avx2": ("-march=x86-64-v3",),
        "avx512": ("-march=x86-64-v4", "-mavx512vbmi", "-mavx512vnni"),
    },
    "arm64": {"portable": (), "neon": ()},
}
NAMES = {"amd64": "x86_64", "aarch64": "arm64"}
# No contraction: whether a product is rounded before it is added is for the source to say.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-w")
PATIENCE_S = 600
MOST_SAID = 300  # characters of what a compiler says
ROOM_BYTES = 1 << 27  # for what is made on the way, too: zig makes 93 MB
# With -P, nothing is imported from the current folder, which may be a model's.
PYTHON = (sys.executable, "-P", "-m")
# Zig would compile for this very processor, and spells the names of others in its own way.
ZIG = (*PYTHON, "ziglang", "c++", "-mcpu=baseline")
# Where compilers write on the way. Without a home that can be written, zig would try for ever.
SCRATCH_VARIABLES = ("TMPDIR", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")
ADVICE = "Install a C++ compiler (g++ or clang++), or: pip install ziglang."


def machine() -> str:
    """Return this processor's kind."""
    name = platform.machine().lower()
    return NAMES.get(name, name)


def library_path() -> Path:
    """Return where the library lies once it is built."""
    return cache_folder() / "native" / f"hlwq-{_digest()}.so"


def shipped_path() -> Path:
    """Return where it lies if the wheel brought it."""
    return Path(__file__).with_name(library_path().name)


def is_there() -> bool:
    """Return whether nothing has to be compiled."""
    return is_whole(shipped_path()) or is_whole(library_path())


def is_whole(library: Path) -> bool:
    """Return whether a library is there, and every byte of it as it was made."""
    try:
        return sum_path(library).read_text() == _sum(library)
    except (OSError, ValueError):
        return False


def sum_path(library: Path) -> Path:
    """Return where the digest of a library's bytes lies."""
    return library.with_suffix(".sha256")


def _sum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


@cache
def _digest() -> str:
    digest = hashlib.sha256(repr((FLAGS, ZIG[-1], machine(), sys.platform, INSTRUCTIONS)).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> list[str] | None:
    """Return the command that compiles C++ here, if there is one.

    Raises: DeviceError for a $CXX that is no command.
    """
    text = os.environ.get("CXX", "")
    try:
        given = shlex.split(text)
    except ValueError as exc:
        raise DeviceError(f"[CXX] needed a command, got {text}: {exc}. Unset it.") from exc
    if given:
        return given
    if sys.platform != "darwin" or _has_tools():
        for name in ("c++", "g++", "clang++"):
            if path := shutil.which(name):
                return [path]
    return [*ZIG] if find_spec("ziglang") else None


def _require_compiler() -> list[str]:
    found = compiler()
    if found is None:
        raise DeviceError(f"[native] needed a C++ compiler, got none. {ADVICE}")
    return found


def _has_tools() -> bool:
    # Without Apple's tools, /usr/bin/c++ is a stub that opens a window and asks for them.
    found = subprocess.run(["xcode-select", "-p"], capture_output=True, check=False)
    return found.returncode == 0


def build(flags: Sequence[str] = (), target: Path | None = None) -> Path:
    """Return the path of the library, which is compiled unless it is there.

    `flags` are added for a library of another name, `target`, by tests of the source.
    Raises: DeviceError without a compiler, or with what the compiler says.
    """
    path = target or library_path()
    if is_whole(path):
        return path
    command = _require_compiler()
    with _alone(path):
        if not is_whole(path):  # another process may have built it meanwhile
            path.unlink(missing_ok=True)
            with scratch(path) as folder:
                made = _compile([*command, *FLAGS, *flags], folder)
                own = made.with_name("sum")
                own.write_text(_sum(made))
                place(own, sum_path(path))
                place(made, path)
    return path


def _compile(command: list[str], folder: Path) -> Path:
    units = [(name, SOURCE / f"{name}.cpp", ()) for name in COMMON] + [
        (name, SOURCE / f"{PRODUCTS}.cpp", (f"-DISA={name}", *_spelt(flags, command)))
        for name, flags in INSTRUCTIONS.get(machine(), {"portable": ()}).items()
    ]
    objects = [folder / f"{name}.o" for name, *_ in units]
    commands = [
        [*command, *flags, "-c", str(source), "-o", str(made)]
        for (_, source, flags), made in zip(units, objects, strict=True)
    ]
    run = partial(_run, folder)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        list(threads.map(run, commands))
    made = folder / "library.so"
    run([*command, "-shared", *map(str, objects), "-o", str(made), "-lpthread"])
    return made


def _spelt(flags: Sequence[str], command: Sequence[str]) -> list[str]:
    is_zig = tuple(command[: len(ZIG)]) == ZIG
    return [flag.replace("x86-64-", "x86_64_") if is_zig else flag for flag in flags]


def _run(folder: Path, command: list[str]) -> None:
    """Run a compiler, which leaves nothing outside of a folder that will be removed.

    Raises: DeviceError with what it says, in one line.
    """
    own = dict.fromkeys(SCRATCH_VARIABLES, str(folder))
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            env=os.environ | own,
            check=False,
        )
    except OSError as exc:
        cause = failures.cause(exc)
    except subprocess.TimeoutExpired:
        cause = f"no end within {PATIENCE_S} s"
    else:
        if ran.returncode == 0:
            return
        said = ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"]
        line = next((line for line in said if "error" in line.lower()), said[-1])
        cause = line.strip()[:MOST_SAID]
    raise DeviceError(
        f"[native] needed a library from {command[0]}, got {cause}. Name another compiler by CXX, "
        "or do without the library by HLWQ_NATIVE=0."
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process builds, where the file system has locks.

    Raises: DeviceError where nothing can be written.
    """
    with _lock(path) as handle:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _lock(path: Path) -> TextIO:
    lock = path.with_suffix(".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return lock.open("w")
    except OSError as exc:
        raise DeviceError(
            f"[native] needed to write {lock.parent}, got {failures.cause(exc)}. Name a folder "
            f"that can be written by {CACHE_VARIABLE}."
        ) from exc


def require_buildable() -> None:
    """Refuse to begin with a library that cannot be compiled here.

    Raises: DeviceError, also with what an earlier attempt came to.
    """
    _require_compiler()
    _lock(library_path()).close()
    failed, folder = failure_path(), library_path().parent
    if failed.is_file():
        raise DeviceError(f"{failed.read_text(errors='replace')} Delete {failed} to try again.")
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES:
        raise DeviceError(
            f"[native] needed {format_bytes(ROOM_BYTES)} in {folder}, got {format_bytes(free)} "
            f"free. Free disk space, or name another folder by {CACHE_VARIABLE}."
        )


def build_beside() -> "subprocess.Popen[bytes]":
    """Build the library in a process of its own, for those that start later."""
    return subprocess.Popen(
        [*PYTHON, __spec__.name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it outlives a command that ends before it
    )


def failure_path() -> Path:
    """Return where it is kept why the library could not be compiled, so that nobody tries again."""
    return library_path().with_suffix(".failed")


def main() -> None:
    """Build, after those that answer meanwhile; keep what goes wrong for the next start to tell."""
    os.nice(10)
    try:
        build()
    except DeviceError as exc:
        with suppress(OSError):
            failure_path().write_text(str(exc))
        raise SystemExit(f"error: {exc}") from exc


if __name__ == "__main__":
    main()
