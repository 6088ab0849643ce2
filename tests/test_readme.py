"""The README's Python examples, run as they stand but for the name of the model; its commands."""

import re
import shlex
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import tiny_media

from hlwq_mlx import library

README = Path(__file__).parent.parent / "README.md"
REAL_MODEL = '"caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi"'


def blocks():
    """The examples: of the README two, and the calls of functions between them."""
    pages = README, README.parent / "hlwq_mlx" / "README.md"
    found = [re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in pages]
    (first, media), (calls,) = found
    return [first, calls, media]


def test_the_python_examples_run():
    first, second, _ = blocks()
    seeded = "import mlx.core as mx; mx.random.seed(0)"  # one example draws
    text = f"{seeded}\n{first}\n{second}".replace(REAL_MODEL, repr(str(library.DEMO)))
    ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answered, rest = ran.stdout.split("\n", 1)
    assert answered == "4"
    assert rest == "4The answer is 7006652.\n"


def test_the_example_with_media_runs(tmp_path, monkeypatch, capsys):
    files = tiny_media.write_media(tmp_path)
    files["b.jpg"].rename(tmp_path / "cat.jpg")
    files["a.mp3"].rename(tmp_path / "question.mp3")
    monkeypatch.chdir(tmp_path)
    model, tokenizer = library.load(tiny_media.write(tmp_path / "model"))
    generate = partial(library.generate, max_tokens=2)  # it has nothing to say
    exec(blocks()[2], {"model": model, "tokenizer": tokenizer, "generate": generate})
    assert capsys.readouterr().out.endswith("\n")


def commands():
    """The commands of the README: name and arguments, in turn."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = (re.match(r"hlwq (\w+)(.*)", line) for line in lines)
    return [(match[1], shlex.split(match[2], comments=True)) for match in found if match]


def test_every_command_is_spelled_as_it_is_understood():
    for command, arguments in commands():
        parser = import_module(f"hlwq_mlx.{command}").make_parser()
        _, unknown = parser.parse_known_args(arguments)
        assert unknown == []


def test_every_command_has_its_help():
    for command in {name for name, _ in commands()}:
        command = f"hlwq_mlx.{command}"
        ran = subprocess.run(
            [sys.executable, "-m", command, "--help"], capture_output=True, text=True, check=True
        )
        assert ran.stdout.startswith(f"usage: python -m {command}")


def test_the_readme_has_every_command():
    command = [sys.executable, "-m", "hlwq_mlx"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    named = re.findall(r"^  (\w+) +\w", listed, re.MULTILINE)
    assert named == sorted({name for name, _ in commands()})
    assert "\nEach says more with --help.\n" in listed


PAGES = [README, *(README.parent / room / "README.md" for room in ("scripts", "tests", "hlwq_mlx"))]


def test_every_link_and_path_leads_somewhere():
    lost = []
    for page in PAGES:
        text = page.read_text()
        links = re.findall(r"\]\(([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
        files = {link for pair in links for link in pair if link and "://" not in link}
        lost += [f"{page}: {name}" for name in files if not (page.parent / name).exists()]
        named = re.findall(r"`([\w.-]+/[\w./-]+\.\w+)\b", text)
        known = (page.parent, README.parent, README.parent / "hlwq_mlx")
        lost += [
            f"{page}: {name}" for name in named if not any((at / name).exists() for at in known)
        ]
    assert lost == []
