"""Render chat templates in jinja2's sandbox, with the functions that transformers provides.

It needs jinja2 alone, because transformers takes seconds to import. Run as a script, it is the
child process of `trial`: it reads one template from stdin, renders it for a question and for a long
conversation, and writes the fault, or nothing for a good template.
Source: transformers 5.24.0, utils/chat_template_utils.
"""

import json
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LONGEST = 1 << 20  # letters that a few sentences may become
QUESTION = [{"role": "user", "content": "What is 2+2?"}]
_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            *({"type": kind} for kind in ("image", "audio", "video")),
            {"type": "text", "text": "What is it like there?"},
        ],
    },
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "name": "get_weather", "content": '{"sky": "clear"}'},
    {"role": "assistant", "content": "Clear."},
    {"role": "user", "content": "Thanks!"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Look at the sky",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where"}},
                "required": ["city"],
            },
        },
    }
]
SPECIALS = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}


class Generation(Extension):
    """The tag with which transformers marks an answer's text; it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Return what is between the tags."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, where a template reads fast what it put into a namespace itself.

    Gemma 4's template looks into one for every message before each message.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute of an object, or an item."""
        if type(obj) is Namespace and not attribute.startswith("_"):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def environment() -> Sandbox:
    """Return the sandbox in which templates are rendered."""
    made = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return made


def fault_of(text: str) -> str | None:
    """Render a template and return what is wrong with it, or None.

    It must render a plain question. It may refuse a conversation with tools and media.
    """
    try:
        template = environment().from_string(text)
        answer = template.render(
            messages=QUESTION,
            tools=None,
            add_generation_prompt=True,
            enable_thinking=False,
            **SPECIALS,
        )
    except Exception as problem:  # noqa: BLE001  # the template's own, of any kind
        return f"{type(problem).__name__}: {problem}".rstrip(": .")
    try:
        answer += template.render(
            messages=TALK, tools=TOOLS, add_generation_prompt=True, enable_thinking=True, **SPECIALS
        )
    except (MemoryError, RecursionError) as problem:
        return type(problem).__name__
    except Exception:  # noqa: BLE001, S110  # a refusal, which rendering reports when it matters
        pass
    return f"{len(answer)} letters" if len(answer) > LONGEST else None


if __name__ == "__main__":
    sys.stdout.write(fault_of(sys.stdin.buffer.read().decode("utf-8")) or "")
