"""Functional casts and conversions: clang takes neither `float4(a, b)` nor half <-> bfloat."""

import re

from .tokens import SCALARS, SPACES, VECTORS, Tokens
from .unit import Unit

TYPE = "|".join(sorted(VECTORS))
ALIAS = re.compile(
    rf"\busing\s+(\w+)\s*=\s*(?:typename\s+)?(?:const\s+)?(?:metal\s*::\s*)?"
    rf"(?:vec\s*<[^;*]*>|(?:{TYPE}))\s*;"
)
TYPEDEF = re.compile(rf"\btypedef\s+(?:metal\s*::\s*)?(?:vec\s*<[^;]*>|(?:{TYPE}))\s+(\w+)\s*;")
BEFORE_DECLARATION = (";", "{", "}", "const", ")", "constexpr", "thread")


def vector_names(text: str) -> set[str]:
    """Find every name of a vector type: built in, and declared in the text."""
    return {"vec", *VECTORS, *ALIAS.findall(text), *TYPEDEF.findall(text)}


def build_vectors(tokens: Tokens, unit: Unit) -> None:
    """`float4(v, 1)` and `static_cast<float4>(v)` -> `::metal::make<float4>(v, 1)`.

    `float4 v(x);` -> `float4 v = ::metal::make<float4>(x);`. Names of vector types are followed.
    """
    del unit
    names = vector_names(str(tokens))
    for position, word in tokens.words():
        if word not in names:
            continue
        start, end = position, position
        if word == "vec" or (word not in VECTORS and tokens[tokens.after(position)] == "<"):
            end = tokens.closing_angle(tokens.after(position))
            if end < 0 or tokens[tokens.after(position)] != "<":
                continue
        if tokens[tokens.before(start)] == "::" and (
            tokens[tokens.before(tokens.before(start))] == "metal"
        ):
            start = tokens.before(tokens.before(start))
        build_vector(tokens, start, end, names)


def build_vector(tokens: Tokens, start: int, end: int, names: set[str]) -> None:
    """Rewrite one mention of a vector type, if it builds a vector."""
    before, after = tokens.before(start), tokens.after(end)
    if tokens[after] == "(" and tokens[before] not in ("operator", "using"):
        tokens[start] = "::metal::make<" + tokens[start]
        tokens[end] += ">"
    elif tokens[before] == "<" and tokens[after] == ">":
        cast = tokens.before(before)
        if tokens[cast] == "static_cast":
            tokens[cast] = "::metal::make"
    elif tokens[before] in BEFORE_DECLARATION and tokens.is_word(after):
        opening = tokens.after(after)
        if tokens[opening] == "(" and is_initialiser(tokens, opening, names):
            tokens[opening] = f" = ::metal::make<{tokens.text(start, end + 1)}>("


def is_initialiser(tokens: Tokens, opening: int, names: set[str]) -> bool:
    """Return whether `(...)` after a declared name initialises it, rather than lists parameters."""
    first = tokens[tokens.after(opening)]
    closing = tokens.closing(opening, "(", ")")
    is_type = first in names or first in SCALARS or first in SPACES or first in ("const", "void")
    return tokens[tokens.after(closing)] == ";" and first != ")" and not is_type


def convert_scalars(tokens: Tokens, unit: Unit) -> None:
    """`static_cast<bfloat>(h)` and `bfloat(h)` -> `::metal::scast<bfloat>(h)`; not for pointers."""
    del unit
    for position, word in tokens.words():
        if word not in ("static_cast", "bfloat", "bfloat16_t"):
            continue
        after = tokens.after(position)
        if word == "static_cast":
            end = tokens.closing_angle(after) if tokens[after] == "<" else -1
            if end > 0 and not re.search(r"[*&]", tokens.text(after, end)):
                tokens[position] = "::metal::scast"
        elif tokens[after] == "(" and tokens[tokens.before(position)] not in ("operator", "::"):
            tokens[position] = f"::metal::scast<{word}>"
