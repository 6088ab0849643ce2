"""The files of the chat page: complete, alone, and without a way to run what a model says."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import hlwq_mlx.server

PAGE = Path(hlwq_mlx.server.__file__).parent / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
INDEX = FILES["index.html"]
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
# What makes markup or code of text, and what gets at other sites.
FORBIDDEN = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "setHTML", "document.write", "DOMParser"),
    *("createContextualFragment", "srcdoc", "eval(", "Function(", "import(", 'setTimeout("'),
    *("WebSocket", "EventSource", "sendBeacon", "XMLHttpRequest", "postMessage"),
)
ADDRESS = re.compile(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"'`)]*""")


def names_in(text: str) -> set[str]:
    """Return the files of the page that a file of it refers to."""
    return {
        Path(found).name
        for found in re.findall(r"""["'](?:\.|page)?/?([\w.]+\.(?:js|css|svg))["']""", text)
    }


def test_every_file_is_reached_from_the_index():
    reached, waiting = {"index.html"}, {"index.html"}
    while waiting:
        found = names_in(FILES[waiting.pop()]) - reached
        assert found <= FILES.keys(), "a file that is referred to is missing"
        reached |= found
        waiting |= found
    assert reached == FILES.keys()


def test_nothing_is_inline():
    assert "<style" not in INDEX
    assert re.findall(r"<[^>]*\s(?:style|on\w+)\s*=", INDEX) == []
    assert re.findall(r"<script[^>]*>", INDEX) == re.findall(
        r'<script type="module" src="page/\w+\.js">', INDEX
    )
    assert re.findall(r"<script[^>]*>(?!</script>)", INDEX) == []
    assert 'setAttribute("style"' not in "".join(SCRIPTS.values())


def test_nothing_comes_from_outside():
    outside = {name: set(ADDRESS.findall(text)) - {SVG_NAMESPACE} for name, text in FILES.items()}
    assert not any(outside.values()), outside
    assert re.findall(r"@import|url\(\s*[\"']?(?:\w+:|//)", FILES["page.css"]) == []


def test_text_never_becomes_markup_or_code():
    found = {name: [word for word in FORBIDDEN if word in text] for name, text in SCRIPTS.items()}
    assert not any(found.values()), found


def test_every_icon_and_element_that_is_named_exists():
    ids = re.findall(r'\bid="([\w-]+)"', INDEX)
    assert len(ids) == len(set(ids))
    code = "".join(SCRIPTS.values())
    used = set(re.findall(r'\b(?:icon|iconButton)\("(\w+)"', code)) | set(
        re.findall(r'href="#icon-(\w+)"', INDEX)
    )
    assert {f"icon-{name}" for name in used} <= set(ids)
    assert set(re.findall(r'\b(?:find|on)\("([\w-]+)"', code)) <= set(ids)
    assert set(re.findall(r'\b(?:for|aria-controls|aria-labelledby)="([\w-]+)"', INDEX)) <= set(ids)


def luminance(color: str) -> float:
    """Return the relative luminance of #rrggbb. Source: WCAG 2.2."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


GROUNDS = ("ground", "panel", "raised", "tint")
TEXTS = ("text", "muted", "accent", "error")


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme):
    block = re.findall(r":root \{(.*?)\}", FILES["page.css"], re.DOTALL)[scheme]
    color = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
    pairs = {(text, ground): 4.5 for text in TEXTS for ground in GROUNDS}
    pairs[("on-accent", "accent")] = 4.5
    pairs[("edge", "ground")] = pairs[("edge", "raised")] = 3.0
    ratios = {pair: contrast(color[pair[0]], color[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < pairs[pair]} == {}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Return what runs an expression with modules of the page and reads its value."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs node, which runs the page's modules without a browser")
    folder = tmp_path_factory.mktemp("page")
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "package.json").write_text('{"type": "module"}')

    def run(module: str, expression: str, value: object) -> object:
        script = (
            f"import * as it from './{module}'; import fs from 'node:fs';"
            "const value = JSON.parse(fs.readFileSync(0));"
            f"console.log(JSON.stringify({expression}));"
        )
        ran = subprocess.run(
            [program, "--input-type=module", "--eval", script],
            input=json.dumps(value),
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return run


def outline(nodes: object) -> object:
    """Return a tree in short: (type, ...) and texts."""
    if not isinstance(nodes, list):
        return nodes
    short = []
    for each in nodes:
        if isinstance(each, list):
            short.append(outline(each))
        elif isinstance(each, str):
            short.append(each)
        elif each["type"] == "text":
            if short and isinstance(short[-1], str):
                short[-1] += each["text"]
            else:
                short.append(each["text"])
        else:
            kept = {
                key: value for key, value in each.items() if key not in ("type", "isMark", "tight")
            }
            short.append((each["type"], *(outline(value) for value in kept.values())))
    return short


INLINE = {
    "**a *b* c**": [("strong", ["a ", ("em", ["b"]), " c"])],
    "**a*b*c**": [("strong", ["a", ("em", ["b"]), "c"])],
    "***a***": [("em", [("strong", ["a"])])],
    "2 * 3 * 4 and snake_case_name": ["2 * 3 * 4 and snake_case_name"],
    "**open, *open too": ["**open, *open too"],
    "~~gone~~": [("del", ["gone"])],
    "`` a`b `` and `open": [("code", "a`b"), " and `open"],
    r"\*as it is\*": ["*as it is*"],
    "one\ntwo  \nthree": ["one", ("break",), "two", ("break",), "three"],
    "[a *b*](https://e.org/x_(y) 'title')": [
        ("link", "https://e.org/x_(y)", ["a ", ("em", ["b"])])
    ],
    "see https://e.org/a.": ["see ", ("link", "https://e.org/a", ["https://e.org/a"]), "."],
    "<mailto:a@e.org>": [("link", "mailto:a@e.org", ["mailto:a@e.org"])],
    "![seven](https://e.org/7.png)": [("link", "https://e.org/7.png", ["seven"])],
    # Other schemes leave the text alone.
    "[a](javascript:alert(1))": ["a"],
    "[a](JaVaScRiPt:alert)": ["a"],
    "[a](\\javascript:alert)": ["a"],
    "[a](data:text/html,x)": ["a"],
    "[a](//e.org/x)": ["a"],
    "<javascript:alert(1)>": ["<javascript:alert(1)>"],
    "<script>a</script><img onerror=b>": ["<script>a</script><img onerror=b>"],
}


def test_inline_markdown(node):
    found = node("markdown.js", "value.map(it.parseInline)", list(INLINE))
    assert dict(zip(INLINE, map(outline, found), strict=True)) == INLINE


def paragraph(*texts: str) -> tuple[str, list[str]]:
    return ("paragraph", list(texts))


BLOCKS = {
    "## A # b ##\ntext": [("heading", 2, ["A # b"]), paragraph("text")],
    "```py\n<b>\n  x\n```\nafter": [("code", "py", "<b>\n  x"), paragraph("after")],
    "~~~\n```\n": [("code", "", "```\n")],
    "> a\n> > b": [("quote", [paragraph("a"), ("quote", [paragraph("b")])])],
    "a\n***\nb": [paragraph("a"), ("rule",), paragraph("b")],
    "- a\n  - b\n- c": [
        (
            "list",
            False,
            1,
            [[paragraph("a"), ("list", False, 1, [[paragraph("b")]])], [paragraph("c")]],
        )
    ],
    "3. a\n   ```\n   x\n   ```\n4. b": [
        ("list", True, 3, [[paragraph("a"), ("code", "", "x")], [paragraph("b")]])
    ],
    "1. a\n  - b": [("list", True, 1, [[paragraph("a"), ("list", False, 1, [[paragraph("b")]])]])],
    "- [x] a": [("list", False, 1, [[paragraph("☑ a")]])],
    "|a|b|\n|:-:|--:|\n|1\\|2|": [("table", ["center", "end"], [["a"], ["b"]], [[["1|2"], []]])],
    "a | b\nc": [("paragraph", ["a | b", ("break",), "c"])],
}


def test_blocks_of_markdown(node):
    found = node("markdown.js", "value.map(it.parse)", list(BLOCKS))
    assert dict(zip(BLOCKS, map(outline, found), strict=True)) == BLOCKS


def test_markdown_takes_what_a_model_may_repeat(node):
    """Neither depth nor length of nonsense breaks the parser: recursion is bounded."""
    pieces = [
        "*",
        "_",
        "[",
        "![",
        "](",
        "`",
        "> ",
        "- ",
        "  - ",
        "|",
        "<",
        "**a ",
        "*a_",
        "a|b\n-|-\n",
        "\n",
        "#",
    ]
    assert node(
        "markdown.js",
        "value.map((piece) => it.parse(piece.repeat(20000)).length > 0 || piece)",
        pieces,
    ) == [True if piece != "\n" else piece for piece in pieces]


def test_a_call_is_put_together_from_its_pieces(node):
    deltas = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": "Hi"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "a",
                    "type": "function",
                    "function": {"name": "f", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    chunks = [{"choices": [{"delta": delta}]} for delta in deltas]
    expression = "value.reduce((answer, chunk) => (it.fold(answer, chunk), answer), {content: ''})"
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    wanted = {"content": "Hi", "reasoning_content": "hm", "tool_calls": [call]}
    assert node("conversation.js", expression, chunks) == wanted


IMPORTS = {
    "not JSON": "{",
    "no list of messages": "{}",
    "role": '[{"role": "wizard", "content": "a"}]',
    "neither text nor parts": '[{"role": "user", "content": 1}]',
    "text nor parts": '[{"role": "user", "content": [{"type": "constructor"}]}]',
    "thought": '[{"role": "assistant", "content": "", "reasoning_content": []}]',
    "tool call": '[{"role": "assistant", "content": null, "tool_calls": [{"id": "a"}]}]',
}


def test_an_import_says_what_is_wrong_with_it(node):
    read = "try { return it.fromJson(text) } catch (error) { return error.message }"
    expression = f"value.map((text) => {{ {read} }})"
    for word, said in zip(
        IMPORTS, node("conversation.js", expression, list(IMPORTS.values())), strict=True
    ):
        assert isinstance(said, str) and word in said


def test_an_export_is_imported_as_it_was(node):
    messages = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:,"}, "name": "a.png"}],
        },
        {"role": "assistant", "content": "b", "stats": {"tokens": 1}},
    ]
    before = {
        "id": "1",
        "title": "t",
        "system": "s",
        "tools": [{"type": "function"}],
        "messages": messages,
    }
    after = node("conversation.js", "it.fromJson(it.toJson(value))", before)
    assert {key: after[key] for key in before if key != "id"} == {
        key: before[key] for key in before if key != "id"
    }
