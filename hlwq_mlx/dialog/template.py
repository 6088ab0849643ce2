"""Messages to token ids, by the checkpoint's own chat template.

The template is never ours: released ones differ between model sizes and dates. It writes `<bos>`
itself, so nothing else may.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError

from ..errors import RequestError
from .messages import Message, normalize_messages, normalize_tools
from .parts import Medium, take_media
from .placeholders import SoftTokens, Span, expand, guard

TURN_END, MODEL_TURN = "<turn|>\n", "<|turn>model\n"


class Rendered(NamedTuple):
    """A prompt as text, with a placeholder for each medium, and the media in that order."""

    text: str
    media: tuple[Medium, ...] = ()


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Rendered:
    """Spell messages and the opening of the model's turn as text.

    Messages and tools are repaired first (see dialog.messages); media become the template's
    placeholders, and texts that look like one do not. `options` are further template variables.
    Raises: RequestError when there is no template or it refuses the messages.
    """
    normal, media = take_media(normalize_messages(messages))
    if not tokenizer.has_chat_template:
        raise RequestError(
            "[template] needed a chat template, got a tokenizer without one. "
            "Add chat_template.jinja to the folder, or give the prompt as it is."
        )
    try:
        text = tokenizer.apply_chat_template(
            guard(normal),
            tools=guard(normalize_tools(tools)) or None,
            tokenize=False,
            add_generation_prompt=True,
            **{"enable_thinking": thinking, **(options or {})},
        )
    except (TemplateError, KeyError, TypeError, ValueError) as problem:
        raise RequestError(
            f"[template] needed messages the checkpoint's template can spell, got {problem}. "
            "Check roles and contents."
        ) from problem
    # Some templates forget the model's turn after a message with content, calls and results.
    opening = MODEL_TURN if str(text).endswith(TURN_END) else ""
    return Rendered(f"{text}{opening}", media)


def encode(
    tokenizer: Any,
    text: str,
    spans: Sequence[Span] = (),
    tokens: Mapping[str, SoftTokens] | None = None,
) -> list[int]:
    """Turn text into ids, with `<bos>` at the front exactly once.

    `spans` stand in for the text's placeholders, written in the soft `tokens` of their kinds.
    Raises: RequestError for an empty text, or as many spans as there are no placeholders for.
    """
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids = expand(tokenizer, text, spans, tokens or {})
    if not ids:
        raise RequestError("[prompt] needed some text, got none. Give a prompt.")
    if not begins and tokenizer.bos_token_id is not None:
        ids.insert(0, tokenizer.bos_token_id)
    return ids
