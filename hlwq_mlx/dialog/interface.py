"""The methods of a tokenizer that this package uses, as protocols.

Two classes have them: ours in tokenizer.py, and mlx-lm's wrapper, which stock mlx-lm passes to us.
"""

from collections.abc import Collection, Mapping
from typing import Any, Protocol


class DetokenizerLike(Protocol):
    """Converts ids to text as they come."""

    @property
    def last_segment(self) -> str:
        """The text that became certain with the last call."""
        ...

    def add_token(self, token: int, /) -> None:
        """Take an id."""
        ...

    def finalize(self) -> None:
        """End the text."""
        ...


class TokenizerLike(Protocol):
    """Converts text to ids, and renders messages by the checkpoint's template."""

    @property
    def bos_token(self) -> str | None: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The added tokens by id; an item's `content` is its text."""
        ...

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""
        ...

    def apply_chat_template(
        self,
        messages: Any,
        tools: Any = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        **variables: Any,
    ) -> Any:
        """Render messages; return ids, or text if `tokenize` is False."""
        ...


class AnsweringTokenizer(TokenizerLike, Protocol):
    """A tokenizer that also reads answers, and knows which ids end them."""

    @property
    def eos_token_ids(self) -> Collection[int]: ...

    @property
    def detokenizer(self) -> DetokenizerLike:
        """A fresh detokenizer."""
        ...

    def get_vocab(self) -> Mapping[str, int]:
        """Return every token with its id."""
        ...
