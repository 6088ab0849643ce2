"""Try a grammar in a child process with limits, before it comes near the server's own.

llguidance has limits, but not for everything: a chain of a thousand references exhausts the stack,
which ends a process, and twenty patterns that must all hold take minutes. This file is also what
the child runs, so it imports nothing of ours by itself.
"""

import json
import sys
import threading

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

# A step of an answer that takes more than these ends it: a tenth of a second, tens of megabytes.
LIMITS = LLParserLimits(max_grammar_size=200_000, max_lexer_states=50_000, verbose_errors=False)
# The server's threads have 8 MiB and more; what fits in this will fit there.
_STACK_BYTES = 4 << 20


def begin(grammar: str, tables: LLTokenizer) -> LLMatcher:
    """Return the beginning of a grammar, its first step taken; it may be in an error."""
    written = LLMatcher.grammar_from_lark(grammar)
    matcher = LLMatcher(tables, written, log_level=0, limits=LIMITS)
    matcher.compute_bitmask()
    return matcher


class _Letters:
    """A vocabulary of single bytes and control tokens."""

    eos_token_id, bos_token_id = 256, None

    def __init__(self, control: list[str]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.tokens += [b"<end>", *(token.encode() for token in control)]
        self.special_token_ids = [*range(256, len(self.tokens))]

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def _try() -> None:
    grammar, control = json.load(sys.stdin)
    tables = LLTokenizer(TokenizerWrapper(_Letters(control)), slices=[])
    sys.stdout.write(begin(grammar, tables).get_error())


if __name__ == "__main__":
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_try)
    thread.start()
    thread.join()
