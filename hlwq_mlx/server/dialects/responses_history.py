"""Read the items of a Responses request into messages.

Items without a message in them are left out: what OpenAI's own tools did for another model.
"""

from collections.abc import Callable, Mapping
from reprlib import repr as brief
from typing import Any

from ...errors import RequestError
from .openai_form import (
    Form,
    as_objects,
    call,
    join_messages,
    joined,
    member,
    picture_part,
    plain_text,
    text_part,
)
from .responses_tools import INPUT, model_name

Item = Mapping[str, Any]

_TEXT_KEYS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "summary_text": "text",
}
LEFT_OUT = ("web_search_call", "image_generation_call", "file_search_call", "additional_tools")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def messages_of(instructions: str, items: Any) -> list[Form]:
    """Return the messages of a request.

    Raises: RequestError that names the item at fault.
    """
    pieces: list[Form] = []
    if instructions:
        pieces.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        pieces.append({"role": "user", "content": items})
        return pieces
    for at, item in enumerate(as_objects(items, "input", "items")):
        pieces += _read(item, f"input[{at}]")
    return join_messages(pieces)


def additional_tools(items: Any) -> list[Item]:
    """Return the tools that come among the items, as Codex sends them."""
    listed = items if isinstance(items, list) else []
    found = [
        each.get("tools")
        for each in listed
        if isinstance(each, Mapping) and each.get("type") == "additional_tools"
    ]
    return [tool for tools in found for tool in as_objects(tools, "input.tools", "tools")]


def _read(item: Item, where: str) -> list[Form]:
    kind = item.get("type") or "message"
    if kind in LEFT_OUT:
        return []
    reader = READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise RequestError(
            f"[{where}.type] needed one of {', '.join(READERS)}, got {brief(kind)}. "
            "Nothing is stored here: send what the item stands for."
        )
    return [reader(item, where)]


def _message(item: Item, where: str) -> Form:
    role = ROLES.get(str(item.get("role")))
    if role is None:
        raise RequestError(
            f"[{where}.role] needed one of {', '.join(ROLES)}, got {brief(item.get('role'))}. "
            "Correct it."
        )
    place = f"{where}.content"
    parts = _parts(item.get("content"), place)
    if role == "assistant":
        return {"role": role, "content": plain_text(parts, place, "")}
    return {
        "role": role,
        "content": plain_text(parts, place) if role == "system" else joined(parts),
    }


def _parts(content: Any, where: str) -> list[Form]:
    if content is None:
        return []
    if isinstance(content, str):
        return [text_part(content)]
    parts = as_objects(content, where, "parts")
    return [_part(part, f"{where}[{at}]") for at, part in enumerate(parts)]


def _part(part: Item, where: str) -> Form:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _TEXT_KEYS:
        return text_part(member(part, _TEXT_KEYS[kind], str, where))
    if kind == "input_image" and part.get("file_id") is None:
        detail = "high" if part.get("detail") == "original" else part.get("detail")
        return picture_part(member(part, "image_url", str, where), detail)
    if kind == "input_audio":
        return {"type": kind, "input_audio": part.get("input_audio")}
    stored = " that is stored elsewhere" if kind == "input_image" else ""
    raise RequestError(
        f"[{where}] needed input_text, input_image with an image_url or input_audio, got "
        f"{brief(kind)}{stored}. Send a file's text, or pictures of its pages."
    )


def _reasoning(item: Item, where: str) -> Form:
    """Return an earlier thought: its text if the item has it, or else its summary."""
    parts = _parts(item.get("content"), f"{where}.content")
    parts = parts or _parts(item.get("summary"), f"{where}.summary")
    return {"role": "assistant", "content": "", "reasoning_content": plain_text(parts, where)}


def _called(item: Item, where: str, name: str, arguments: Any) -> Form:
    id = member(item, "call_id", str, where)
    return {"role": "assistant", "content": "", "tool_calls": [call(id, name, arguments)]}


def _function_call(item: Item, where: str) -> Form:
    name = model_name(member(item, "name", str, where), item.get("namespace"))
    return _called(item, where, name, item.get("arguments"))


def _custom_call(item: Item, where: str) -> Form:
    name = model_name(member(item, "name", str, where), item.get("namespace"))
    return _called(item, where, name, {INPUT: member(item, "input", str, where)})


def _shell_call(item: Item, where: str) -> Form:
    return _called(item, where, "local_shell", member(item, "action", Mapping, where))


def _output(item: Item, where: str) -> Form:
    output = item.get("output")
    if not isinstance(output, Mapping):
        output = joined(_parts(output, f"{where}.output"))
    id = item.get("call_id") or item.get("id")
    return {"role": "tool", "tool_call_id": id, "content": output}


READERS: Mapping[str, Callable[[Item, str], Form]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _function_call,
    "function_call_output": _output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _output,
    "local_shell_call": _shell_call,
    "local_shell_call_output": _output,
}
