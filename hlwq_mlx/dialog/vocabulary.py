"""A tokenizer's vocabulary in the form that grammars mask it in, made once in the background.

It is made of the tokenizer in memory: as fast as from a copy of tokenizer.json without merges, and
without that copy's fault. Where a grammar leaves one text, llguidance demands the tokens that the
tokenizer writes it in, and without merges these are single letters, which no model writes.
"""

import re
import threading
from concurrent.futures import Future
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from ..errors import CheckpointError
from .guard import control_tokens
from .interface import AnsweringTokenizer
from .tokenizer import FILE_NAME

_BYTE = re.compile("<0x([0-9A-F]{2})>")


class Vocabulary:
    """The tables of one tokenizer; a thread begins to make them at once.

    For an event loop, `asyncio.wrap_future(vocabulary.tables)` is what to await.
    """

    def __init__(self, tokenizer: AnsweringTokenizer) -> None:
        self.tables: Future[LLTokenizer] = Future()
        threading.Thread(
            target=self._make, args=(tokenizer,), name="vocabulary", daemon=True
        ).start()

    def ready(self) -> bool:
        """Return whether `wait` would return, or raise, at once."""
        return self.tables.done()

    def wait(self, timeout: float | None = None) -> LLTokenizer:
        """Return the tables as soon as they are made.

        Raises: CheckpointError when they cannot be made; TimeoutError after `timeout` seconds.
        """
        return self.tables.result(timeout)

    def _make(self, tokenizer: AnsweringTokenizer) -> None:
        try:
            self.tables.set_result(make_tables(tokenizer))
        except BaseException as problem:  # noqa: BLE001 - told to whoever waits
            self.tables.set_exception(problem)


def make_tables(tokenizer: AnsweringTokenizer) -> LLTokenizer:
    """Return a tokenizer as llguidance reads it.

    Raises: CheckpointError.
    """
    try:
        # Each call holds the interpreter: two short stops of the other threads, not a long one.
        plain = LLTokenizer(
            TokenizerWrapper(_Tokens(tokenizer)),
            eos_token=sorted(tokenizer.eos_token_ids),
            slices=[],
        )
        return plain.with_slices(LLTokenizer.general_slices())
    except Exception as problem:
        raise CheckpointError(
            f"[{FILE_NAME}] needed a vocabulary that grammars can be made for, got {problem}. "
            "Fetch the tokenizer's files again."
        ) from problem


class _Tokens:
    """What llguidance asks of a tokenizer: every token's bytes, and how text is written in ids."""

    def __init__(self, tokenizer: AnsweringTokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.bos_token_id = tokenizer.bos_token_id
        added = tokenizer.added_tokens_decoder.items()
        control = {*control_tokens(tokenizer)}
        self.special_token_ids = [number for number, token in added if token.content in control]
        vocabulary = tokenizer.get_vocab()
        self.tokens = [b""] * (max(vocabulary.values()) + 1)
        for token, number in vocabulary.items():
            self.tokens[number] = _bytes_of(token)
        for number, token in added:
            self.tokens[number] = token.content.encode()

    def __call__(self, text: Any) -> list[int]:
        """Return the ids of a text; bytes are refused, which tells llguidance to give text."""
        return self._tokenizer.encode(text, add_special_tokens=False)


def _bytes_of(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
