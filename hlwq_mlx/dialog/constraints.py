"""What an answer has to be, as a grammar; and one answer's way through it, token by token.

    grammar = write_grammar(Form(schema=schema))  # refuses what no grammar can say
    require_bounded(grammar)                      # ... what takes too long, in a child process
    start = compile_grammar(grammar, vocabulary.wait())
    constraint = start()                          # one for each answer
    constraint.allowed(); constraint.accept(token)

JSON comes compact, with one space at most behind a comma or a colon: grammars that allow any white
space make small models write it without end. A thought is free, the grammar begins behind it. When
all is said, only tokens that end answers may follow.
V vocabulary.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from ..disk import child
from ..errors import BusyError, RequestError
from . import grammar_trial
from .call_grammar import COMPACT, call_body
from .grammar import CHANNEL, CHANNEL_END, MARKERS, THOUGHT_NAME
from .lark import Rules, either, literal, require_short, without
from .messages import named_functions
from .schema import demands_nothing
from .values import QUOTE

MOST_BYTES = 1 << 17  # of a grammar; tools in use have a tenth
TRIAL = child.Limits(cpu_s=2, memory_bytes=1 << 30, wall_s=20.0)
RETRY_S = 10
_TRIALS = 64  # remembered
_CONTROL = (*MARKERS, QUOTE)
# What llguidance can hold strings to; to JSON Schema, other formats are notes.
_FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname")) | frozenset(
    ("ipv4", "ipv6", "uuid", "uri")
)
_NOTES = frozenset(("title", "description", "$comment"))
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions"))
_VALUES = frozenset(("const", "enum"))
_LISTING = re.compile(r"\n+\s*\d+ \| .*", re.DOTALL)  # of the grammar, in messages of llguidance

Start = Callable[[], "Constraint"]


@dataclass(frozen=True)
class Form:
    """What the answer to a request has to be.

    Its content satisfies the JSON `schema`, {} for any object; with `must_call` it calls tools
    instead, and without, it may. `tools` are those that it may call, in OpenAI's form; `parallel`
    allows more than one call. `may_think` allows a thought before; `in_thought` says that the
    prompt began one.
    """

    schema: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    must_call: bool = False
    parallel: bool = True
    may_think: bool = False
    in_thought: bool = False


def write_grammar(form: Form) -> str | None:
    """Return the grammar of a form; None where any answer will do.

    Raises: RequestError that names what no grammar can say.
    """
    if form.schema is None and not form.must_call:
        return None
    rules = Rules()
    bodies = [] if form.schema is None or form.must_call else [_json(form.schema)]
    if form.tools:
        bodies.append(_calls(rules, form))
    if not bodies:
        raise RequestError("[tool_choice] needed tools to choose from, got none. Give tools.")
    return rules.grammar(f"{_thought(rules, form)} ({either(bodies)})")


def _json(schema: Mapping[str, Any]) -> str:
    try:
        said = _without_notes(schema or {"type": "object"})
        return f"%json {json.dumps({**said, 'x-guidance': COMPACT})}"
    except RequestError:  # a ValueError that says it all
        raise
    except (RecursionError, TypeError, ValueError) as problem:
        raise _unusable(str(problem)) from problem


def _without_notes(schema: Any) -> Any:
    """Return a schema without the keys that demand nothing, of which llguidance refuses some."""
    if isinstance(schema, str):
        require_short(schema)
    if isinstance(schema, list):
        return [_without_notes(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {key: _keyword(key, value) for key, value in schema.items() if not _is_note(key, value)}


def _keyword(key: str, value: Any) -> Any:
    if key in _NAMED and isinstance(value, Mapping):  # names that may look like keys
        return {name: _without_notes(each) for name, each in value.items()}
    return _short_value(value) if key in _VALUES else _without_notes(value)


def _short_value(value: Any) -> Any:
    """Return a value that an answer may have to repeat, if its texts are short."""
    if isinstance(value, str):
        require_short(value)
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            _short_value(each)
    return value


def _is_note(key: str, value: Any) -> bool:
    is_text = isinstance(value, str)
    if key == "format":
        return is_text and value not in _FORMATS
    return (key in _NOTES and is_text) or demands_nothing(key, value)


def _calls(rules: Rules, form: Form) -> str:
    functions = named_functions(form.tools)
    call = rules.rule(either(call_body(rules, each, where) for where, each in functions))
    return f"{call}+" if form.parallel else call


def _thought(rules: Rules, form: Form) -> str:
    if not form.may_think and not form.in_thought:
        return ""
    text = rules.terminal(without(*MARKERS))
    inside = f"({text} {QUOTE})* {text} {CHANNEL_END}"
    if form.in_thought:
        return inside
    return rules.rule(f"({CHANNEL} {literal(THOUGHT_NAME)} {inside})?")


def require_bounded(grammar: str) -> None:
    """Refuse a grammar that is wrong, or that takes too much time, memory or stack.

    It takes a quarter of a second the first time, and needs no vocabulary.
    Raises: RequestError; BusyError when the machine has no time to find out.
    """
    if len(grammar) > MOST_BYTES:
        raise _unusable(f"one of {len(grammar):,} bytes, where {MOST_BYTES:,} are the most")
    fault = _fault_of(grammar)
    if fault:
        raise _unusable(fault)


@lru_cache(_TRIALS)
def _fault_of(grammar: str) -> str:
    """Return why a grammar cannot be used; nothing if it can."""
    try:
        return child.run(
            Path(grammar_trial.__file__), json.dumps([grammar, _CONTROL]).encode(), TRIAL
        ).decode()
    except child.Starved as problem:  # says nothing of the grammar, so it is not remembered
        raise BusyError(
            f"[schema] needed a moment of the processor to try it, got {problem}. Ask again later.",
            RETRY_S,
        ) from problem
    except child.Ended as problem:
        return f"one that takes {problem}"


def compile_grammar(grammar: str, tables: LLTokenizer) -> Start:
    """Return what makes the constraints of answers, one for each.

    Raises: RequestError for a grammar that is wrong; see `require_bounded` for one that is not
    ours.
    """
    matcher = grammar_trial.begin(grammar, tables)
    if matcher.is_error():
        raise _unusable(matcher.get_error())
    return lambda: Constraint(matcher.deep_copy(), tables.vocab_size)


class Constraint:
    """The way of one answer through a grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._size = vocab_size
        self._words = allocate_token_bitmask(1, vocab_size)

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next.

        Shapes: -> [V of the tokenizer]. Raises: RequestError when finding out takes too long.
        """
        fill_next_token_bitmask(self._matcher, self._words)
        self._require_going()
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little", count=self._size)
        return bits.view(np.bool_)

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises: RequestError for one that was not allowed.
        """
        self._matcher.consume_token(token)
        self._require_going()

    def _require_going(self) -> None:
        if self._matcher.is_error():
            raise _unusable(self._matcher.get_error())


def _unusable(found: str) -> RequestError:
    short = " ".join(_LISTING.sub("", found).split())[:300].rstrip(".")
    return RequestError(
        f"[schema] needed a JSON schema that an answer can be held to, got {short}. "
        "Simplify the schema, or leave out what it names."
    )
