"""Kernels, their explicit instantiations and attributes: recorded, then taken out of the text."""

import re

from .tokens import SPACES, Tokens
from .unit import Kernel, Parameter, RewriteError, Unit

ATTRIBUTE = re.compile(r"\[ ?\[ ?([\w:]+)[^\]]*\] ?\]")


def take_instantiations(tokens: Tokens, unit: Unit) -> None:
    """`template [[host_name("f_float")]] [[kernel]] decltype(f<float>) f<float>;` -> nothing.

    The pair f_float: f<float> is recorded; the launch adapter instantiates what it needs.
    """
    for start, word in tokens.words():
        first = tokens.after(start)
        if word != "template" or tokens[first] != "[" or tokens[tokens.after(first)] != "[":
            continue
        end = start
        while tokens[end] != ";":
            end += 1
        text = tokens.text(start, end)
        host = re.search(r'host_name ?\( ?((?:"[^"]*" ?)+)\)', text)
        template_id = find_template_id(tokens, start, end)
        if host and template_id:
            name = "".join(re.findall(r'"([^"]*)"', host.group(1)))
            unit.instantiations[name] = template_id
        tokens.erase(start, end + 1)


def find_template_id(tokens: Tokens, start: int, end: int) -> str:
    """Find f<float> in `decltype(f<float>)`, or in `void f<float>(...)`."""
    for position in range(start, end):
        follower = tokens.after(position)
        if tokens[position] == "decltype":
            return tokens.text(follower + 1, tokens.closing(follower, "(", ")"))
        if tokens[position] == "void" and tokens[tokens.after(follower)] == "<":
            return tokens.text(follower, tokens.closing_angle(tokens.after(follower)) + 1)
    return ""


def take_kernels(tokens: Tokens, unit: Unit) -> None:
    """`[[kernel]] void f(device float* y [[buffer(0)]])` and `kernel void f(...)`: recorded.

    The keyword goes, the attributes stay for `erase_attributes`.
    """
    for position, word in tokens.words():
        if word != "kernel":
            continue
        if tokens[tokens.before(position)] not in ("[", ","):
            tokens.erase(position, position + 1)
            opening = find_parameters(tokens, position)
        else:
            attribute = position
            while tokens[attribute] != "]":
                attribute = tokens.after(attribute)
            opening = find_parameters(tokens, tokens.after(attribute))
        if tokens[opening] != "(":
            continue
        closing = tokens.closing(opening, "(", ")")
        if tokens[tokens.after(closing)] == "{":
            name = tokens[tokens.before(opening)]
            unit.kernels[name] = Kernel(name, read_parameters(tokens, opening, closing))


def find_parameters(tokens: Tokens, position: int) -> int:
    """Find the `(` of a declaration's parameters, past attributes, or what ends it before."""
    position = tokens.after(position)
    while tokens[position] not in ("(", ";", "{", ""):
        if tokens[position] == "[":
            position = tokens.closing(position, "[", "]")
        position = tokens.after(position)
    return position


def read_parameters(tokens: Tokens, opening: int, closing: int) -> tuple[Parameter, ...]:
    """Read what lies between a kernel's parentheses."""
    texts = []
    depth, start = 0, opening + 1
    for position in range(opening + 1, closing):
        text = tokens[position]
        depth += (text in ("(", "[", "{", "<")) - (text in (")", "]", "}", ">"))
        if text == "," and not depth:
            texts.append(tokens.text(start, position))
            start = position + 1
    texts.append(tokens.text(start, closing))
    return tuple(read_parameter(text) for text in texts if text)


def read_parameter(text: str) -> Parameter:
    """Read `const device float* x [[buffer(0)]]`; a pointer without attribute is a buffer too."""
    attribute = ATTRIBUTE.search(text)
    core = ATTRIBUTE.sub("", text).partition("=")[0].strip()
    name = re.search(r"([A-Za-z_]\w*)\s*(?:\[[^\]]*\]\s*)*$", core)
    if not name or not (attribute or re.search(r"[*&\]]", core)):
        raise RewriteError(f"[kernel] needed a buffer or an attribute, got parameter {text!r}.")
    space = next((word for word in re.findall(r"\w+", core) if word in SPACES), "")
    return Parameter(name.group(1), attribute.group(1) if attribute else "buffer", space)


def define_function_constants(tokens: Tokens, unit: Unit) -> None:
    """`constant bool f [[function_constant(3)]];` -> `constant bool f ... = MSL_CONSTANT_f;`.

    The macro is defined when a kernel is built. Parameters that carry the attribute are left alone.
    """
    for position, word in tokens.words():
        if word != "function_constant":
            continue
        opening = tokens.after(position)
        closing = tokens.closing(opening, "(", ")")
        name = tokens.before(tokens.before(tokens.before(position)))
        end = tokens.after(tokens.after(tokens.after(closing)))
        index = tokens.text(opening + 1, closing)
        if tokens[end] == ";" and index.isdigit():
            unit.function_constants[tokens[name]] = int(index)
            tokens[end] = f" = MSL_CONSTANT_{tokens[name]};"


def erase_attributes(tokens: Tokens, unit: Unit) -> None:
    """`[[kernel]] void f(uint i [[thread_position_in_grid]])` -> `void f(uint i)`."""
    del unit
    for position in range(len(tokens)):
        if tokens[position] != "[":
            continue
        inner = tokens.after(position)
        if tokens[inner] != "[" or not tokens.is_word(tokens.after(inner)):
            continue
        end = tokens.closing(position, "[", "]")
        is_lambda = tokens[tokens.before(position)] in ("operator", "=")
        if not is_lambda and tokens[tokens.before(end)] == "]":
            tokens.erase(position, end + 1)
