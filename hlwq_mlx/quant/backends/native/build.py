"""Compile the library of `source/` once a machine, into the cache.

    python -m hlwq_mlx.quant.backends.native.build

Its name holds a digest of all that it is made from, so another version compiles its own, even
where a wheel brought one (scripts/wheel_hook.py). Nothing is downloaded. The compiler is $CXX, the
machine's own, or that of the package ziglang.
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
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ....disk.cache import cache_folder
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
# With -P, nothing is imported from the current folder, which may be a model's.
PYTHON = (sys.executable, "-P", "-m")
# Zig would compile for this very processor, and spells the names of others in its own way.
ZIG = (*PYTHON, "ziglang", "c++", "-mcpu=baseline")
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
    return shipped_path().is_file() or library_path().is_file()


@cache
def _digest() -> str:
    digest = hashlib.sha256(repr((FLAGS, ZIG[-1], machine(), sys.platform, INSTRUCTIONS)).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compiler() -> list[str] | None:
    """Return the command that compiles C++ here, if there is one."""
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given
    if sys.platform != "darwin" or _has_tools():
        for name in ("c++", "g++", "clang++"):
            if path := shutil.which(name):
                return [path]
    return [*ZIG] if find_spec("ziglang") else None


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
    if path.is_file():
        return path
    command = compiler()
    if command is None:
        raise DeviceError(f"[native] needed a C++ compiler, got none. {ADVICE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_suffix(".lock")):
        if not path.is_file():  # another process may have built it meanwhile
            with TemporaryDirectory(dir=path.parent) as folder:
                made = _compile([*command, *FLAGS, *flags], Path(folder))
                made.replace(path)
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
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        list(threads.map(_run, commands))
    made = folder / "library.so"
    _run([*command, "-shared", *map(str, objects), "-o", str(made), "-lpthread"])
    return made


def _spelt(flags: Sequence[str], command: Sequence[str]) -> list[str]:
    is_zig = tuple(command[: len(ZIG)]) == ZIG
    return [flag.replace("x86-64-", "x86_64_") if is_zig else flag for flag in flags]


def _run(command: list[str]) -> None:
    try:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        said = (getattr(exc, "stderr", None) or "")[-2000:]
        raise DeviceError(
            f"[native] needed a library from {' '.join(command)}, got: {exc} {said} Name another "
            "compiler by CXX, or do without the library by HLWQ_NATIVE=0."
        ) from exc


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process builds."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


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
        failure_path().write_text(str(exc))


if __name__ == "__main__":
    main()
