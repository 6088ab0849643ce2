"""Check values from a file against a dataclass: the types of its fields and their stated bounds.

A number that a file sets may pick how much memory is taken or what is divided by. So each number
says at its field what it may be, and a field cannot have a value that its bounds do not allow.
"""

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from ..errors import ConfigError

# What JSON writes for the types that fields have; other types are for their readers to check.
SPELLED = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "a text"},
    NoneType: "null",
}
_SHOWN = 80  # characters of a value


class Bounds(NamedTuple):
    """The least and the most that a number may be, both allowed."""

    least: float
    most: float


class Kind(NamedTuple):
    """The types that a field may have, and its bounds if it is a number with some."""

    options: tuple[type, ...]
    bounds: Bounds | None

    def describe(self) -> str:
        """Return the accepted types and bounds as text."""
        named = [SPELLED[option] for option in self.options]
        if self.bounds is not None:
            named[0] += f" from {self.bounds.least} to {self.bounds.most}"
        return " or ".join(named)

    def accepts(self, value: Any) -> bool:
        """Return whether a value is of one of the types, and within the bounds."""
        found = {type(value), float} if type(value) is int else {type(value)}
        if found.isdisjoint(self.options):
            return False
        is_bounded = self.bounds is not None and value is not None
        return not is_bounded or self.bounds.least <= value <= self.bounds.most  # type: ignore[union-attr]


def is_same(value: Any, wanted: Any) -> bool:
    """Return whether a value is the wanted one and of its type: 1.0 and true are not 1."""
    return type(value) is type(wanted) and value == wanted


def kind_of(declared: Any) -> Kind:
    """Read a field's type, which states bounds as `Annotated[int, Bounds(1, 8)]`."""
    bounds = None
    if get_origin(declared) is Annotated:
        declared, bounds = get_args(declared)
    options = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    return Kind(options, bounds)


def checked(form: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return those values that are fields of a dataclass, each of its field's type and bounds.

    A whole number is a number too, and becomes one.
    Raises: ConfigError naming the first key whose value is none of its field's.
    """
    chosen = {}
    for field in fields(form):
        if field.name not in values:
            continue
        value, kind = values[field.name], kind_of(field.type)
        is_simple = SPELLED.keys() >= set(kind.options)
        if is_simple and not kind.accepts(value):
            raise ConfigError(
                f"[{where}.{field.name}] needed {kind.describe()}, got {shown(value)}. "
                "Correct the value."
            )
        is_whole = type(value) is int and int not in kind.options
        chosen[field.name] = float(value) if is_simple and is_whole else value
    return chosen


def shown(value: Any) -> str:
    """Format a value for an error, cut to a line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
