"""Read the tools of a Responses request, and write calls of them as its client named them.

The model is offered functions alone. A custom tool takes free text: it becomes a function with one
text, and its grammar is described. Tools in a name space get its name in front. Tools of OpenAI's
own, as web_search, are left out: Codex sends them with every request, and they do nothing here.
Source: the types of the `openai` client 3.57; requests of Codex 0.171.0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

from ...errors import RequestError
from ..events import Call
from ..request import ToolChoice
from .openai_form import Form, as_objects, function, member
from .openai_messages import read_choice
from .openai_options import to_json

SERVED = ("function", "custom")
INPUT = "input"  # what the one argument of a custom tool is called
_TEXT = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}


@dataclass(frozen=True)
class Offered:
    """A tool as it is offered to the model, and how its client calls it."""

    form: Form
    name: str
    namespace: str | None = None
    is_custom: bool = False


def offered(tools: Sequence[Mapping[str, Any]]) -> dict[str, Offered]:
    """Return the tools that the model can call, by the names that it knows.

    Raises: RequestError that names the tool at fault.
    """
    found = {}
    for at, tool in enumerate(tools):
        for name, each in _offered(tool, f"tools[{at}]", None):
            found[name] = each
    return found


def _offered(
    tool: Mapping[str, Any], where: str, namespace: str | None
) -> Iterator[tuple[str, Offered]]:
    kind = tool.get("type")
    if kind == "namespace":
        name = member(tool, "name", str, where)
        for at, each in enumerate(as_objects(tool.get("tools"), f"{where}.tools", "tools")):
            yield from _offered(each, f"{where}.tools[{at}]", name)
    elif kind in SERVED:
        tool = tool.get("function") or tool  # as clients of chat completions write it
        name = member(tool, "name", str, where)
        known = model_name(name, namespace)
        is_custom = kind == "custom"
        described = _description(tool) if is_custom else tool.get("description")
        form = function(known, described, _TEXT if is_custom else tool.get("parameters"))
        yield known, Offered(form, name, namespace, is_custom)


def model_name(name: str, namespace: Any = None) -> str:
    """Return the name by which the model knows a tool."""
    return f"{namespace}.{name}" if namespace else name


def _description(tool: Mapping[str, Any]) -> str:
    """Return what a custom tool is for, and the grammar of its input if it has one."""
    wanted = tool.get("format")
    grammar = wanted.get("definition") if isinstance(wanted, Mapping) else None
    syntax = f"The input must follow this grammar:\n{grammar}" if grammar else ""
    return "\n\n".join(filter(None, [tool.get("description"), syntax]))


def read_allowed(choice: Any, tools: dict[str, Offered]) -> tuple[dict[str, Offered], ToolChoice]:
    """Return the tools that a choice allows, and the choice among them.

    Raises: RequestError for a choice of tools that are not offered.
    """
    if not isinstance(choice, Mapping):
        return tools, read_choice(choice, _forms(tools))
    if choice.get("type") == "allowed_tools":
        allowed = as_objects(choice.get("tools"), "tool_choice.tools", "tools")
        names = {_chosen(each, tools) for each in allowed if each.get("type") in SERVED}
        tools = {name: tool for name, tool in tools.items() if name in names}
        return tools, read_choice(choice.get("mode"), _forms(tools))
    return tools, read_choice({"type": "function", "name": _chosen(choice, tools)}, _forms(tools))


def _chosen(choice: Mapping[str, Any], tools: Mapping[str, Offered]) -> str:
    """Return the name by which the model knows a tool that a choice names."""
    name = choice.get("name")
    known = [key for key, tool in tools.items() if name in (key, tool.name)]
    if choice.get("type") not in SERVED or not known:
        raise RequestError(
            f"[tool_choice] needed one of the tools ({', '.join(tools) or 'none is offered'}), got "
            f"{brief(dict(choice))}. Offer it in tools."
        )
    return known[0]


def _forms(tools: Mapping[str, Offered]) -> list[Form]:
    return [tool.form for tool in tools.values()]


def call_item(call: Call, tools: Mapping[str, Offered], id: str, status: str) -> Form:
    """Return a call as an item, under the name that its client knows."""
    tool = tools.get(call.name) or Offered({}, call.name)
    item: Form = {"call_id": call.id, "name": tool.name, "status": status}
    if tool.namespace:
        item["namespace"] = tool.namespace
    if tool.is_custom:
        return {"id": f"ctc_{id}", "type": "custom_tool_call", **item, "input": _input(call)}
    arguments = to_json(call.arguments)
    return {"id": f"fc_{id}", "type": "function_call", **item, "arguments": arguments}


def _input(call: Call) -> str:
    """Return the input of a custom tool; arguments that are no such input as JSON."""
    text = call.arguments.get(INPUT)
    return text if isinstance(text, str) and len(call.arguments) == 1 else to_json(call.arguments)
