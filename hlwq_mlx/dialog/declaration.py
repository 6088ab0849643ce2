"""Convert the functions offered to the model into the few keywords that chat templates render.

Templates render a parameter's description, one type, `nullable`, an enum of strings, an array's
items and an object's properties. They drop or garble everything else: unions, other enums, bounds,
schemas without a type. So what a template renders is put where it looks for it, and the rest is
appended to the description as JSON, which the model can read: nothing is lost.

A converted schema has only these keys: description, type (in capitals, always there), nullable,
enum (of strings), items, properties, required.
"""

import json
from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

from .parts import Normal
from .schema import listed, merged, plain_schema, refused
from .values import is_bare_key

ANY = "any"  # for schemas without a type, as templates need one
_TYPE_OF: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}


def declare(function: Mapping[str, Any], where: str) -> Normal:
    """Return the function of a tool in the form that templates render.

    Raises: RequestError naming the tool and the schema that cannot be rendered.
    """
    name = function["name"]
    known: Normal = {"name": name}
    texts = [_text(function, where)]
    if function.get("parameters") not in (None, {}, True):
        declarer = _Declarer(f"{where}.parameters", name)
        known["parameters"] = declarer.parameters(function["parameters"])
        texts.append(known["parameters"].pop("description", ""))
    if function.get("response") is not None:
        declarer = _Declarer(f"{where}.response", name)
        known["response"] = declarer.response(function["response"])
    known["description"] = "\n".join(filter(None, texts))
    return known


def _text(function: Mapping[str, Any], where: str) -> str:
    text = function.get("description")
    if text is not None and not isinstance(text, str):
        raise refused(f"{where}.description", function["name"], "text", brief(text), "correct it")
    return text or ""


class _Declarer:
    """Converts the schemas of one tool; `where` is the first one's path, for messages."""

    def __init__(self, where: str, tool: str) -> None:
        self._where = where
        self._tool = tool

    def parameters(self, given: Any) -> Normal:
        """Convert the schema of all arguments, which are the properties of one object."""
        schema = plain_schema(given, self._where, self._tool)
        kind = _kind(schema) or "object"
        if kind != "object":
            raise refused(
                self._where, self._tool, "a JSON schema of an object", brief(given), "correct it"
            )
        # Here no properties means no arguments; in JSON Schema it means any.
        closed = {} if schema.get("properties") else {"additionalProperties": False}
        return self.declared({"type": "object", **closed, **schema}, self._where)

    def response(self, given: Any) -> Normal:
        """Convert the schema of a result; templates render only that it is an object."""
        schema = plain_schema(given, self._where, self._tool)
        if _kind(schema) != "object":
            schema = {"properties": {"value": schema}}  # as templates write such a result
        rest = _without(schema, "type", "description")
        description = self._described(schema.get("description", ""), rest)
        return {"type": "OBJECT", **({"description": description} if description else {})}

    def declared(self, schema: Normal, where: str) -> Normal:
        """Convert a plain schema."""
        schema, is_nullable = self._without_null(schema, where)
        kind = _kind(schema)
        rest = dict(schema)
        known: Normal = {"type": (kind or ANY).upper()}
        if kind is not None:
            rest.pop("type", None)
        if is_nullable:
            known["nullable"] = True
        if kind == "string" and all(isinstance(each, str) for each in rest.get("enum", ())):
            known |= _taken(rest, "enum")
        if kind == "array" and isinstance(rest.get("items"), Mapping):
            items = self.declared(rest.pop("items"), f"{where}.items")
            known |= {"items": items} if items != {"type": ANY.upper()} else {}
        if kind == "object":
            known |= self._members(rest, where)
        description = self._described(rest.pop("description", ""), rest)
        return known | ({"description": description} if description else {})

    def _members(self, rest: Normal, where: str) -> Normal:
        """Take an object's properties out of the rest of its schema, and convert them."""
        properties = rest.pop("properties", {})
        if not properties:
            rest.setdefault("additionalProperties", True)  # it may hold anything
        if rest.get("additionalProperties") is False:
            del rest["additionalProperties"]
        for name in properties:
            if not isinstance(name, str) or not is_bare_key(name):
                raise refused(
                    f"{where}.properties",
                    self._tool,
                    "names without brackets, quotes, colons and commas",
                    brief(name),
                    "choose another name",
                )
        members = {
            name: self.declared(each, f"{where}.properties.{name}")
            for name, each in properties.items()
        }
        return {"properties": members, **_taken(rest, "required")}

    def _without_null(self, schema: Normal, where: str) -> tuple[Normal, bool]:
        """Return a schema of the values that are not null, and whether null is allowed."""
        rest = dict(schema)
        is_nullable = rest.pop("nullable", False)
        if "const" in rest:
            rest["enum"] = [rest.pop("const")]
        for key in ("anyOf", "oneOf"):
            branches = rest.get(key, [])
            others = [each for each in branches if not _is_null(each)]
            if not others:
                continue
            is_nullable = is_nullable or len(others) < len(branches)
            rest[key] = others
            if len(others) == 1:
                joined = merged(others[0], _without(rest, key), where, self._tool)
                joined, is_too = self._without_null(joined, where)
                return joined, is_nullable or is_too
        return rest, _drop_null(rest) or is_nullable

    def _described(self, description: str, rest: Normal) -> str:
        """Return a description, followed by the rest of the schema as JSON."""
        if not rest:
            return description
        try:
            said = json.dumps(rest, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as problem:
            raise refused(
                self._where, self._tool, "JSON values", str(problem), "correct them"
            ) from problem
        return f"{description} JSON schema: {said}".lstrip()


def _taken(schema: Normal, key: str) -> Normal:
    """Take a list out of a schema, unless it is empty."""
    value = schema.pop(key, None)
    return {key: list(value)} if value else {}


def _without(schema: Normal, *keys: str) -> Normal:
    return {key: value for key, value in schema.items() if key not in keys}


def _drop_null(schema: Normal) -> bool:
    """Remove null from a schema that allows other values too; return whether it allowed null."""
    if _kind(schema) == "null":
        schema.pop("enum", None)
        schema["type"] = "null"
        return False
    types = _types(schema)
    values = schema.get("enum", [None])
    is_allowed = None in values and ("null" in types or (not types and "enum" in schema))
    if "null" in types:
        types.remove("null")
    if types:
        schema["type"] = types[0] if len(types) == 1 else types
    if "enum" in schema:
        schema["enum"] = [each for each in values if each is not None]
    return is_allowed


def _types(schema: Normal) -> list[str]:
    return [str(each).lower() for each in listed(schema.get("type", []))]


def _is_null(schema: Normal) -> bool:
    return _types(schema) == ["null"] or schema.get("const", schema) is None


def _kind(schema: Normal) -> str | None:
    """Return a schema's one type, stated or implied; None when there are several or none."""
    types = _types(schema)
    if types:
        return types[0] if len(types) == 1 else None
    if "properties" in schema:
        return "object"
    if "items" in schema:
        return "array"
    found = {_TYPE_OF.get(type(each)) for each in schema.get("enum", ())}
    return found.pop() if len(found) == 1 else None
