"""Make mlx-lm's server render messages as our commands do.

mlx-lm renders what clients send as it came: text becomes control tokens, and templates garble what
`dialog.messages` repairs. A raw prompt (/v1/completions) is no message and stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import ModuleType
from typing import Any

from ..dialog import template
from ..dialog.guard import free_letter
from ..dialog.messages import Message
from .patches import replace


def patch_server(server: ModuleType) -> None:
    """Wrap the function that makes ids of a request.

    Raises: DeviceError for an mlx-lm whose function is another.
    """
    replace(server.ResponseGenerator, "_tokenize", "self tokenizer request args", rendering)


def rendering(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap mlx-lm's `_tokenize` so that it renders the messages of a chat by our template."""

    @wraps(original)
    def tokenize(self: Any, tokenizer: Any, request: Any, *more: Any) -> Any:
        is_chat = request.request_type == "chat"
        return original(self, PromptTokenizer(tokenizer) if is_chat else tokenizer, request, *more)

    return tokenize


class PromptTokenizer:
    """A tokenizer that renders and encodes messages as `dialog.template` does, for one request."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._cut = ""  # stands where a rendered text breaks while mlx-lm puts media into it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[int] | str:
        """Render messages and the opening of an answer, which mlx-lm's other prompts bear too."""
        rendered = template.render(self._tokenizer, messages, tools=tools, options=options)
        if tokenize:
            return template.encode(self._tokenizer, rendered)
        self._cut = free_letter(rendered.text)
        return self._cut.join(rendered.pieces())

    def encode(self, text: str, **options: Any) -> list[int]:
        """Encode a rendered text that media were put into."""
        pieces = text.split(self._cut)
        return [token for piece in pieces for token in self._tokenizer.encode(piece, **options)]
