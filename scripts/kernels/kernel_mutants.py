"""Damage the Metal kernels in every small way and say what notices.

Mutants are made from the texts in metal/ by the rules below, each by one change on one line: a
barrier dropped, a mask removed or inverted, a bound or an index shifted. `judge` runs one of them,
in a process of its own, against cases of test_kernels.py; kernel_matrix.py --mutations runs them
all. Not a proof that the kernels are right: that nothing in them is idle and untested.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from signal import SIGKILL
from threading import Timer
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# Where the kernels' tests, their helpers and the Metal host are imported from.
PATHS = [str(ROOT / folder) for folder in (".", "tests", "tests/support", "tests/quant")]
METAL = ROOT / "metal"
TIMEOUT_S = 300

Change = tuple[int, int, str]  # from and to in a line, and what stands there instead
Case = tuple[str, dict[str, Any]]


class Mutant(NamedTuple):
    """One change to one line of a .metal file; `number` counts those of a rule in a line."""

    file: str
    line: int
    rule: str
    number: int
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.rule}:{self.number}"

    @property
    def change(self) -> str:
        """Return old and new text without the line's number, and which of equal lines it is."""
        lines = [line.strip() for line in (METAL / self.file).read_text("ascii").splitlines()]
        text = self.before.strip()
        which = f" (number {lines[: self.line].count(text)})" if lines.count(text) > 1 else ""
        return f"{text}{which} => {self.after.strip()}"

    def text(self) -> str:
        lines = (METAL / self.file).read_text("ascii").splitlines()
        lines[self.line - 1] = self.after
        return "\n".join(lines) + "\n"

    def digest(self, cases: list[Case]) -> str:
        """Return a digest of what a verdict depends on: the sources, the change and the cases."""
        texts = [path.read_text("ascii") for path in sorted(METAL.glob("*.metal"))]
        return hashlib.sha256(repr((texts, self.after, cases)).encode()).hexdigest()[:16]


def drop_barrier(code: str) -> Iterator[Change]:
    if "_barrier(mem_flags" in code:
        yield 0, len(code), ""


def change_condition(code: str) -> Iterator[Change]:
    """Remove, invert and loosen the condition of an `if` or of a choice."""
    found = re.search(r"\bif \((.+)\) \{", code)
    spans = [found.span(1)] if found else []
    spans += [(start_of_choice(code, at.start()), at.start()) for at in re.finditer(r" \? ", code)]
    for start, end in spans:
        condition = code[start:end]
        yield start, end, "true"
        yield start, end, f"!({condition})"
        parts = condition.split(" && ")
        if len(parts) > 1:
            for index in range(len(parts)):
                yield start, end, " && ".join(parts[:index] + parts[index + 1 :])


def start_of_choice(code: str, end: int) -> int:
    """Find where the condition before a question mark begins."""
    depth = 0
    for at in range(end - 1, 0, -1):
        depth += (code[at] in ")]") - (code[at] in "([")
        is_outside = depth < 0 or (not depth and code[: at + 1].endswith((" = ", ", ", "return ")))
        if is_outside:
            return at + 1
    return 0


def remove_bit_mask(code: str) -> Iterator[Change]:
    for found in re.finditer(r" & (?:\d+u?|0x\w+|\(\(1u << \w\) - 1u\))(?=\W)", code):
        yield *found.span(), ""


def shift_bound(code: str) -> Iterator[Change]:
    """Shift ends of loops, compared sizes and what `min` and `clamp` are given."""
    for found in re.finditer(r" - 1u(?=[,)])", code):
        yield *found.span(), ""
        yield *found.span(), " - 2u"
    if "clamp(" in code:
        for found in re.finditer(r"(?<=, )(?:-?[\d.]+f|0x\w+u)(?=[,)])", code):
            one = "1.0f" if found[0].endswith("f") else "1u"
            yield *found.span(), f"{found[0]} + {one}"
            yield *found.span(), f"{found[0]} - {one}"
    for found in re.finditer(r"(?<=[\w)]) < (?=[\w(])", code):
        yield *found.span(), " <= "
    loop = re.search(r"for \(.*?; (?:.* && )?\w+ ([<>]) (.+); (.+)\) \{", code)
    if loop and loop[1] == ">":
        yield *loop.span(2), f"{loop[2]} + 1"
    elif loop:
        yield *loop.span(2), shorter(loop[2], loop[3])


def shorter(end: str, step: str) -> str:
    """Return an end of a loop that leaves out the last step."""
    if "<<=" in step:
        return f"{end} / 2"
    literal = re.search(r"\+= (\d+u)", step)
    return f"{end} - {literal[1] if literal else 1}"


def shift_index(code: str) -> Iterator[Change]:
    """Move a subscript, but not a declaration's size, by one; and a loop's start."""
    declared = r"^\s*(?:const )?(?:float4|float|uint|T|simdgroup_\w+) \w+(?:\[\w+( \* \w+)?\])+"
    sizes = re.match(declared, code)
    for at in range(sizes.end() if sizes else 0, len(code)):
        if code[at] == "]":
            yield at, at, " + 1"
    for found in re.finditer(r"for \(\w+ \w+ = (\w+);", code):
        yield *found.span(1), f"{found[1]} + 1"


RULES: dict[str, Callable[[str], Iterator[Change]]] = {
    "barrier": drop_barrier,
    "mask": change_condition,
    "bits": remove_bit_mask,
    "bound": shift_bound,
    "index": shift_index,
}


def mutants() -> list[Mutant]:
    """Make all mutants, rule by rule, in the order of the files and lines."""
    return [
        Mutant(path.name, line, rule, number, text, text[:start] + put + text[end:])
        for rule, changes in RULES.items()
        for path in sorted(METAL.glob("*.metal"))
        for line, text in enumerate(path.read_text("ascii").splitlines(), 1)
        for number, (start, end, put) in enumerate(changes(text.partition("//")[0].rstrip()))
        if not text.startswith("#")
    ]


def cases_for(file: str) -> list[Case]:
    """Choose what a damaged file is run against: few cases, the quickest to notice first."""
    f32, f16, bf16 = ("float32",) * 2, ("float16",) * 2, ("bfloat16",) * 2

    def decoded(*widths: int, dtype: str = "float32") -> list[Case]:
        return [("dequantize", {"bits": bits, "dtype": dtype, "N": 9}) for bits in widths]

    def qmv(bits: int, M: int, dtypes: tuple[str, str], K: int, N: int, tile: int = 256) -> Case:
        case = {"bits": bits, "M": M, "dtypes": dtypes, "K": K, "N": N, "N_of_tile": tile}
        return "qmv", case

    def qmm(bits: int, M: int, dtypes: tuple[str, str], K: int, N: int) -> Case:
        return "qmm", {"bits": bits, "M": M, "dtypes": dtypes, "K": K, "N": N}

    def rotated(*shape: int, dtypes: tuple[str, str] = f32) -> Case:
        return "hadamard", {"shape": shape, "dtypes": dtypes}

    def residual_norm(K: int, dtypes: tuple[str, str], is_normed: bool, M: int) -> Case:
        return "residual_norm", {"K": K, "dtypes": dtypes, "is_normed": is_normed, "M": M}

    embedded: Case = ("embed", {"bits": 4, "dtype": "float32", "shape": (7,), "ids_dtype": "int32"})
    gelu_mul: Case = ("gelu_mul", {"dtypes": f32})
    geglu: Case = ("geglu", {"bits": 5, "M": 2})
    gathered: Case = ("gather_qmv", {"bits": 3, "M": 3, "k": 2, "dtypes": f32, "K": 384, "N": 33})
    cut = {"dtypes": f32, "K": 128, "N": 9}
    sorted_rows: list[Case] = [
        ("gather_qmm", {"bits": 2, "rows": (33, 0, 5), **cut}),
        ("gather_qmm", {"bits": 2, "rows": (1, 64, 31), **cut}),
    ]
    few = [
        qmv(5, 1, f32, 384, 33),
        qmv(3, 3, f16, 256, 65, 4096),
        qmv(1, 7, ("bfloat16", "float32"), 512, 9),
    ]
    many = [qmm(4, 33, f32, 384, 65), qmm(1, 1, bf16, 128, 9)]
    halves = [rotated(3, 640, dtypes=dtypes) for dtypes in (f16, bf16)]
    return {
        "codes.metal": [*decoded(7, 3, 1, 5, 8, 2, 6), few[0], few[1]],
        "common.metal": [gelu_mul, rotated(3, 640), *halves, *few],
        "dequantize.metal": [
            *decoded(4, 1),
            ("dequantize", {"bits": 2, "dtype": "float16", "N": 11}),
        ],
        "embed.metal": [embedded, ("embed_reads_the_last_row_for_an_id_that_is_none", {})],
        "gather_qmm.metal": sorted_rows,
        "gather_qmv.metal": [
            gathered,
            ("gather_qmv_takes_the_last_expert_for_one_that_is_none", {}),
        ],
        "hadamard.metal": [rotated(3, 640), gelu_mul],
        "qmm.metal": [
            *many,
            *(("qmm_holds_rows_that_float16_does_not", {"scale": s}) for s in (0.0, 1e-30)),
            ("qmm_holds_the_largest_rows", {}),
            *sorted_rows,
        ],
        "qmv.metal": [
            *few,
            qmv(1, 1, f32, 256, 9),
            geglu,
            qmv(2, 8, f32, 1024, 31, 4096),
            gathered,
        ],
        "rotation.metal": [rotated(3, 640), *decoded(4)],
        "residual_norm.metal": [
            residual_norm(1152, bf16, True, 1),
            residual_norm(384, f32, False, 3),
            residual_norm(2560, f16, True, 2),
        ],
    }[file]


def run_case(case: Case) -> str:
    """Run one test of tests/quant/test_kernels.py; return what it complains of, "" for nothing."""
    import mlx.core as mx
    import test_kernels
    from metal_host import CompileError, KernelFault

    def value(given: Any, key: str) -> Any:
        if key == "dtypes":
            return tuple(getattr(mx, name) for name in given)
        return getattr(mx, given) if key.endswith("dtype") else given

    name, arguments = case
    try:
        getattr(test_kernels, f"test_{name}")(**{k: value(v, k) for k, v in arguments.items()})
    except KernelFault as fault:
        return "finding: " + ", ".join(sorted(kind.name for kind in fault.kinds))
    except CompileError as error:
        return f"compiler: {str(error).splitlines()[0].partition('error: ')[2] or 'refused'}"
    except AssertionError as error:
        return f"numbers: {str(error).splitlines()[0] if str(error) else 'not as expected'}"
    return ""


def judge(folder: Path, file: str) -> dict[str, str]:
    """Run the cases for `file` with the texts in `folder` until one complains."""
    from hlwq_mlx.quant import bodies, kernels

    bodies.metal_folder = lambda: folder
    kernels.built.cache_clear()
    for name, arguments in cases_for(file):
        if complaint := run_case((name, arguments)):
            return {"verdict": "killed", "by": complaint, "case": f"{name} {arguments}"}
    return {"verdict": "survived", "by": "", "case": ""}


class Judge:
    """A process that judges one mutant after another, and a new one after a crash or a hang."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, mutant: Mutant) -> dict[str, str]:
        folder = self._work / re.sub(r"\W", "_", mutant.name)
        shutil.copytree(METAL, folder, dirs_exist_ok=True)
        (folder / mutant.file).write_text(mutant.text(), "ascii")
        line, status = self._ask(f"{mutant.file} {folder}\n")
        shutil.rmtree(folder)
        if line:
            verdict: dict[str, str] = json.loads(line)
            return verdict
        if status is None or status >= 0:
            raise RuntimeError(f"[kernel_mutants] needed a verdict on {mutant.name}, got none.")
        by = f"time: no end in {TIMEOUT_S} s" if status == -SIGKILL else f"crash: signal {-status}"
        return {"verdict": "killed", "by": by, "case": ""}

    def _ask(self, question: str) -> tuple[str, int | None]:
        """Return the answer, or else how the process ended."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process = self._process
        assert process.stdin and process.stdout
        process.stdin.write(question)
        process.stdin.flush()
        timer = Timer(TIMEOUT_S, process.kill)
        timer.start()
        answer = process.stdout.readline()
        timer.cancel()
        if answer:
            return answer, None
        self._process = None
        return "", process.wait()

    def close(self) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait()


class Judges:
    """As many judges as are asked at once."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._idle: SimpleQueue[Judge] = SimpleQueue()

    def __call__(self, mutant: Mutant) -> dict[str, Any]:
        try:
            judge = self._idle.get_nowait()
        except Empty:
            judge = Judge(self._work)
        verdict = judge(mutant)
        self._idle.put(judge)
        return {"name": mutant.name, **verdict}

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get().close()


def answer_questions() -> None:
    for question in sys.stdin:
        file, _, folder = question.rstrip("\n").partition(" ")
        print(json.dumps(judge(Path(folder), file)), flush=True)


if __name__ == "__main__":
    sys.path[:0] = PATHS
    answer_questions()
