"""The sandbox of templates: its own way to read namespaces opens no door and saves work."""

from pathlib import Path

import pytest

import hlwq_mlx
from hlwq_mlx.dialog.sandbox import Sandbox, environment

TEMPLATE = Path(hlwq_mlx.__file__).parent / "demo" / "chat_template.jinja"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("ns.a", "1"),
        ("ns['a']", "1"),
        ("ns.nothing", ""),
        ("ns.__class__", ""),
        ("ns._Namespace__attrs", ""),
        ("ns.text.format(1)", "<1>"),
    ],
)
def test_a_namespace_holds_what_was_put_there_and_nothing_else(expression, expected):
    template = "{% set ns = namespace(a=1, text='<{}>') %}{{ " + expression + " }}"
    assert environment().from_string(template).render() == expected


def test_the_checks_of_a_long_conversation_grow_with_its_length(monkeypatch):
    """The demo's template, as the checkpoint's, looks at all earlier messages before each one."""
    checked = []
    is_safe = Sandbox.is_safe_attribute

    def count(sandbox, obj, attr, value):
        checked.append(attr)
        return is_safe(sandbox, obj, attr, value)

    monkeypatch.setattr(Sandbox, "is_safe_attribute", count)
    template = environment().from_string(TEMPLATE.read_text())
    counts = []
    for pairs in (20, 40):
        checked.clear()
        messages = [{"role": role, "content": "Hi"} for role in ("user", "assistant") * pairs]
        template.render(messages=messages, tools=None, add_generation_prompt=True)
        counts.append(len(checked))
    assert counts[1] < 2.1 * counts[0]
