"""What Apple's compiler refuses and clang's C++ for OpenCL lets pass."""

from .tokens import SCALARS, SPACES, VECTORS, Tokens
from .unit import Unit

ABSENT = frozenset(
    [
        "goto",
        "asm",
        "dynamic_cast",
        "typeid",
        "throw",
        "try",
        "new",
        "delete",
        "register",
        "thread_local",
        "virtual",
        "double",
    ]
)
SUSPECT = ABSENT | {"std", "long"}
BUILT_IN = (
    frozenset(SCALARS)
    | VECTORS
    | {f"{sign}int{bits}_t" for sign in ("u", "") for bits in (8, 16, 32, 64)}
    | {"size_t", "T", "U"}
)
QUALIFIERS = frozenset(["const", "volatile", "constexpr", "static", "packed", "metal", "::"]) | set(
    SPACES
)


def complain(tokens: Tokens, unit: Unit) -> None:
    """Record words that Metal lacks, and pointers and references without an address space.

    `const float* p = x;` -> "kernel:1: error: `float* p` has no address space".
    """
    for position, word in tokens.words():
        complaint = about_word(tokens, position, word) or about_pointer(tokens, position, word)
        if complaint:
            unit.complaints.append(f"{tokens.where(position)}: error: {complaint}")


def about_word(tokens: Tokens, position: int, word: str) -> str:
    if word not in SUSPECT:
        return ""
    before, after = tokens[tokens.before(position)], tokens[tokens.after(position)]
    if word == "std":
        return "no std:: library in MSL" if after == "::" else ""
    if word == "long":
        return "`long long` is not available in MSL" if after == "long" else ""
    is_declared = before in ("operator", "=") and after in ("(", ";", "[")
    if word in ("new", "delete") and is_declared:
        return ""
    return f"`{word}` is not available in MSL"


def about_pointer(tokens: Tokens, position: int, word: str) -> str:
    """Judge `T* name` and `T& name` where a parameter or a variable is declared."""
    if word not in BUILT_IN:
        return ""
    mark = tokens.after(position)
    name = tokens.after(mark)
    if tokens[mark] not in ("*", "&") or not tokens.is_word(name):
        return ""
    before = tokens.before(position)
    spaces = {tokens[name]} & set(SPACES)
    while tokens[before] in QUALIFIERS:
        spaces |= {tokens[before]} & set(SPACES)
        before = tokens.before(before)
    opens_statement = tokens[before] in (";", "{", "}")
    opens_parameter = tokens[before] in ("(", ",") and tokens[name] not in BUILT_IN
    ends = (",", ")", "=") + ((";", "[") if opens_statement else ())
    is_declaration = (opens_statement or opens_parameter) and tokens[tokens.after(name)] in ends
    if spaces or not is_declaration:
        return ""
    return f"`{word}{tokens[mark]} {tokens[name]}` has no address space"
