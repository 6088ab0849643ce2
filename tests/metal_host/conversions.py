"""Conversions to bfloat that nobody wrote: errors in Metal, warnings or nothing in clang."""

import re

from . import toolchain
from .runtime import Program
from .toolchain import is_about_kernel

BFLOAT = re.compile(r"\b(bfloat|__bf16)")
LOST = re.compile(
    r"warning: implicit conversion (?:.*?)(?:'[^']*'(?: \(aka '[^']*'\))? )?"
    r"to ('[^']*'(?: \(aka '[^']*'\))?)"
)
PLACE = re.compile(r"<(?:([^<>:]+):(\d+):|line:(\d+):)")
HIDDEN_CAST = re.compile(r"<FloatingCast>(?!.*part_of_explicit_cast)")


def lossy(warnings: str) -> list[str]:
    """Pick warnings about float or half that becomes bfloat; integers may."""
    return [
        line
        for line in warnings.splitlines()
        if is_about_kernel(line)
        and "loses floating-point precision" in line
        and (match := LOST.search(line))
        and BFLOAT.search(match.group(1))
    ]


def hidden(program: Program) -> list[str]:
    """Find casts to bfloat that clang adds within a kernel, those of constants included."""
    found = set()
    place = "?"
    tree = toolchain.dump_syntax_tree(
        program.head, program.tail, program.build, program.kernel.name
    )
    for line in tree.splitlines():
        if match := PLACE.search(line):
            file, file_line, line_alone = match.groups()
            place = f"{file}:{file_line}" if file else f"line {line_alone}"
        if "ImplicitCastExpr" in line and "__bf16'" in line and HIDDEN_CAST.search(line):
            found.add(f"{place}: error: implicit conversion to bfloat")
    return sorted(found)
