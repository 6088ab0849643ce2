"""Threadgroup variables: clang has them for C kernels only, so they become references."""

from typing import NamedTuple

from .tokens import Tokens
from .unit import Unit

STATEMENT_STARTS = (";", "{", "}", "", ":")
QUALIFIERS = ("const", "volatile", "static")


class Declaration(NamedTuple):
    """`threadgroup T a[8], b = 1;` as the type, and for each name its dimensions."""

    kind: str
    names: list[tuple[str, str]]
    end: int
    has_initialiser: bool


def place_threadgroup_variables(tokens: Tokens, unit: Unit) -> None:
    """`threadgroup float a[32];` -> a reference to memory that the runtime keeps.

    Roughly `__local float (&a)[32] = *(... *)msl_threadgroup_variable(1, sizeof, alignof);`. The
    number names the variable in findings; pointers to threadgroup memory are left alone.
    """
    for position, word in tokens.words():
        if word != "threadgroup" or not starts_statement(tokens, position):
            continue
        declaration = read_declaration(tokens, position)
        if declaration is None:
            continue
        if declaration.has_initialiser:
            unit.complaints.append(
                f"{tokens.where(position)}: error: a threadgroup variable cannot be initialised"
            )
        statements = [refer(unit, declaration.kind, *named) for named in declaration.names]
        start = position
        while tokens[tokens.before(start)] in QUALIFIERS:
            start = tokens.before(start)
        tokens.erase(start, declaration.end + 1)
        tokens.items[position].kind = "raw"
        tokens[position] = " ".join(statements)


def starts_statement(tokens: Tokens, position: int) -> bool:
    """Return whether a declaration begins here, after `const` or `alignas(16)` perhaps."""
    before = tokens.before(position)
    while tokens[before] in QUALIFIERS:
        before = tokens.before(before)
    if tokens[before] == ")":
        word = tokens.before(tokens.opening(before, "(", ")"))
        if tokens[word] == "alignas":
            before = tokens.before(word)
    return tokens[before] in STATEMENT_STARTS or tokens[before].endswith(";")


def read_declaration(tokens: Tokens, position: int) -> Declaration | None:
    """Read the declaration that begins at `threadgroup`; None when it declares no variable."""
    end = initialiser = position
    while tokens[end] != ";":
        if tokens[end] == "=" and initialiser == position:
            initialiser = end
        elif tokens[end] == "{" and initialiser > position:
            end = tokens.closing(end, "{", "}")
        elif tokens[end] == "(" and tokens[tokens.before(end)] in ("alignas", "decltype", "sizeof"):
            end = tokens.closing(end, "(", ")")
        elif tokens[end] == "[":
            end = tokens.closing(end, "[", "]")
        elif tokens[end] in ("(", "{", "}", ""):
            return None
        end = tokens.after(end)
    has_initialiser = initialiser > position
    stop = initialiser if has_initialiser else end
    parts = split_names(tokens, tokens.significant(tokens.after(position), stop))
    if parts is None:
        return None
    first = parts[0]
    bracket = next((i for i, place in enumerate(first) if is_outer_bracket(tokens, first, i)), None)
    name = (len(first) if bracket is None else bracket) - 1
    kind = " ".join(tokens[place] for place in first[:name])
    parts[0] = first[name:]
    names = [
        (tokens[part[0]], " ".join(tokens[place] for place in part[1:])) for part in parts if part
    ]
    return Declaration(kind, names, end, has_initialiser)


def is_outer_bracket(tokens: Tokens, places: list[int], index: int) -> bool:
    """Return whether a `[` opens a dimension rather than lies within template arguments."""
    texts = [tokens[place] for place in places[:index]]
    return tokens[places[index]] == "[" and texts.count("<") == texts.count(">")


def split_names(tokens: Tokens, places: list[int]) -> list[list[int]] | None:
    """Split at the commas between declared names; None for pointers and references."""
    parts: list[list[int]] = [[]]
    depth = 0
    for place in places:
        text = tokens[place]
        depth += (text in ("<", "[", "(")) - (text in (">", "]", ")"))
        if text in ("*", "&") and not depth:
            return None
        if text == "," and not depth:
            parts.append([])
        else:
            parts[-1].append(place)
    return parts


def refer(unit: Unit, kind: str, name: str, dimensions: str) -> str:
    """Declare a reference to the runtime's memory for one variable."""
    number = len(unit.variables) + 1
    unit.variables[number] = name
    alias = f"msl_variable_{number}"
    asked = f"msl_threadgroup_variable({number}, sizeof({alias}), alignof({kind}))"
    return (
        f"typedef {kind} {alias}{' ' * bool(dimensions)}{dimensions}; "
        f"__local {alias} &{name} = *(__local {alias} *)(ulong){asked};"
    )
