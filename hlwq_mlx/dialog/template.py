"""Convert messages to token ids by the checkpoint's own chat template.

The package has no template of its own, since released ones differ between model sizes and dates.
The template writes `<bos>` itself, so it must not be added again.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..errors import RequestError
from .guard import Guard, control_tokens, free_letter
from .interface import TokenizerLike
from .messages import Message, normalize_messages, normalize_tools
from .parts import Medium, take_media
from .placeholders import SoftTokens, Span, expand
from .readable import readable
from .result_media import Slots
from .spelled import Spelled

TURN_END, MODEL_TURN = "<turn|>\n", "<|turn>model\n"


class Rendered(NamedTuple):
    """A prompt as text, with a placeholder for each medium, and the media in that order.

    No token may span a position in `breaks`: a user wrote the text of a control token there. A raw
    prompt has no breaks, because its author writes the control tokens too.
    """

    text: str
    media: tuple[Medium, ...] = ()
    breaks: tuple[int, ...] = ()

    def pieces(self) -> list[str]:
        """Return the text, cut at its breaks."""
        return Spelled(self.text, self.breaks).pieces()


def render(
    tokenizer: TokenizerLike,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool = False,
    options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> Rendered:
    """Render messages as text, and the opening of the model's turn unless told not to.

    Messages and tools are repaired first (see dialog.messages); media become the template's
    placeholders, and control tokens in people's texts stay text (see dialog.guard). `options` are
    further template variables.
    Raises: RequestError when there is no template or it refuses the messages.
    """
    normal, media = take_media(normalize_messages(messages))
    if not tokenizer.has_chat_template:
        raise RequestError(
            "[template] needed a chat template, got a tokenizer without one. "
            "Add chat_template.jinja to the folder, or give the prompt as it is."
        )
    offered = normalize_tools(tools)
    variables = {"enable_thinking": thinking, **(options or {})}
    from jinja2 import TemplateError  # not before there is something to render

    try:
        slots = Slots(free_letter([normal, offered, variables]))
        normal = [slots.take(message) for message in normal]
        guard = Guard(control_tokens(tokenizer), [normal, offered, variables])
        marked = _renderer(tokenizer)(
            [guard.message(message) for message in normal],
            tools=[guard.tool(tool) for tool in offered] or None,
            add_generation_prompt=add_generation_prompt,
            **guard.beginnings(variables),
        )
    except (TemplateError, KeyError, TypeError, ValueError, RecursionError) as problem:
        raise RequestError(
            f"[template] needed messages that the checkpoint's template can render, got {problem}. "
            "Check roles and contents."
        ) from problem
    # After a message with content, calls and results, some templates do not open the model's turn.
    text, breaks = guard.resolve(slots.fill(str(marked)))
    opening = MODEL_TURN if add_generation_prompt and text.endswith(TURN_END) else ""
    return Rendered(f"{text}{opening}", media, breaks)


def continued(tokenizer: TokenizerLike, prompt: Rendered, text: str) -> Rendered:
    """Return a prompt whose answer already begins with a text; control tokens in it stay text."""
    spelled = "|".join(map(re.escape, sorted(control_tokens(tokenizer), key=len, reverse=True)))
    begun = len(prompt.text)
    breaks = [begun + found.start() + 1 for found in re.finditer(f"(?={spelled})", text)]
    return prompt._replace(text=prompt.text + text, breaks=(*prompt.breaks, *breaks))


def _renderer(tokenizer: TokenizerLike) -> Callable[..., Any]:
    """Return the method that applies the template alone; mlx-lm's wrapper has no other."""
    plain: Callable[..., Any] | None = getattr(tokenizer, "render_as_given", None)
    return plain or partial(tokenizer.apply_chat_template, tokenize=False)


def encode(
    tokenizer: TokenizerLike,
    prompt: Rendered,
    spans: Sequence[Span] = (),
    tokens: Mapping[str, SoftTokens] | None = None,
) -> list[int]:
    """Turn a prompt into ids, with `<bos>` at the front exactly once.

    `spans` stand in for the text's placeholders, written in the soft `tokens` of their kinds.
    Raises: RequestError for an empty text, or as many spans as there are no placeholders for.
    """
    pieces = prompt._replace(text=readable(prompt.text)).pieces()
    begins = tokenizer.bos_token is not None and pieces[0].startswith(tokenizer.bos_token)
    ids = expand(tokenizer, pieces, spans, tokens or {})
    if not ids:
        raise RequestError("[prompt] needed some text, got none. Give a prompt.")
    if not begins and tokenizer.bos_token_id is not None:
        ids.insert(0, tokenizer.bos_token_id)
    return ids
