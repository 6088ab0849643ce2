"""What an answer has to be, as a grammar; and one answer's way through it, token by token.

    grammar = write_grammar(Form(schema=schema))        # refuses what no grammar can say
    start = compile_grammar(grammar, vocabulary.wait())  # refuses what would take too long
    constraint = start()                                 # one for each answer
    constraint.allowed(); constraint.accept(token)

JSON comes compact, with one space at most behind a comma or a colon: grammars that allow any white
space make small models write it without end. A thought is free, the grammar begins behind it. When
all is said, only tokens that end answers may follow.
V vocabulary.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from ..errors import RequestError
from .call_grammar import COMPACT, call_body
from .grammar import CHANNEL, CHANNEL_END, MARKERS, THOUGHT_NAME
from .lark import Rules, either, literal, without
from .messages import named_functions
from .values import QUOTE

MOST_BYTES = 1 << 19  # of a schema; the largest in use have a tenth
# A step that takes more than these is refused: a tenth of a second, and tens of megabytes.
LIMITS = LLParserLimits(max_grammar_size=200_000, max_lexer_states=50_000, verbose_errors=False)

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
        written = json.dumps({**(schema or {"type": "object"}), "x-guidance": COMPACT})
    except (RecursionError, TypeError, ValueError) as problem:
        raise _unusable(f"{problem}") from problem
    if len(written) > MOST_BYTES:
        raise _unusable(f"one of {len(written):,} bytes, where {MOST_BYTES:,} are the most")
    return f"%json {written}"


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


def compile_grammar(grammar: str, tables: LLTokenizer) -> Start:
    """Return what makes the constraints of answers, one for each.

    Raises: RequestError when the grammar is wrong, or takes too much time or memory.
    """
    matcher = LLMatcher(tables, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=LIMITS)
    first = Constraint(matcher.deep_copy(), tables)
    first.allowed()
    return lambda: Constraint(matcher.deep_copy(), tables)


class Constraint:
    """The way of one answer through a grammar."""

    def __init__(self, matcher: LLMatcher, tables: LLTokenizer) -> None:
        self._matcher = matcher
        self._words = allocate_token_bitmask(1, tables.vocab_size)
        self._size = tables.vocab_size
        self._require_going()

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
    short = " ".join(found.split())[:300].rstrip(".")
    return RequestError(
        f"[schema] needed a JSON schema that an answer can be held to, got {short}. "
        "Simplify the schema, or leave out what it names."
    )
