"""The compiler: clang and lld out of the `ziglang` wheel, and a cache of what they have built.

Everything built lies in the user's cache folder, named after all that went into it.
"""

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import mlx.core as mx

from .findings import CompileError, Kind

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
NATIVE = HERE / "native"
MLX_INCLUDE = Path(mx.__file__).parent / "include"
MLX_KERNELS = "mlx/backend/metal/kernels"

# Names under which kernels include the Metal library; msl.h holds it all.
LIBRARY_HEADERS = [
    "metal_array",
    "metal_assert",
    "metal_atomic",
    "metal_common",
    "metal_compute",
    "metal_config",
    "metal_extended_vector",
    "metal_geometric",
    "metal_integer",
    "metal_limits",
    "metal_logging",
    "metal_math",
    "metal_matrix",
    "metal_pack",
    "metal_quadgroup",
    "metal_relational",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_stdlib",
    "metal_type_traits",
    "metal_types",
    "simd/simd.h",
]

TARGET = ["-target", "x86_64-linux-gnu", "-march=x86-64-v3"]
CPU_FEATURES = {"avx2", "fma", "f16c"}
LANGUAGE = [
    *("-x", "cl", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant"),
    *("-Xclang", "-cl-ext=-cl_khr_fp64,-__opencl_c_fp64"),
]
KINDS = [f"-DKIND_{kind.name}={kind.value}" for kind in Kind]
SILENCED = [
    f"-Wno-{name}"
    for name in [
        "unknown-attributes",
        "static-float-init",
        "unused-value",
        "ignored-attributes",
        "unknown-pragmas",
        "pass-failed",
        "gcc-compat",
        "psabi",
        "duplicate-decl-specifier",
    ]
]
# Precision: every operation rounds to its type, as on the GPU; -Wconversion finds lost bfloats.
KERNEL = [
    *("-fPIC", "-fno-exceptions", "-fno-math-errno", "-fno-optimize-sibling-calls"),
    *("-Xclang", "-ffloat16-excess-precision=none"),
    *("-Xclang", "-fbfloat16-excess-precision=none"),
    *("-Wconversion", "-Wno-sign-conversion", "-ferror-limit=50", "-ftemplate-backtrace-limit=6"),
    "-gline-tables-only",
]
# Kernel-address instrumentation calls the runtime at every access and needs no library.
WATCHED = [
    *("-O1", "-fno-vectorize", "-fno-slp-vectorize", "-ftrivial-auto-var-init=pattern"),
    *("-fsanitize=kernel-address", "-fsanitize-recover=all"),
    *("-mllvm", "-asan-instrumentation-with-call-threshold=0"),
    *("-mllvm", "-asan-stack=0", "-mllvm", "-asan-globals=0"),
    *("-mllvm", "-asan-kernel-mem-intrinsic-prefix=1", "-mllvm", "-asan-constructor-kind=none"),
    "-fsanitize=alignment,array-bounds,integer-divide-by-zero,shift,unreachable,"
    "float-cast-overflow,null,builtin",
]
UNWATCHED = ["-O2"]
RELAXED_MATH = ["-ffast-math", "-ffp-contract=fast"]
SAFE_MATH = ["-ffp-contract=off"]

RUNTIME = [
    *("-O2", "-std=gnu2x", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    "-D__GLIBC_MINOR__=28",
]
LIBC_HEADERS = ["include"] + [
    f"libc/include/{name}"
    for name in ("x86-linux-gnu", "generic-glibc", "x86-linux-any", "any-linux-any")
]

ERROR = re.compile(r"\S+?:\d+:\d+: (?:fatal )?error:")
MOST_ERRORS = 12


def missing() -> str:
    """Return why kernels cannot be run here; "" when they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the Metal host needs Linux on x86-64, this is {sys.platform}"
    if not find_spec("ziglang") or not find_spec("elftools"):
        return "the Metal host needs ziglang and pyelftools: pip install -e '.[test]'"
    flags = Path("/proc/cpuinfo").read_text()
    if not set(flags.split()) >= CPU_FEATURES:
        return f"the Metal host needs a CPU with {', '.join(sorted(CPU_FEATURES))}"
    return ""


class Build(NamedTuple):
    """How a kernel is compiled."""

    is_watched: bool = True
    is_safe_math: bool = True
    has_jitter: bool = False

    def flags(self) -> list[str]:
        flags = list(WATCHED if self.is_watched else UNWATCHED)
        flags += SAFE_MATH if self.is_safe_math else RELAXED_MATH
        return flags + ["-DMSL_JITTER"] * self.has_jitter


class Compiled(NamedTuple):
    """A shared object, and what the compiler said."""

    path: Path
    warnings: str


@cache
def zig() -> str:
    return str(files("ziglang") / "zig")


@cache
def cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = base / "hlwq-mlx" / "metal-host"
    for name in LIBRARY_HEADERS:
        header = folder / "include" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.touch()
    return folder


def run(arguments: Iterable[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    folder = str(cache_folder() / "zig")
    environment = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
    result = subprocess.run(
        [zig(), *arguments],
        input=text,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    if result.returncode:
        raise CompileError(keep_errors(result.stderr))
    return result


def keep_errors(messages: str) -> str:
    """Keep errors with their notes and drop warnings."""
    blocks = re.split(r"(?m)^(?=\S+?:\d+:\d+: (?:error|warning|fatal error):)", messages)
    return "\n".join([block for block in blocks if ERROR.match(block)][:MOST_ERRORS]) or messages


def is_about_kernel(message: str) -> bool:
    """Return whether a message is about a kernel's own text, not MLX's headers or our library."""
    return not message.startswith((str(MLX_INCLUDE), str(INCLUDE)))


def digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else part.encode())
        total.update(b"\0")
    return total.hexdigest()[:24]


@cache
def contents(folder: Path) -> str:
    """Digest the compiler's version and all files of a folder of ours."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest(run(["version"]).stdout, *(path.read_bytes() for path in paths))


@cache
def contents_of_host() -> str:
    """Digest all that decides what a kernel's text becomes: our code and library, MLX's headers."""
    sources = [path for path in sorted(HERE.rglob("*.py")) if not path.name.startswith("test_")]
    ours = digest(*(path.read_bytes() for path in sources))
    return digest(ours, contents(INCLUDE), contents(MLX_INCLUDE))


def program_path(*parts: str) -> Path:
    """Return where a program is kept that was compiled from these parts and found sound."""
    return cache_folder() / f"program-{digest(contents_of_host(), *parts)}.pickle"


@cache
def build_runtime() -> Path:
    """Build the runtime once for each version of its source.

    Straight with clang and lld, for `zig cc` would build parts of libc first; what the runtime
    takes from libc is found in the process that loads it.
    """
    flags = [*TARGET, *RUNTIME, *KINDS, f"-I{INCLUDE}", "-nostdinc"]
    for folder in LIBC_HEADERS:
        flags += ["-isystem", str(Path(zig()).parent / "lib" / folder)]
    key = digest(contents(NATIVE), (INCLUDE / "layout.h").read_bytes(), *flags)
    path = cache_folder() / f"runtime-{key}.so"
    if path.exists():
        return path
    with TemporaryDirectory(dir=cache_folder()) as folder:
        objects = [f"{folder}/{source.stem}.o" for source in sorted(NATIVE.glob("*.c"))]
        for source, target in zip(sorted(NATIVE.glob("*.c")), objects, strict=True):
            run(["clang", *flags, "-c", str(source), "-o", target])
        run(["ld.lld", "-shared", *objects, "-o", f"{folder}/runtime.so"])
        Path(f"{folder}/runtime.so").rename(path)
    return path


def preprocess(text: str) -> str:
    """Expand a text's macros and includes, the Metal library's aside."""
    folders = ["-I", str(cache_folder() / "include"), "-I", str(MLX_INCLUDE)]
    command = ["clang", *LANGUAGE, *SILENCED, *TARGET, "-nostdinc", "-E", *folders]
    return run([*command, "-include", str(INCLUDE / "macros.h"), "-"], text).stdout


def compile_head(head: str, build: Build) -> tuple[list[str], str]:
    """Compile msl.h and the part of a text that many kernels share, ahead of them.

    Returns the flags with which to compile what follows, and a digest of all that went in.
    """
    flags = [*LANGUAGE, *SILENCED, *TARGET, *KERNEL, *KINDS, *build.flags()]
    library = ["-include", str(INCLUDE / "msl.h"), "-Xclang", "-fno-pch-timestamp"]
    key = digest(head, contents(INCLUDE), *flags, *library)
    path = cache_folder() / f"head-{key}.pch"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        as_header = ["cl-header" if flag == "cl" else flag for flag in flags]
        run(["clang", *as_header, *library, "-c", "-", "-o", str(partial)], head)
        partial.rename(path)
    return [*flags, "-include-pch", str(path)], key


def compile_kernel(head: str, tail: str, build: Build) -> Compiled:
    """Compile rewritten text, of which the head is shared with other kernels."""
    flags, head_key = compile_head(head, build)
    path = cache_folder() / f"kernel-{digest(head_key, tail)}.so"
    warnings = path.with_suffix(".txt")
    if path.exists() and warnings.exists():
        return Compiled(path, warnings.read_text())
    partial = path.with_suffix(f".{os.getpid()}")
    result = run(["clang", *flags, "-c", "-", "-o", f"{partial}.o"], tail)
    run(["ld.lld", "-shared", f"{partial}.o", "-o", str(partial)])
    Path(f"{partial}.o").unlink()
    warnings.write_text(result.stderr)
    partial.rename(path)
    return Compiled(path, result.stderr)


def dump_syntax_tree(head: str, tail: str, build: Build, function: str) -> str:
    """Print clang's syntax tree of one function of a rewritten text."""
    flags, _ = compile_head(head, build)
    dump = ["-Xclang", "-ast-dump", "-Xclang", f"-ast-dump-filter={function}"]
    return run(["clang", *flags, "-w", "-fsyntax-only", *dump, "-"], tail).stdout
