"""Words that the two languages spell differently."""

import re

from .tokens import SPACES, Tokens
from .unit import Unit

# Words of OpenCL that Metal code may use as names.
RESERVED = frozenset(
    [
        "local",
        "global",
        "generic",
        "pipe",
        "read_only",
        "write_only",
        "read_write",
        "event_t",
        "sampler_t",
        "vec_step",
        "private_",
        "image2d_t",
        "queue_t",
    ]
)
REWRITTEN = (
    {word: word + "_" for word in RESERVED}
    | SPACES
    | {"as_type": "::metal::as_type_", "atomic": "atomic_"}
)
CLASS_NAME = re.compile(
    r"\b(?:struct|class)\s+(?:alignas\s*\([^()]*(?:\([^()]*\))?[^()]*\)\s*)?([A-Za-z_]\w*)"
)
BFLOAT_LITERAL = re.compile(r"(?!0[xX])(.*)(?:bf|BF)")
LONGEST_REFERENCE = 16  # tokens of a type before its `&`


def soften_thread_qualifiers(tokens: Tokens, unit: Unit) -> None:
    """`Box(float a) thread {` -> `Box(float a) {`, and `const thread T& x` -> `const T& x`.

    clang cannot build temporaries with a __private constructor, nor bind them to a __private
    reference; without the word both are generic.
    """
    del unit
    classes = set(CLASS_NAME.findall(str(tokens)))
    for position, word in tokens.words():
        if word == "thread" and (
            qualifies_constructor(tokens, position, classes) or refers_to_const(tokens, position)
        ):
            tokens.erase(position, position + 1)


def qualifies_constructor(tokens: Tokens, position: int, classes: set[str]) -> bool:
    """Return whether `thread` follows the parameters of a constructor."""
    before = tokens.before(position)
    if tokens[before] == "noexcept":
        before = tokens.before(before)
    if tokens[before] != ")":
        return False
    name = tokens.before(tokens.opening(before, "(", ")"))
    return tokens[name] in classes and tokens[tokens.before(name)] not in ("operator", "::")


def refers_to_const(tokens: Tokens, position: int) -> bool:
    """Return whether `thread` belongs to `const thread T&`."""
    before, after = tokens.before(position), tokens.after(position)
    is_method = tokens[before] == "const" and tokens[tokens.before(before)] == ")"
    if is_method or "const" not in (tokens[before], tokens[after]):
        return False
    for _ in range(LONGEST_REFERENCE):
        if tokens[after] == "&":
            return True
        if tokens[after] == "<":
            after = tokens.closing_angle(after)
        elif not tokens.is_word(after) and tokens[after] != "::":
            return False
        if after < 0:
            return False
        after = tokens.after(after)
    return False


def rewrite_words(tokens: Tokens, unit: Unit) -> None:
    """`device` -> `__global`, `constant` -> `const __constant`, `1.0bf` -> `((bfloat)1.0f)`."""
    del unit
    for position, item in enumerate(tokens.items):
        if item.kind == "number" and (literal := BFLOAT_LITERAL.fullmatch(item.text)):
            item.text = f"((bfloat){literal.group(1)}f)"
        elif item.kind == "word" and item.text == "constant":
            item.text = constant_text(tokens, position)
        elif item.kind == "word":
            item.text = REWRITTEN.get(item.text, item.text)


def constant_text(tokens: Tokens, position: int) -> str:
    """Objects in constant memory are const in Metal; a method's qualifier is no object."""
    before, after = tokens.before(position), tokens.after(position)
    if tokens[before] == ")" or "const" in (tokens[before], tokens[after]):
        return SPACES["constant"]
    if tokens[before] == "noexcept" and tokens[tokens.before(before)] == ")":
        return SPACES["constant"]
    return "const " + SPACES["constant"]
