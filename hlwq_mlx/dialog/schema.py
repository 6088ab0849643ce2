"""Check the JSON schemas of tools and make them plain: references and `allOf` are resolved.

A plain schema means the same as the given one, without titles and other notes for programs. A
schema that cannot be resolved, as one that contains itself, is refused with its place. How
templates render a schema is in dialog.declaration.
Source: JSON Schema 2020-12, and of older drafts and OpenAPI what clients still send.
"""

import urllib.parse
from collections.abc import Callable, Mapping
from reprlib import repr as brief  # of what may be long or nested without end
from typing import Any

from ..errors import RequestError
from .parts import Normal
from .values import MAX_DEPTH

MAX_SCHEMAS = 10_000  # in one tool: references multiply
TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")

_NOTES = frozenset(("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title"))
# What holds schemas: one or true or false, a list of them, or some by name.
_ONE = frozenset(
    ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not")
) | frozenset(("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"))
_LISTS = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
_NAMED = frozenset(("properties", "patternProperties", "dependentSchemas"))
# By which values a key demands nothing; the names of members are text anyway, as zod says of each
# record.
_IDLE: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "minProperties": (0,),
    "propertyNames": (True, {}, {"type": "string"}),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), (True, {})),
    **dict.fromkeys(("patternProperties", "dependentRequired", "dependentSchemas"), ({},)),
}


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and anything else as the only item of one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def demands_nothing(key: str, value: Any) -> bool:
    """Return whether any value satisfies what a key of a schema says."""
    return value in _IDLE.get(key, ())


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "description": ("text", lambda value: isinstance(value, str)),
    "nullable": ("true or false", lambda value: isinstance(value, bool)),
    "enum": ("a list of values", lambda value: isinstance(value, list | tuple)),
    "required": ("a list of names", _is_names),
    "type": (
        f"some of {', '.join(TYPES)}",
        lambda value: all(str(each).lower() in TYPES for each in listed(value)),
    ),
}


def plain_schema(schema: Any, where: str, tool: str) -> Normal:
    """Return a schema that says the same without references, `allOf` and notes.

    Raises: RequestError that names the place and the tool.
    """
    return _Writer(schema, tool).plain(schema, where, ("#",))


def refused(where: str, tool: str, needed: str, found: str, advice: str) -> RequestError:
    """Return the error that names a place in a tool's schema."""
    return RequestError(f"[{where}] needed {needed}, got {found}. In the tool {tool}, {advice}.")


def merged(first: Normal, second: Normal, where: str, tool: str) -> Normal:
    """Return a schema that demands what both demand; notes such as descriptions are `second`'s.

    Raises: RequestError when both have a key with different values.
    """
    both = {**first, **second}
    for key in first.keys() & second.keys():
        one, other = first[key], second[key]
        if key == "properties":
            shared = {
                name: merged(one[name], other[name], f"{where}.{key}.{name}", tool)
                for name in one.keys() & other.keys()
            }
            both[key] = {**one, **other, **shared}
        elif key == "required":
            both[key] = list(dict.fromkeys([*one, *other]))
        elif one != other and key not in ("description", "default", "examples"):
            raise refused(
                f"{where}.{key}",
                tool,
                "schemas that agree",
                f"{brief(one)} and {brief(other)}",
                "join them",
            )
    return both


class _Writer:
    """Resolves one schema; `refs` are the references that led to where it is now."""

    def __init__(self, root: Any, tool: str) -> None:
        self._root = root
        self._tool = tool
        self._left = MAX_SCHEMAS
        self._depth = 0

    def plain(self, schema: Any, where: str, refs: tuple[str, ...]) -> Normal:
        self._left -= 1
        if self._depth >= MAX_DEPTH or self._left < 0:
            limits = f"at most {MAX_SCHEMAS:,} schemas, nested at most {MAX_DEPTH} deep"
            raise self._refused(where, limits, "more", "leave some out")
        if isinstance(schema, bool):
            return {} if schema else {"not": {}}
        if not isinstance(schema, Mapping):
            raise self._refused(where, "a JSON schema", brief(schema), "correct it")
        self._depth += 1
        plain = {
            key: self._keyword(key, value, f"{where}.{key}", refs)
            for key, value in schema.items()
            if key not in _NOTES and key != "$ref"
        }
        parts = plain.pop("allOf", [])
        if "$ref" in schema:
            parts.append(self._target(schema["$ref"], f"{where}.$ref", refs))
        for part in parts:
            plain = merged(part, plain, where, self._tool)
        self._depth -= 1
        return plain

    def _keyword(self, key: Any, value: Any, where: str, refs: tuple[str, ...]) -> Any:
        if key in _LISTS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list | tuple):
                raise self._refused(where, "a list of schemas", brief(value), "correct it")
            return [self.plain(each, f"{where}[{at}]", refs) for at, each in enumerate(value)]
        if key in _NAMED:
            if not isinstance(value, Mapping):
                raise self._refused(where, "schemas by name", brief(value), "correct it")
            return {name: self.plain(each, f"{where}.{name}", refs) for name, each in value.items()}
        if key in _ONE:
            is_said = value is False or (value is True and key == "additionalProperties")
            return value if is_said else self.plain(value, where, refs)
        needed, is_right = _FORMS.get(key, ("", lambda value: True))
        if not is_right(value):
            raise self._refused(where, needed, brief(value), "correct it")
        return value

    def _target(self, ref: Any, where: str, refs: tuple[str, ...]) -> Normal:
        """Resolve a reference, which is a JSON pointer into the whole schema."""
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise self._refused(where, "a reference that begins with #", brief(ref), "write it out")
        if ref in refs:
            raise self._refused(
                where, "a schema that ends", f"{ref} within itself", "write the levels out"
            )
        node = self._root
        for step in urllib.parse.unquote(ref[1:]).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
                node = node[int(step)]
            elif isinstance(node, Mapping) and step in node:
                node = node[step]
            else:
                raise self._refused(where, "a reference to what is there", ref, "correct it")
        return self.plain(node, where, (*refs, ref))

    def _refused(self, where: str, needed: str, found: str, advice: str) -> RequestError:
        return refused(where, self._tool, needed, found, advice)
