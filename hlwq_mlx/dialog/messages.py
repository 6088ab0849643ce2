"""Repair messages and tools, as OpenAI's clients write them, into what chat templates take.

The template comes with the checkpoint and may be an older one, so messages are brought into a form
that all of Gemma 4's templates render alike. What they would silently drop or garble, or fail on,
is refused here with its place named.
Source: gemma4_architecture §5.1, its rules.
"""

import json
from collections.abc import Mapping, Sequence
from reprlib import repr as brief  # of what may be long or nested without end
from typing import Any

from ..errors import RequestError
from .declaration import declare
from .grammar import without_thoughts
from .parts import MEDIA_TYPES, Medium, Normal, normalize_part
from .values import is_name

Message = Mapping[str, Any]

INSTRUCTIONS = ("system", "developer")
ROLES = (*INSTRUCTIONS, "user", "assistant", "tool")


def normalize_messages(messages: Sequence[Message]) -> list[Normal]:
    """Return messages that a chat template takes; the ones given stay as they are.

    Raises: RequestError that names the message at fault.
    """
    if isinstance(messages, str | Mapping) or not messages:
        raise RequestError(
            f"[messages] needed a list with at least one message, got {brief(messages)}. "
            'Give one like {"role": "user", "content": "Hello!"}.'
        )
    normal = [_normal(message, index) for index, message in enumerate(messages)]
    return _join_answers(_attach_results(_join_instructions(normal)))


def _normal(message: Message, index: int) -> Normal:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise RequestError(
            f"[{where}] needed an object with role and content, got {brief(message)}. Correct it."
        )
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(
            f"[{where}.role] needed one of {', '.join(ROLES)}, got {brief(role)}. Correct it."
        )
    content = message.get("content")
    if role == "tool":
        return {**message, "content": _result_content(content, where)}
    if role in INSTRUCTIONS:
        return {**message, "role": "system", "content": _plain_text(content, where)}
    normal = {**message, "content": _content(content, where)}
    if role == "assistant":
        normal["content"] = _answer_content(normal["content"])
    calls = normal.pop("tool_calls", None)
    if calls and not isinstance(calls, list | tuple):
        raise RequestError(
            f"[{where}.tool_calls] needed a list of calls, got {brief(calls)}. Make it a list."
        )
    if calls:
        normal["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{at}]", f"call_{index}_{at}")
            for at, call in enumerate(calls)
        ]
    return normal


def _content(content: Any, where: str) -> str | list[Normal | Medium]:
    """Return text as it is and parts checked; an absent content is an empty text."""
    if content is None or content == []:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RequestError(
            f"[{where}.content] needed text or a list of parts, got {brief(content)}. Make it text."
        )
    return [normalize_part(part, f"{where}.content[{at}]") for at, part in enumerate(content)]


def _answer_content(content: str | list[Normal | Medium]) -> str | list[Normal | Medium]:
    """Return an earlier answer without thoughts, which templates remove from text too."""
    if isinstance(content, str):
        return without_thoughts(content)
    return [
        part if isinstance(part, Medium) else {**part, "text": without_thoughts(part["text"])}
        for part in content
    ]


def _plain_text(content: Any, where: str) -> str:
    """Return the content of a message that every template expects to be plain text."""
    checked = _content(content, where)
    if isinstance(checked, str):
        return checked
    texts = []
    for part in checked:
        if isinstance(part, Medium):
            raise RequestError(
                f"[{where}.content] needed text in a system message, got {part.kind}. "
                "Put media into a user message."
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _join_instructions(messages: list[Normal]) -> list[Normal]:
    """Join the instructions into the first message, where templates look for them."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    late = [at for at, message in enumerate(messages) if message["role"] == "system"][-1:]
    if late and late[0] >= len(system):
        raise RequestError(
            f"[messages[{late[0]}].role] needed instructions in the first messages only, got some "
            "here. Move the text to the first message, or make it a user message."
        )
    if len(system) < 2:
        return messages
    return [{**messages[0], "content": "\n\n".join(system)}, *messages[len(system) :]]


def _call(call: Any, where: str, default_id: str) -> Normal:
    """Return a tool call in OpenAI's form, its arguments an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not is_name(name):
        raise RequestError(
            f"[{where}] needed a function with a name and arguments, got {brief(call)}. Correct it."
        )
    arguments = _arguments(function.get("arguments"), f"{where}.function.arguments")
    return {
        "id": call.get("id") or default_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _arguments(arguments: Any, where: str) -> Normal:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else None
        except (ValueError, RecursionError) as problem:
            raise RequestError(
                f"[{where}] needed an object or its JSON text, got {brief(arguments)} ({problem}). "
                "Correct the JSON."
            ) from problem
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise RequestError(
            f"[{where}] needed an object or its JSON text, got {brief(arguments)}. "
            "Name each argument: {...}."
        )
    return dict(arguments)


def _result_content(content: Any, where: str) -> Any:
    """Return a tool's result: text, parts with media, or structured data."""
    is_parts = isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and part.get("type") in ("text", *MEDIA_TYPES) for part in content
    )
    if content is None or not is_parts or content == []:
        return "" if content is None else content
    parts = [normalize_part(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
    if _has_media(parts):
        return parts
    return "".join(part["text"] for part in parts if not isinstance(part, Medium))


def _attach_results(messages: list[Normal]) -> list[Normal]:
    """Pair tool results with their calls, and move structured ones into the message of the call."""
    attached: list[Normal] = []
    at = 0
    while at < len(messages):
        end = at + 1
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        message, results = messages[at], messages[at + 1 : end]
        calls = message.get("tool_calls", [])
        if message["role"] == "tool" or (results and not calls):
            raise RequestError(
                f"[messages[{at if message['role'] == 'tool' else at + 1}]] needed a tool result "
                "to follow an assistant message with tool_calls, got none before it. "
                "Keep the message that made the call."
            )
        if calls and not message.get("tool_responses"):
            results = _pair(calls, results, at, is_last=end == len(messages))
            attached += _with_results(message, results)
            if results and not message["content"] and end < len(messages):
                attached += _turn_end(messages[end])
        else:
            attached += [message, *results]
        at = end
    return attached


def _turn_end(following: Normal) -> list[Normal]:
    """Close a turn that ends with tool results, which older templates leave open."""
    is_going_on = following["role"] == "assistant"
    return [] if is_going_on else [{"role": "assistant", "content": ""}]


def _pair(calls: list[Normal], results: list[Normal], at: int, *, is_last: bool) -> list[Normal]:
    """Return the results with the id and name of their calls.

    Every call needs a result, except at the end of the messages, where none may have one yet.
    """
    waiting = list(calls)
    paired = []
    for offset, result in enumerate(results, start=1):
        call = _find_call(waiting, result, f"messages[{at + offset}]")
        waiting.remove(call)
        named = {"tool_call_id": call["id"], "name": call["function"]["name"]}
        paired.append({**result, **named})
    if waiting and (paired or not is_last):
        names = ", ".join(call["function"]["name"] for call in waiting)
        raise RequestError(
            f"[messages[{at}].tool_calls] needed a tool message for every call, got none for "
            f"{names}. Add one after the message that made the call."
        )
    return paired


def _find_call(waiting: list[Normal], result: Normal, where: str) -> Normal:
    """Find the call that a result answers; without an id, it must be clear which."""
    stated = result.get("tool_call_id")
    name = result.get("name") or result.get("tool_name")
    if stated:
        found = [call for call in waiting if call["id"] == stated]
    else:
        found = [call for call in waiting if name in (None, call["function"]["name"])]
    if len({call["function"]["name"] for call in found}) != 1:
        ids = ", ".join(str(call["id"]) for call in waiting) or "none: every call has its result"
        raise RequestError(
            f"[{where}.tool_call_id] needed the id of a call that waits for a result ({ids}), "
            f"got {brief(stated)}. Correct it."
        )
    return found[0]


def _with_results(message: Normal, results: list[Normal]) -> list[Normal]:
    """Return a message and its results: tool messages, or `tool_responses` if one is structured.

    Templates fail on an object in a tool message, and render it natively only in `tool_responses`.
    They drop media there, so beside media an object becomes JSON text.
    """
    has_media = any(_has_media(result["content"]) for result in results)
    if all(isinstance(result["content"], str) for result in results):
        return [message, *results]
    if has_media:
        return [message, *({**each, "content": _as_text(each["content"])} for each in results)]
    responses = [
        {"name": each["name"], "response": _as_object(each["content"])} for each in results
    ]
    return [{**message, "tool_responses": responses}]


def _has_media(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(part, Medium) for part in content)


def _as_text(content: Any) -> Any:
    if isinstance(content, str) or _has_media(content):
        return content
    try:
        return json.dumps(content, ensure_ascii=False, default=str)
    except (ValueError, RecursionError) as problem:
        raise RequestError(
            f"[messages] needed a tool's result that ends, got {brief(content)} ({problem}). "
            "Shorten it."
        ) from problem


def _as_object(content: Any) -> Normal:
    """Return an object for a result; a bare value goes under the name that templates use."""
    return dict(content) if isinstance(content, Mapping) else {"value": content}


def _join_answers(messages: list[Normal]) -> list[Normal]:
    """Join neighbouring assistant texts into one turn, which older templates would close twice."""
    joined: list[Normal] = []
    for message in messages:
        if joined and _is_plain_answer(joined[-1]) and _is_plain_answer(message):
            joined[-1] = {**joined[-1], "content": joined[-1]["content"] + message["content"]}
        else:
            joined.append(message)
    return joined


def _is_plain_answer(message: Normal) -> bool:
    return (
        message["role"] == "assistant"
        and isinstance(message["content"], str)
        and not message.get("tool_calls")
        and not message.get("tool_responses")
    )


def normalize_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Normal]:
    """Return tools in OpenAI's form with all that templates read.

    Raises: RequestError that names the tool at fault.
    """
    return [
        {"type": "function", "function": declare(function, where)}
        for where, function in named_functions(tools)
    ]


def named_functions(
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the functions of tools as they were given, each with its place.

    Raises: RequestError that names the tool at fault.
    """
    if tools is None:
        return []
    if isinstance(tools, str | Mapping):
        raise RequestError(
            f"[tools] needed a list of tools, got {brief(tools)}. Put it into a list."
        )
    return [
        (f"tools[{at}].function", _function(tool, f"tools[{at}]")) for at, tool in enumerate(tools)
    ]


def _function(tool: Any, where: str) -> Mapping[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not is_name(name):
        raise RequestError(
            f"[{where}] needed a function named in letters, digits and _-.:, got {brief(tool)}. "
            'Give one like {"type": "function", "function": {"name": "now"}}.'
        )
    return function
