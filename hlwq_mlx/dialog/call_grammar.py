"""Write the schema of a tool as a grammar: exactly its calls, in Gemma 4's own notation.

`dialog.grammar.AnswerParser` reads back arguments that satisfy the schema. Where a schema leaves
more than one way, the grammar takes one: keys come sorted, as templates write them; an object that
states its properties has no others unless it says so; what may be anything is nested FREE_LEVELS
deep at most. What a grammar cannot say is refused by its key.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from reprlib import repr as brief
from typing import Any

from llguidance import regex_to_lark

from .grammar import CALL, CALL_END
from .lark import NO_TEXT, Rules, either, escaped, literal, require_short, without
from .parts import Normal
from .schema import MAX_SCHEMAS, TYPES, demands_nothing, listed, merged, plain_schema, refused
from .values import MAX_DEPTH, QUOTE, is_bare_key, print_value

FREE_LEVELS = 6
COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

INTEGER = "/-?(0|[1-9][0-9]{0,15})/"  # what every reader of JSON holds without loss
NUMBER = "/-?(0|[1-9][0-9]{0,15})(\\.[0-9]{1,16})?([eE][+-]?[0-9]{1,2})?/"
_KEY = "/[A-Za-z_][A-Za-z0-9_-]{0,63}/"
_DATE = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME = "([01][0-9]|2[0-3])(:[0-5][0-9]){2}(\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
# Other formats are notes, as JSON Schema has it.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "ipv4": f"{_OCTET}(\\.{_OCTET}){{3}}",
    "email": "[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(\\.[A-Za-z0-9-]+)+",
    "uri": "[a-z][a-z0-9+.-]*://[A-Za-z0-9._~:/?#@!$&*+,;=%-]+",
}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Keys that no grammar here can say.
_UNSAYABLE = {
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
    *("patternProperties", "propertyNames", "minProperties", "maxProperties", "dependencies"),
    *("dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"),
    *("$dynamicRef", "$recursiveRef"),
}
_COUNTS = frozenset(("minLength", "maxLength", "minItems", "maxItems"))
_TEXTS = frozenset(("pattern", "format"))
# By which keys the type of a schema without one is known.
_IMPLIED = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "additionalItems"},
    "string": {"pattern", "minLength", "maxLength", "format"},
    "number": {*_BOUNDS},
}


def call_body(rules: Rules, function: Mapping[str, Any], where: str) -> str:
    """Return the body of one call of a function, its markers included.

    Raises: RequestError that names the tool and the key of its schema that cannot be followed.
    """
    name = function["name"]
    given = function.get("parameters")
    where = f"{where}.parameters"
    schema = plain_schema({} if given in (None, True) else given, where, name)
    if set(_types(schema)) - {"object", "null"}:
        raise refused(where, name, "a JSON schema of an object", brief(given), "correct it")
    # Here no properties means no arguments, as in dialog.declaration.
    closed = {} if schema.get("properties") else {"additionalProperties": False}
    arguments = {**closed, **schema, "type": "object", "nullable": False}
    rule = _Writer(rules, name).value(arguments, where, 1)
    return rules.rule(f"{CALL} {literal(f'call:{name}')} {rule} {CALL_END}")


class _Writer:
    """Writes the schemas of one tool; `depth` counts the brackets around a value, its own too."""

    def __init__(self, rules: Rules, tool: str) -> None:
        self._rules = rules
        self._tool = tool
        self._left = MAX_SCHEMAS

    def value(self, schema: Normal, where: str, depth: int) -> str:
        """Return the rule of the values that satisfy a plain schema."""
        self._spend(1, where)
        self._check(schema, where)
        for key in ("anyOf", "oneOf"):
            if schema.get(key):
                return self._branches(schema, key, where, depth)
        if "enum" in schema or "const" in schema:
            return self._enum(schema, where)
        types = _types(schema)
        if not types:
            return self._anything(min(FREE_LEVELS, MAX_DEPTH - depth))
        return self._rules.rule(either(self._typed(each, schema, where, depth) for each in types))

    def _spend(self, count: int, where: str) -> None:
        """Refuse schemas whose alternatives multiply."""
        self._left -= count
        if self._left < 0:
            raise refused(where, self._tool, "fewer alternatives", "too many", "leave some out")

    def _check(self, schema: Normal, where: str) -> None:
        for key in sorted(schema.keys() & _UNSAYABLE):
            if not demands_nothing(key, schema[key]):
                raise self._unsayable(f"{where}.{key}", f"a schema without {key}", key)
        for key in sorted(schema.keys() & (_COUNTS | _TEXTS)):
            value = schema[key]
            is_count = type(value) is int and value >= 0
            if not (is_count if key in _COUNTS else isinstance(value, str)):
                needed = "a count" if key in _COUNTS else "text"
                raise refused(f"{where}.{key}", self._tool, needed, brief(value), "correct it")

    def _typed(self, kind: str, schema: Normal, where: str, depth: int) -> str:
        if kind == "string":
            return self._string(schema)
        if kind in ("number", "integer"):
            return self._number(kind, schema)
        if kind == "boolean":
            return '"true" | "false"'
        if kind == "null":
            return '"null"'
        return (self._object if kind == "object" else self._array)(schema, where, depth)

    def _branches(self, schema: Normal, key: str, where: str, depth: int) -> str:
        rest = {name: value for name, value in schema.items() if name != key}
        branches = [merged(rest, each, f"{where}.{key}", self._tool) for each in schema[key]]
        if key == "oneOf":
            self._spend(len(branches) ** 2 // 2, where)
        if key == "oneOf" and not all(_exclude(*pair) for pair in combinations(branches, 2)):
            raise self._unsayable(f"{where}.oneOf", "branches that differ in type or a const", key)
        return self._rules.rule(
            either(
                self.value(each, f"{where}.{key}[{at}]", depth) for at, each in enumerate(branches)
            )
        )

    def _enum(self, schema: Normal, where: str) -> str:
        for key in sorted(schema.keys() & set().union(*_IMPLIED.values())):
            raise self._unsayable(f"{where}.{key}", f"no {key} beside an enum or a const", key)
        values = _values(schema)
        if not values:
            raise self._unsayable(f"{where}.enum", "a value of the schema's type", "enum")
        return self._rules.rule(either(map(_written, values)))

    def _string(self, schema: Normal) -> str:
        parts = [without(QUOTE)]
        if "pattern" in schema:
            parts.append(_pattern(schema["pattern"]))
        if schema.get("format") in FORMATS:
            parts.append(f"/{_safe(FORMATS[schema['format']])}/")
        if "minLength" in schema or "maxLength" in schema:
            least, most = schema.get("minLength", 0), schema.get("maxLength", "")
            parts.append(f"/(?s:.{{{least},{most}}})/")
        return f"{QUOTE} {self._rules.terminal(' & '.join(parts))} {QUOTE}"

    def _number(self, kind: str, schema: Normal) -> str:
        bounds = {key: schema[key] for key in _BOUNDS if key in schema}
        if not bounds:
            return self._rules.terminal(INTEGER if kind == "integer" else NUMBER)
        return f"%json {json.dumps({'type': kind, **bounds, 'x-guidance': COMPACT})}"

    def _array(self, schema: Normal, where: str, depth: int) -> str:
        items, first = schema.get("items", {}), schema.get("prefixItems", ())
        if isinstance(items, list):  # as older drafts have it
            items, first = schema.get("additionalItems", {}), items
        least: int = schema.get("minItems", 0)
        most: int | None = schema.get("maxItems")
        bodies = [
            self.value(each, f"{where}.prefixItems[{at}]", depth + 1)
            for at, each in enumerate(first[:most])
        ]
        rest = ""
        if items is not False and (most is None or most > len(bodies)):
            item = self.value(items, f"{where}.items", depth + 1)
            rest = _repeated(item, max(least - len(bodies), 1), most and most - len(bodies))
        return f'"[" {self._sequence(bodies, least, rest)} "]"'

    def _sequence(self, bodies: Sequence[str], least: int, rest: str) -> str:
        """Return the body of items: those that have a place, then the rest; `least` must be."""
        body = ""
        for at, item in reversed([*enumerate([*bodies, *([rest] if rest else [])])]):
            comma = '"," ' if at else ""
            body = f"{comma}{item} {body}"
            if at >= least:
                body = f"({body})?"
            body = self._rules.rule(body)
        return body

    def _object(self, schema: Normal, where: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", ())
        stated: Any = schema.get("additionalProperties", True)
        stated = {} if stated is True else stated
        others: Any = stated if "additionalProperties" in schema or not properties else False
        names = sorted({*properties, *required}, key=lambda name: (name.lower(), name))
        members = []
        for name in names:
            member = properties.get(name, stated)
            if member is False:
                raise self._unsayable(f"{where}.required", f"a property {name}", "required")
            rule = self.value(member, f"{where}.properties.{name}", depth + 1)
            members.append((f"{_key(name)} {rule}", name in required))
        more = ""
        if others is not False:
            key = self._rules.terminal(_KEY + "".join(f" & ~/{escaped(name)}/" for name in names))
            value = self.value(others, f"{where}.additionalProperties", depth + 1)
            more = self._rules.rule(f'{key} ":" {value}')
        return f'"{{" {self._members(members, more)} "}}"'

    def _members(self, members: Sequence[tuple[str, bool]], more: str) -> str:
        """Return the body of an object's members in order, each with whether it must be there."""
        after = self._rules.rule(f'("," {more})*') if more else NO_TEXT  # behind a member
        first = self._rules.rule(f"({more} {after})?") if more else NO_TEXT  # where none is before
        for member, is_required in reversed(members):
            begin = f"{member} {after}"
            first = self._rules.rule(begin if is_required else f"{begin} | {first}")
            comma = f'"," {member}'
            after = self._rules.rule(f"{comma} {after}" if is_required else f"({comma})? {after}")
        return first

    def _anything(self, levels: int) -> str:
        text = f"{QUOTE} {self._rules.terminal(without(QUOTE))} {QUOTE}"
        number = self._rules.terminal(NUMBER)
        scalars = [text, number, '"true"', '"false"', '"null"']
        if levels <= 0:
            return self._rules.rule(either(scalars))
        value = self._anything(levels - 1)
        member = f'{self._rules.terminal(_KEY)} ":" {value}'
        brackets = [f'"[" ({value} ("," {value})*)? "]"', f'"{{" ({member} ("," {member})*)? "}}"']
        return self._rules.rule(either([*scalars, *brackets]))

    def _unsayable(self, where: str, needed: str, found: str) -> Exception:
        return refused(where, self._tool, needed, found, "write it without, or do not force calls")


def _types(schema: Normal) -> list[str]:
    """Return a schema's types, stated or implied; none where it may be anything."""
    types = [str(each).lower() for each in listed(schema.get("type", []))]
    types = types or [kind for kind, keys in _IMPLIED.items() if keys & schema.keys()]
    return [*types, "null"] if types and schema.get("nullable") else types


def _values(schema: Normal) -> list[Any]:
    """Return the values that a schema with an enum or a const leaves."""
    values = list(schema.get("enum", [schema.get("const")]))
    if "const" in schema:
        values = [each for each in values if each == schema["const"]]
    types = _types(schema) or TYPES
    if schema.get("nullable"):
        values.append(None)
    return [each for each in values if any(_is_of(each, kind) for kind in types)]


def _is_of(value: Any, kind: str) -> bool:
    if value is None or isinstance(value, bool):
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and value == int(value))
    if isinstance(value, str):
        return kind == "string"
    return kind == ("object" if isinstance(value, Mapping) else "array")


def _exclude(one: Normal, other: Normal) -> bool:
    """Return whether no value can satisfy both schemas, as far as types and consts tell."""
    if any("enum" in each or "const" in each for each in (one, other)):
        return _differ(one, other)
    if not ("type" in one and "type" in other):
        return False
    first, second = _types(one), _types(other)
    if not {*first} & {*second} and not {"integer", "number"} <= {*first, *second}:
        return True
    if first != ["object"] or second != ["object"]:
        return False
    named = {*one.get("required", ())} & {*other.get("required", ())}
    pairs = [[each.get("properties", {}).get(name, {}) for each in (one, other)] for name in named]
    return any(_differ(*pair) for pair in pairs)


def _differ(one: Normal, other: Normal) -> bool:
    """Return whether two schemas with an enum or a const have no value in common."""
    if not all("enum" in each or "const" in each for each in (one, other)):
        return False
    first, second = _values(one), _values(other)
    return not any(each in second for each in first)


def _written(value: Any) -> str:
    """Return the body of one value: its quotes are tokens, the rest is text."""
    pieces = print_value(value).split(QUOTE)
    return f" {QUOTE} ".join(literal(piece) if piece else "" for piece in pieces)


def _repeated(item: str, least: int, most: int | None) -> str:
    """Return the body of items with commas between, at least one."""
    if most == 1:
        return item
    return f'{item} ("," {item}){{{least - 1},{"" if most is None else most - 1}}}'


def _key(name: str) -> str:
    return literal(f"{name}:") if is_bare_key(name) else f'{_written(name)} ":"'


def _safe(regex: str) -> str:
    """Return a regular expression of JSON Schema as Lark reads it."""
    return str(regex_to_lark(regex, use_ascii="dw"))


def _pattern(pattern: str) -> str:
    """Return the terminal of the texts in which a pattern of JSON Schema is found."""
    require_short(pattern)
    before = "" if pattern.startswith("^") else "(?s:.*)"
    is_ended = pattern.endswith("$") and not pattern.endswith("\\$")
    after = "" if is_ended else "(?s:.*)"
    inner = pattern.removeprefix("^")
    inner = inner.removesuffix("$") if is_ended else inner
    return f"/{before}({_safe(inner)}){after}/"
