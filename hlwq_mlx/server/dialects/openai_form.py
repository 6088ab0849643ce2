"""Bring messages and tools of other dialects into OpenAI's form, as ChatRequest holds them."""

from collections.abc import Iterable, Mapping
from reprlib import repr as brief
from typing import Any

from ...errors import RequestError

Form = dict[str, Any]

_KINDS: dict[type, str] = {str: "text", Mapping: "an object", list: "a list"}


def member(value: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """Return what an object has under a key, which must be of a kind.

    Raises: RequestError that names the place.
    """
    found = value.get(key)
    if not isinstance(found, kind):
        raise RequestError(
            f"[{where}.{key}] needed {_KINDS[kind]}, got {brief(found)}. Correct it."
        )
    return found


def as_objects(values: Any, where: str, named: str) -> list[Mapping[str, Any]]:
    """Return a list of objects as it is.

    Raises: RequestError for anything else; `named` says what the objects are.
    """
    if not isinstance(values, list) or not all(isinstance(each, Mapping) for each in values):
        raise RequestError(
            f"[{where}] needed text or a list of {named}, got {brief(values)}. Correct it."
        )
    return values


def text_part(text: str) -> Form:
    """Return a part that is text."""
    return {"type": "text", "text": text}


def picture_part(url: str, detail: str | None = None) -> Form:
    """Return a part that is a picture, named by its URL."""
    return {"type": "image_url", "image_url": {"url": url, "detail": detail}}


def joined(parts: Iterable[Form], glue: str = "\n") -> str | list[Form]:
    """Return content of parts: text if that is all there is.

    Neighbouring texts are joined here, because templates write nothing between them.
    """
    found: list[Form] = []
    for part in parts:
        if found and part["type"] == found[-1]["type"] == "text":
            found[-1] = text_part(found[-1]["text"] + glue + part["text"])
        else:
            found.append(part)
    if not found:
        return ""
    return found[0]["text"] if len(found) == 1 and found[0]["type"] == "text" else found


def plain_text(parts: Iterable[Form], where: str, glue: str = "\n") -> str:
    """Return parts that must be text, as instructions and earlier answers must.

    Raises: RequestError for a medium.
    """
    text = joined(parts, glue)
    if not isinstance(text, str):
        raise RequestError(
            f"[{where}] needed text alone, got a picture or a sound. Put it into a user message."
        )
    return text


def call(id: str, name: str, arguments: Any) -> Form:
    """Return a call that was made; `arguments` are an object or its JSON text."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def function(name: str, description: Any, parameters: Any) -> Form:
    """Return a tool that is offered."""
    told: Form = {"name": name, "description": description, "parameters": parameters}
    known = {key: value for key, value in told.items() if value is not None}
    return {"type": "function", "function": known}


def join_messages(pieces: Iterable[Form]) -> list[Form]:
    """Return messages of pieces: an answer's thought, text and calls are one message.

    Instructions that come later than the first message are what an assistant tells its model along
    the way. The chat template takes none there, so a user says them, marked as Claude Code does,
    and before what the user said last: that is what the model shall answer.
    """
    messages: list[Form] = []
    for piece in pieces:
        before = messages[-1] if messages else {"role": "system"}
        if piece["role"] == "system" and before["role"] != "system":
            text = f"<system-reminder>\n{piece['content']}\n</system-reminder>"
            at = len(messages) - (before["role"] == "user")
            messages.insert(at, {"role": "user", "content": text})
        elif piece["role"] == before["role"] == "assistant":
            messages[-1] = _joined_answer(before, piece)
        else:
            messages.append(piece)
    return messages


def _joined_answer(first: Form, second: Form) -> Form:
    both = {**first, **second}
    for key in first.keys() & second.keys() - {"role"}:
        both[key] = _both(first[key], second[key])
    return both


def _both(first: Any, second: Any) -> Any:
    """Return two texts or two lists as one, and a text beside a list as a part of it."""
    if isinstance(first, str) == isinstance(second, str):
        return first + second
    listed = [[text_part(each)] if isinstance(each, str) else each for each in (first, second)]
    return joined(listed[0] + listed[1], "")
