"""Read the system prompt, the turns and the tools of a request in Anthropic's form."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from reprlib import repr as brief
from typing import Any

from ...errors import RequestError
from .openai_form import (
    Form,
    as_objects,
    call,
    function,
    join_messages,
    joined,
    member,
    picture_part,
    plain_text,
    text_part,
)

Block = Mapping[str, Any]

# Claude Code's first line, which changes from request to request and would make each prompt new.
BILLING = "x-anthropic-billing-header"


def messages_of(system: Any, turns: Sequence[Mapping[str, Any]]) -> list[Form]:
    """Return the messages of a request; `turns` have a role and content.

    Neighbouring turns of one role are one turn, as the API defines it, so results of tools come
    before what the user says beside them.
    Raises: RequestError that names the block at fault.
    """
    pieces = [{"role": "system", "content": text} for text in _system(system)]
    placed = [(turn["role"], turn.get("content"), at) for at, turn in enumerate(turns)]
    for role, group in groupby(placed, key=lambda turn: turn[0]):
        blocks = [each for _, content, at in group for each in _blocks(content, _place(at))]
        pieces += READERS[role](blocks)
    return join_messages(pieces)


def _place(at: int) -> str:
    return f"messages[{at}].content"


def _system(system: Any) -> Iterator[str]:
    """Yield the texts of the system prompt, without the line that changes."""
    texts = [plain_text([_part(*placed)], placed[1]) for placed in _blocks(system, "system")]
    for text in texts:
        first, _, rest = text.partition("\n")
        kept = rest if first.startswith(BILLING) else text
        if kept.strip():
            yield kept


Placed = tuple[Block, str]


def _blocks(content: Any, where: str) -> list[Placed]:
    """Return the blocks of a content, each with its place."""
    if content is None:
        return []
    if isinstance(content, str):
        return [(text_part(content), where)]
    blocks = as_objects(content, where, "blocks")
    return [(block, f"{where}[{at}]") for at, block in enumerate(blocks)]


def _user(blocks: Iterable[Placed]) -> list[Form]:
    blocks = list(blocks)
    results = [_result(*placed) for placed in blocks if placed[0].get("type") == "tool_result"]
    parts = [_part(*placed) for placed in blocks if placed[0].get("type") != "tool_result"]
    return [*results, {"role": "user", "content": joined(parts)}] if parts else results


def _assistant(blocks: Iterable[Placed]) -> list[Form]:
    return [{"role": "assistant", "content": ""}, *(_answer(*placed) for placed in blocks)]


def _instructions(blocks: Iterable[Placed]) -> list[Form]:
    blocks = list(blocks)
    parts = [_part(*placed) for placed in blocks]
    return [{"role": "system", "content": plain_text(parts, blocks[0][1])}] if parts else []


READERS: Mapping[str, Callable[[Iterable[Placed]], list[Form]]] = {
    "user": _user,
    "assistant": _assistant,
    "system": _instructions,
}


def _part(block: Block, where: str) -> Form:
    """Return a block of a user or of a tool's result as a part."""
    stated = block.get("type")
    if stated == "text":
        return text_part(member(block, "text", str, where))
    if stated == "image":
        return picture_part(_picture(member(block, "source", Mapping, where), f"{where}.source"))
    if stated == "tool_reference":  # what a search for tools found; all are in the prompt anyway
        return text_part(f"The tool {member(block, 'tool_name', str, where)} can be called.")
    raise RequestError(
        f"[{where}.type] needed text, image or tool_result, got {brief(stated)}. "
        "The model reads text and pictures: send a document's text, or pictures of its pages."
    )


def _picture(source: Block, where: str) -> str:
    stated = source.get("type")
    if stated == "base64":
        kind = source.get("media_type")
        kind = kind if isinstance(kind, str) else ""
        return f"data:{kind};base64,{member(source, 'data', str, where)}"
    if stated == "url":
        return str(member(source, "url", str, where))
    raise RequestError(
        f"[{where}.type] needed base64 or url, got {brief(stated)}. Files are not stored here."
    )


def _result(block: Block, where: str) -> Form:
    """Return the result of a tool; an error is one under the name that models expect."""
    blocks = _blocks(block.get("content"), f"{where}.content")
    content: Any = joined(_part(*placed) for placed in blocks)
    if block.get("is_error") is True:
        is_text = isinstance(content, str)
        content = {"error": content} if is_text else [text_part("The tool failed:"), *content]
    id = member(block, "tool_use_id", str, where)
    return {"role": "tool", "tool_call_id": id, "content": content}


def _answer(block: Block, where: str) -> Form:
    """Return a block of an earlier answer as a piece of its message."""
    piece: Form = {"role": "assistant"}
    stated = block.get("type")
    if stated == "text":
        return piece | {"content": member(block, "text", str, where)}
    if stated == "thinking":  # signatures are ours or another model's, and prove nothing here
        return piece | {"reasoning_content": member(block, "thinking", str, where)}
    if stated == "redacted_thinking":  # which only its author can read
        return piece
    if stated == "tool_use":
        id, name = (member(block, key, str, where) for key in ("id", "name"))
        return piece | {"tool_calls": [call(id, name, member(block, "input", Mapping, where))]}
    raise RequestError(
        f"[{where}.type] needed text, thinking or tool_use, got {brief(stated)}. "
        "The tools of Anthropic's servers are not here: leave their blocks out."
    )


def tools_of(tools: Sequence[Block]) -> list[Form]:
    """Return tools in OpenAI's form.

    Raises: RequestError for a tool that Anthropic defines: its servers execute it, or its models
    know it without a description.
    """
    return [_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)]


def _tool(tool: Block, where: str) -> Form:
    stated = tool.get("type") or "custom"
    if stated != "custom":
        raise RequestError(
            f"[{where}.type] needed a tool with a name and an input_schema, got {brief(stated)}, "
            "which Anthropic's own models and servers know. Describe it as a tool of your own."
        )
    name = member(tool, "name", str, where)
    return function(name, tool.get("description"), member(tool, "input_schema", Mapping, where))
