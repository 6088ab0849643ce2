"""Convert messages and tools as OpenAI's clients send them into the form that dialog/ takes.

What dialog.messages reads stays as it is, and is checked there; here are the shapes that only
clients of OpenAI's endpoints know.
"""

from collections.abc import Mapping, Sequence
from reprlib import repr as brief
from typing import Any

from ...dialog.parts import MEDIA_TYPES, URL_SCHEMES
from ...errors import RequestError
from ..request import Calls, Message, ToolChoice

KEPT = ("role", "name", "tool_call_id", "tool_calls")
THOUGHTS = ("reasoning_content", "reasoning")
TEXT_PARTS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
URL_PARTS = {"video_url": "video", "audio_url": "audio"}
FILE_PARTS = ("file", "input_file", "document")
# How many soft tokens a picture becomes; what is not said is left to the model's folder.
DETAILS: dict[str, int | None] = {"low": 70, "auto": None, "high": 1120}

_CHOICES = {"none": Calls.NONE, "auto": Calls.AUTO, "required": Calls.REQUIRED}


def read_messages(messages: Sequence[Message]) -> list[Message]:
    """Return messages in the form that dialog.messages takes.

    Raises: RequestError for a file, and for media that are neither text nor an address.
    """
    return [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _message(message: Message, where: str) -> Message:
    if message.get("audio") is not None:
        raise RequestError(
            f"[{where}.audio] needed nothing, got {brief(message['audio'])}. "
            "Spoken answers are not kept: give their text as content."
        )
    kept = {key: message[key] for key in KEPT if message.get(key) is not None}
    kept |= {key: message[key] for key in THOUGHTS if isinstance(message.get(key), str)}
    content = message.get("content")
    kept["content"] = message.get("refusal") if content is None else _content(content, where)
    if kept.get("role") == "function":
        kept["role"] = "tool"
    if kept.get("role") == "assistant":
        kept["content"] = _one_text(kept["content"])
    called = message.get("function_call")
    if called is not None and "tool_calls" not in kept:
        kept["tool_calls"] = [{"type": "function", "function": called}]
    return kept


def _content(content: Any, where: str) -> Any:
    if not isinstance(content, list) or not all(_is_part(part) for part in content):
        return content
    return [_part(part, f"{where}.content[{at}]") for at, part in enumerate(content)]


def _one_text(content: Any) -> Any:
    """Return an answer's parts as one text, which can be continued."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    is_text = all(isinstance(text, str) for text in texts)
    return "".join(map(str, texts)) if is_text else content


def _is_part(part: Any) -> bool:
    """Return whether an item is a part; a tool's result may be a list of anything."""
    known = (*TEXT_PARTS, *URL_PARTS, *FILE_PARTS, *MEDIA_TYPES)
    return isinstance(part, Mapping) and part.get("type") in known


def _part(part: Message, where: str) -> Message:
    kind = part["type"]
    if kind in FILE_PARTS:
        raise RequestError(
            f"[{where}] needed text, a picture, a sound or a video, got a file. "
            "Give its text, or its pages as pictures."
        )
    if kind in TEXT_PARTS:
        return {"type": "text", "text": part.get(TEXT_PARTS[kind])}
    if kind in URL_PARTS:
        return {"type": URL_PARTS[kind], "url": _url(part.get(kind), f"{where}.{kind}")}
    for key in part.keys() & {"image", "audio", "video", "path", "url", "base64"}:
        if not isinstance(part[key], str | None):
            raise RequestError(
                f"[{where}.{key}] needed text, got {brief(part[key])}. Give a data URL."
            )
    return part


def _url(value: Any, where: str) -> str:
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str) or not url.startswith(URL_SCHEMES):
        raise RequestError(
            f"[{where}] needed a URL that begins with {', '.join(URL_SCHEMES)}, got {brief(url)}. "
            "Give a data URL."
        )
    return url


def image_tokens(messages: Sequence[Message]) -> int | None:
    """Return how many soft tokens pictures become: as the one with the most detail wants.

    Raises: RequestError for a detail that does not exist.
    """
    wanted = [
        _detail(part["image_url"].get("detail"), f"messages[{at}].content[{index}].image_url")
        for at, message in enumerate(messages)
        if isinstance(message.get("content"), list)
        for index, part in enumerate(message["content"])
        if isinstance(part, Mapping) and isinstance(part.get("image_url"), Mapping)
    ]
    levels = list(DETAILS)
    return DETAILS[max(wanted, key=levels.index)] if wanted else None


def _detail(stated: Any, where: str) -> str:
    detail = "auto" if stated is None else stated
    if not isinstance(detail, str) or detail not in DETAILS:
        raise RequestError(
            f"[{where}.detail] needed one of {', '.join(DETAILS)}, got {brief(stated)}. Correct it."
        )
    return detail


def read_tools(tools: Sequence[Message]) -> list[Message]:
    """Return the tools, all of them functions, which may be written flat.

    Raises: RequestError for a tool of another type.
    """
    for at, tool in enumerate(tools):
        if tool.get("type") not in (None, "function"):
            raise RequestError(
                f"[tools[{at}].type] needed function, got {brief(tool['type'])}. "
                "Declare it as a function, and run it yourself."
            )
    return list(tools)


def tool_name(tool: Message) -> Any:
    """Return the name of a tool, which may be written flat."""
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, Mapping) else None


def read_choice(choice: Any, tools: Sequence[Message], field: str = "tool_choice") -> ToolChoice:
    """Return the client's choice among tools.

    Raises: RequestError for a choice that does not exist, or of a tool that was not given.
    """
    if choice is None:
        return ToolChoice()
    if isinstance(choice, Mapping):
        return ToolChoice(Calls.REQUIRED, _chosen_name(choice, tools, field))
    if not isinstance(choice, str) or choice not in _CHOICES:
        raise RequestError(
            f"[{field}] needed none, auto, required or a function, got {brief(choice)}. Correct it."
        )
    if choice == "required" and not tools:
        raise RequestError(f"[tools] needed a tool that must be called, got none. Give {field} up.")
    return ToolChoice(_CHOICES[choice])


def _chosen_name(choice: Message, tools: Sequence[Message], field: str) -> str:
    names = [tool_name(tool) for tool in tools]
    name = tool_name(choice)
    if choice.get("type") not in (None, "function") or not isinstance(name, str):
        raise RequestError(
            f"[{field}] needed a function and its name, got {brief(choice)}. "
            'Give one like {"type": "function", "function": {"name": "now"}}.'
        )
    if name not in names:
        given = ", ".join(map(str, names)) or "none"
        raise RequestError(f"[{field}] needed one of the tools ({given}), got {name}. Correct it.")
    return name
