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
    assert "  serve     a server for local assistants" in listed.stdout


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


def imported(heavy, *arguments):
    """Run a command and return which of these modules it has imported at its end."""
    code = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *sorted({heavy!r} & sys.modules.keys())))
sys.argv = ["hlwq", *{arguments!r}]
from hlwq_mlx.__main__ import main
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("command", ["generate", "serve", "doctor", "quantize"])
def test_help_imports_nothing_heavy(command):
    heavy = {"mlx", "mlx_lm", "transformers", "tokenizers", "jinja2", "PIL", "av"}
    heavy |= {"starlette", "pydantic"}
    assert imported(heavy, command, "--help") == []


def test_an_answer_waits_for_no_library_that_it_does_not_need():
    heavy = {"mlx_lm", "transformers", "huggingface_hub", "PIL", "av", "starlette", "llguidance"}
    arguments = ("--model", str(demo.folder()), "--prompt", "Hi", "--max-tokens", "1")
    assert imported(heavy, "generate", *arguments) == []
