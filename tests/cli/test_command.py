"""`hlwq COMMAND` and `python -m hlwq_mlx COMMAND`: one program for every command."""

import subprocess
import sys

import demo
import pytest

HLWQ = "import sys; sys.argv[0] = 'bin/hlwq'; from hlwq_mlx.__main__ import main; main()"
WAYS = {"hlwq": ["-c", HLWQ], "python -m hlwq_mlx": ["-m", "hlwq_mlx"]}


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


def run(way, *arguments):
    command = [sys.executable, *WAYS[way], *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_command_answers():
    ran = run("hlwq", "generate", "--model", str(demo.folder()), "--prompt", demo.CARD_QUESTION)
    assert (ran.returncode, ran.stdout) == (0, "4\n"), ran.stderr


def test_help_lists_the_commands(way):
    listed = run(way, "--help")
    assert listed.returncode == 0
    assert listed.stdout == run(way).stdout
    assert listed.stdout.startswith(f"usage: {way} COMMAND ...\n")
    assert "  generate  answer a prompt, word by word.\n" in listed.stdout
    assert "  serve     an OpenAI-compatible server" in listed.stdout


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_usage_names_the_way_it_was_called(way, command):
    assert run(way, command, "--help").stdout.startswith(f"usage: {way} {command} [-h] ")


def test_what_is_no_command_is_one_line(way):
    for name in ("nonsense", "library", "--version"):
        ran = run(way, name)
        assert ran.returncode == 2
        assert ran.stderr.count("\n") == 1
        assert ran.stderr.startswith("error: [command] needed one of chat, convert, ")
        assert f"got {name!r}. `{way} --help` says" in ran.stderr


def test_an_exit_code_comes_through(way):
    assert run(way, "doctor", "--model", "nowhere").returncode == 2
    assert run(way, "generate", "--nonsense").returncode == 2


@pytest.mark.parametrize("command", ["generate", "serve", "doctor", "quantize"])
def test_help_imports_nothing_heavy(command):
    heavy = {"mlx", "mlx_lm", "transformers", "tokenizers", "PIL", "av"}
    code = f"""
import atexit, sys
atexit.register(lambda: print({heavy!r} & sys.modules.keys(), file=sys.stderr))
sys.argv = ["hlwq", {command!r}, "--help"]
from hlwq_mlx.__main__ import main
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == "set()\n"
