"""Run the native library under sanitizers, and for other processors under an emulator.

    python scripts/kernels/native_checks.py [address threads neon ...]

`address` finds reads and writes out of bounds and undefined behaviour, `threads` finds races, and
`neon` runs the code for ARM under qemu-aarch64 (Debian: qemu-user), compiled by
aarch64-linux-gnu-g++ (g++-aarch64-linux-gnu) or else by ziglang. All compare results with float64.
Each takes a few minutes. What is not installed is said and skipped.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from hlwq_mlx.quant.backends.native import build

DRIVER = Path(__file__).with_name("native_driver.cpp")
CROSS = "aarch64-linux-gnu-g++"
ZIG = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
DEBUG = ("-std=c++17", "-O1", "-g", "-ffp-contract=off", "-w", f"-I{build.SOURCE}")


class Check(NamedTuple):
    """A way to compile and run the driver."""

    compiler: list[str]
    flags: tuple[str, ...]
    machine: str
    runner: tuple[str, ...] = ()


CHECKS = {
    "address": Check(
        ["g++"],
        ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
        build.machine(),
    ),
    "threads": Check(["g++"], ("-fsanitize=thread",), build.machine()),
    # As users compile it, not with -O1; static, for there is no loader of that machine here.
    "neon": Check(
        [CROSS] if shutil.which(CROSS) or not find_spec("ziglang") else ZIG,
        ("-O3", "-static"),
        "arm64",
        ("qemu-aarch64" if shutil.which("qemu-aarch64") else "qemu-aarch64-static",),
    ),
}


def run(name: str) -> int:
    """Compile and run one check; return its exit status, 0 where something is not installed."""
    check = CHECKS[name]
    missing = [tool for tool in (check.compiler[0], *check.runner) if shutil.which(tool) is None]
    if missing:
        print(f"{name}: not run, needs {', '.join(missing)}", flush=True)
        return 0
    with TemporaryDirectory() as folder:
        units = [(path, ()) for path in build.SOURCE.glob("*.cpp") if path.stem != build.PRODUCTS]
        units += [(DRIVER, ())]
        units += [
            (build.SOURCE / f"{build.PRODUCTS}.cpp", (f"-DISA={isa}", *flags))
            for isa, flags in build.INSTRUCTIONS[check.machine].items()
        ]
        objects = [Path(folder, f"{index}.o") for index in range(len(units))]
        command = [*check.compiler, *DEBUG, *check.flags]
        print(f"{name}: compiling", file=sys.stderr, flush=True)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(
                threads.map(
                    lambda unit, made: subprocess.run(
                        [*command, *unit[1], "-c", str(unit[0]), "-o", str(made)], check=True
                    ),
                    units,
                    objects,
                )
            )
        program = Path(folder, "driver")
        linked = [*check.compiler, *check.flags, *map(str, objects), "-o", str(program)]
        subprocess.run([*linked, "-lpthread"], check=True)
        print(f"{name}:", flush=True)
        return subprocess.run([*check.runner, str(program)], check=False).returncode


def main(argv: Sequence[str] | None = None) -> None:
    """Run the checks; the exit status tells whether one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checks", nargs="*", default=list(CHECKS), help="which (default: all)")
    names = parser.parse_args(argv).checks
    if unknown := set(names) - set(CHECKS):
        parser.error(f"needed {', '.join(CHECKS)}, got {', '.join(sorted(unknown))}")
    found = [run(name) for name in names]
    raise SystemExit(any(found))


if __name__ == "__main__":
    main()
