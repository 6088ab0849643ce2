"""Messages to token ids, by the checkpoint's own chat template.

The template is never ours: released ones differ between model sizes and dates. It writes `<bos>`
itself, so nothing else may.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from ..errors import RequestError
from .messages import Message, normalize_messages, normalize_tools

TURN_END, MODEL_TURN = "<turn|>\n", "<|turn>model\n"


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool = False,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Spell messages and the opening of the model's turn as text.

    Messages and tools are repaired first (see dialog.messages); media parts become the template's
    placeholders. `options` are further template variables.
    Raises: RequestError when there is no template or it refuses the messages.
    """
    normal = normalize_messages(messages)
    if not tokenizer.has_chat_template:
        raise RequestError(
            "[template] needed a chat template, got a tokenizer without one. "
            "Add chat_template.jinja to the folder, or give the prompt as it is."
        )
    try:
        text = tokenizer.apply_chat_template(
            normal,
            tools=normalize_tools(tools) or None,
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
    return f"{text}{MODEL_TURN}" if str(text).endswith(TURN_END) else str(text)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Turn text into ids, with `<bos>` at the front exactly once.

    Raises: RequestError for an empty text.
    """
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise RequestError("[prompt] needed some text, got none. Give a prompt.")
    if not begins and tokenizer.bos_token_id is not None:
        ids.insert(0, tokenizer.bos_token_id)
    return ids
