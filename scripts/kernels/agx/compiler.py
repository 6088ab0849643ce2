"""Mesa's offline compiler for Apple's G13, in the folder where `setup_compiler` has put it.

Text goes through clang (to LLVM), llvm-spirv (to SPIR-V) and asahi_clc (to G13), all in a Debian of
its own under the folder, so it needs root.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.kernels.kernel_mutants import ROOT

from .listing import Counts, read
from .programs import Program

HERE = Path(__file__).parent
LIBRARY = ROOT / "tests" / "metal_host" / "include" / "msl"
ASAHI_CLC = "build/b/src/asahi/clc/asahi_clc"

CLANG = [
    *("clang-19", "-x", "cl", "-cl-std=clc++2021", "-cl-no-stdinc", "-nostdinc"),
    *("-cl-single-precision-constant", "-Xclang", "-cl-ext=-cl_khr_fp64,-__opencl_c_fp64"),
    *("-target", "spir64-unknown-unknown", "-O2", "-fno-vectorize", "-fno-slp-vectorize", "-w"),
    # asahi_clc reads the names of a kernel's parameters.
    "-fno-discard-value-names",
    # It splits a load of two halves in two, which Apple's front end does not.
    *("-mllvm", "-disable-vector-combine"),
]
# Apple contracts within an expression; ours says fma where it means one.
OURS = ["-ffp-contract=off"]
MLX = ["-ffp-contract=fast", "-mllvm", "-unroll-threshold=4000"]
SPIRV = ["llvm-spirv-19", "--spirv-max-version=1.4", "--spirv-ext=-all"]


def default_folder() -> Path:
    """Return the folder beside the Metal host's: in the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "hlwq-mlx" / "agx"


def missing(folder: Path) -> str:
    """Return why nothing can be compiled; "" when it can."""
    if not (folder / "root" / ASAHI_CLC).exists():
        return f"there is no compiler in {folder}; scripts/kernels/agx/setup_compiler builds one"
    if os.geteuid():
        return "the compiler lies in a system of its own, and entering that needs root"
    return ""


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """Make a folder that the compiler sees, with the Metal library's part in it."""
    with TemporaryDirectory(dir=folder / "root" / "tmp") as name:
        shutil.copy(HERE / "agx_msl.h", name)
        shutil.copytree(LIBRARY, Path(name) / "msl")
        yield Path(name)


def compile_program(folder: Path, work: Path, program: Program) -> tuple[str, str]:
    """Compile a program; return the listing and the statistics.

    Raises: RuntimeError with what a compiler said where one refuses.
    """
    source = work / (re.sub(r"\W+", "_", program.name) + ".clcpp")
    source.write_text('#include "agx_msl.h"\n' + program.text())
    bitcode, spirv = source.with_suffix(".bc").name, source.with_suffix(".spv").name
    contraction = "fast" if program.is_mlx else "off"
    flags = [*CLANG, *(MLX if program.is_mlx else OURS), "-I."]
    steps = [
        [*flags, "-emit-llvm", "-c", source.name, "-o", bitcode],
        [*SPIRV, f"--spirv-fp-contract={contraction}", bitcode, "-o", spirv],
        ["/" + ASAHI_CLC, spirv, f"{spirv}.h", f"{spirv}.c"],
    ]
    root = folder / "root"
    place = "/" + str(work.relative_to(root))
    for step in steps:
        done = subprocess.run(
            ["chroot", str(root), "env", "-C", place, *step],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "AGX_MESA_DEBUG": "shaders,internal,shaderdb"},
            check=False,
        )
        if done.returncode:
            said = (done.stderr or done.stdout)[-2000:]
            raise RuntimeError(f"[agx] needed {program.name} compiled, got from {step[0]}: {said}")
    return done.stdout, done.stderr


def count(folder: Path, work: Path, program: Program) -> Counts:
    """Compile a program and read what it costs."""
    texts = compile_program(folder, work, program)
    return read(*texts, program.weights, is_loop=program.is_loop)
