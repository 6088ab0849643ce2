"""What comes in and goes out of a command: nothing but a result, or one line that says why not.

Real processes, whose streams are closed, full, cut off or in another encoding.
"""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import demo
import pytest

from hlwq_mlx import chat, cli
from hlwq_mlx.chat import save_transcript
from hlwq_mlx.cli.boundary import TRACEBACK_VARIABLE
from hlwq_mlx.dialog.conversation import Conversation
from hlwq_mlx.errors import CheckpointError, DeviceError, HLWQError, RequestError, SourceError
from hlwq_mlx.generate import make_parser as generate_parser

LATIN1 = Path(__file__).parents[1] / "data" / "latin1.txt"
STDIN_WARNING = "warning: [stdin] needed text in utf-8, got other bytes. They are read as \ufffd."
TEXT_WARNING = "warning: [text] needed Unicode, got 1 lone surrogates. They are read as \ufffd."


# Commands that load no model: they print what they are given.
PRINT_STDIN = "cli.result(cli.read_stdin())"
PRINT_A_LINE = "cli.result(cli.line_reader()(''))"
PRINT_ARGUMENT = "cli.result(sys.argv[1])"


def command(does):
    code = f"import sys; from hlwq_mlx import cli; sys.exit(cli.run(lambda argv: {does}))"
    return [sys.executable, "-c", code]


def with_demo(verb, *arguments):
    return [sys.executable, "-m", f"hlwq_mlx.{verb}", "--model", str(demo.folder()), *arguments]


def run(line, given=b"", **options):
    """Run a command with bytes on stdin, and check that what it says is no traceback."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    # Streams are buffered, as in a user's shell: Python flushes them once more at its exit.
    options["env"] = os.environ | options.get("env", {}) | {"PYTHONUNBUFFERED": ""}
    if "stdin" not in options:
        options["input"] = given
    ran = subprocess.run(line, timeout=300, check=False, **options)
    for word in (b"Traceback", b"Exception ignored"):
        assert word not in (ran.stderr or b"")
    return ran


def in_shell(line, redirections):
    """Run a command with the redirections of a shell."""
    return run(["sh", "-c", f'"$@" {redirections}', "sh", *line])


def test_bytes_that_are_no_text_are_read_with_one_warning():
    ran = run(with_demo("generate", "-p", "-"), LATIN1.read_bytes() + b" \xe9\xe9")
    assert ran.returncode == 0
    told = ran.stderr.decode()
    assert told.count(STDIN_WARNING) == told.count("warning: ") == 1


def test_a_conversation_survives_bytes_that_are_no_text(tmp_path):
    lines = [b"What is 2+2?", LATIN1.read_bytes().rstrip(), f"/save {tmp_path}/talk".encode()]
    ran = run(with_demo("chat", "--temp", "0"), b"\n".join([*lines, lines[0]]))
    assert ran.returncode == 0
    answers = ran.stdout.decode().splitlines()
    assert (len(answers), answers[0], answers[-1]) == (3, "4", "4")
    assert ran.stderr.decode().count(STDIN_WARNING) == 1
    saved = json.loads((tmp_path / "talk").read_text(encoding="utf-8"))["messages"]
    assert saved[2]["content"] == "caf\ufffd What is 12+31?"


def test_a_person_s_terminal_may_send_them_too():
    """input() reads a terminal by other means than a pipe."""
    ours, theirs = pty.openpty()
    os.write(ours, LATIN1.read_bytes() + b"\n")
    ran = run(command(PRINT_A_LINE), stdin=theirs)
    os.close(theirs)
    os.close(ours)
    assert (ran.returncode, ran.stdout.decode()) == (0, "caf\ufffd What is 12+31?\n")
    assert ran.stderr.decode().count(STDIN_WARNING) == 1


@pytest.mark.parametrize("option", ["--prompt", "--system-prompt", "--stop"])
def test_bytes_that_are_no_text_may_be_arguments(option, caplog):
    arguments = generate_parser().parse_args([option, os.fsdecode(b"caf\xe9")])
    assert "caf\ufffd" in (arguments.prompt, arguments.system_prompt, *arguments.stop)
    assert caplog.messages == [TEXT_WARNING]


@pytest.mark.parametrize(
    ("written", "warning"),
    [
        (b'{"name": "now", "description": "caf\\ud800"}', TEXT_WARNING),
        (
            b'{"name": "now", "description": "caf\xe9"}',
            "warning: [tools.json] needed text in utf-8",
        ),
    ],
)
def test_tools_are_mended_when_they_are_read(tmp_path, capsys, caplog, written, warning):
    path = tmp_path / "tools.json"
    path.write_bytes(written)
    assert chat.read_tools(str(path)) == [{"name": "now", "description": "caf\ufffd"}]
    assert warning in capsys.readouterr().err + caplog.text


def test_a_result_and_a_template_s_variable_are_mended():
    assert chat.parse_result('{"a": "\\ud800"}') == {"a": "\ufffd"}
    assert chat.parse_result("[" * 100_000) == "[" * 100_000
    assert cli.json_object('{"\\udc00": ["\\ud83d\\ude00"]}') == {"\ufffd": ["\U0001f600"]}


def test_a_python_caller_s_lone_surrogate_is_mended(caplog):
    from hlwq_mlx import library

    model, tokenizer = demo.load()
    library.generate(model, tokenizer, [{"role": "user", "content": "caf\ud800"}], max_tokens=1)
    assert caplog.messages[-1:] == [TEXT_WARNING]


def test_a_file_s_name_that_is_no_text_can_be_saved_and_printed(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    conversation = Conversation()
    conversation.add_user([cli.media_part("image", name)])
    save_transcript(conversation, tmp_path / "talk")
    (part,) = json.loads((tmp_path / "talk").read_text())["messages"][0]["content"]
    assert part["path"] == name
    ran = run([*command(PRINT_ARGUMENT), b"caf\xe9.png"])
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"caf\xe9.png\n", b"")


def test_an_encoding_that_lacks_characters_shows_others():
    line = [*command(PRINT_ARGUMENT), "caf\u00e9 \u2013 \u00e9"]
    ran = run(line, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (ran.returncode, ran.stdout) == (0, b"caf? ? ?\n")
    assert ran.stderr.decode().count("warning: [stdout] needed characters that ascii has") == 1


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_an_empty_one(redirections):
    told = "cli.note('told') or cli.result('four' + cli.read_stdin())"
    ran = in_shell(command(told), redirections)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == (b"" if redirections in (">&-", "<&- >&- 2>&-") else b"four\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_stdout_without_room_is_one_line():
    ran = in_shell([*command(PRINT_ARGUMENT), "four"], ">/dev/full")
    assert ran.returncode == 2
    (line,) = ran.stderr.decode().splitlines()
    assert line.startswith("error: [stdout] needed to write the result, got 'No space left on dev")


@pytest.mark.parametrize(
    "prints", ["cli.result('four')", "cli.print_piece('four')", "print('four')"]
)
def test_a_reader_that_has_seen_enough_is_no_error(prints):
    reading, writing = os.pipe()
    os.close(reading)
    ran = run(command(prints), stdout=writing)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("problem", "kind", "line"),
    [
        (CheckpointError("[x] needed y, got z."), CheckpointError, "[x] needed y, got z."),
        (MemoryError(), DeviceError, "[memory] needed more memory than is free, got none. "),
        (
            RuntimeError("[malloc] Unable to allocate\n 9 bytes."),
            DeviceError,
            "[memory] needed more memory than is free, got [malloc] Unable to allocate 9 byt",
        ),
        (
            RecursionError("too deep"),
            RequestError,
            "[input] needed less nested input, got too deep.",
        ),
        (
            PermissionError(13, "Permission denied", "model/x"),
            SourceError,
            "[model/x] needed to read or write one, got 'Permission denied' (model/x). Change",
        ),
        (OSError("odd"), SourceError, "[files] needed to read or write one, got 'odd'. Check"),
        (KeyError("x"), HLWQError, "[hlwq_mlx] needed no defect, got KeyError at test_boundary.py"),
        (
            UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
            HLWQError,
            "[hlwq_mlx] needed no defect, got UnicodeEncodeError at test_boundary.py:",
        ),
    ],
)
def test_no_foreign_exception_leaves_a_command(problem, kind, line, capsys, monkeypatch):
    def fail(argv):
        raise problem

    assert cli.run(fail) == cli.EXIT_ERROR
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}")
    assert told.count("\n") == 1
    assert type(cli.as_error(problem)) is kind
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert cli.run(fail) == cli.EXIT_ERROR
    assert capsys.readouterr().err.startswith("Traceback ")


def test_a_defect_costs_a_message_and_not_the_conversation(capsys):
    lines, prompts = iter(["One", "/save ~nobody-of-this-name/x", "Two"]), []

    def read(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    def stream(prompt):
        prompts.append(prompt.text)
        raise MemoryError

    conversation = Conversation()
    screen = cli.Screen(is_terminal=False)
    chat.Chat(conversation, demo.load()[1], stream, read, screen).run()
    told = capsys.readouterr().err
    assert len(prompts) == told.count("error: [memory] needed more memory than is free") == 2
    assert "error: [/save] needed to write ~nobody" in told
    assert conversation.messages == []


def test_a_terminal_s_thoughts_are_dimmed():
    """stderr is a terminal here, stdout a pipe: the answer alone goes through the pipe."""
    ours, theirs = pty.openpty()
    thinking = with_demo("generate", "-p", f"{demo.STORY}\n{demo.STORY_QUESTION}", "--think")
    ran = run(thinking, stderr=theirs)
    os.close(theirs)
    told = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert ran.stdout.decode() == f"{demo.STORY_ANSWER}\n"
    assert f"\x1b[2m{demo.STORY_THOUGHT}\x1b[0m" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["hlwq_mlx.generate", "--prompt", "Hi", "--max-tokens", "1"],
        pytest.param(
            ["hlwq_mlx", "generate", "--prompt", "Hi", "--max-tokens", "1"], marks=pytest.mark.slow
        ),
        pytest.param(["hlwq_mlx.chat"], marks=pytest.mark.slow),
        ["hlwq_mlx.doctor"],
    ],
    ids=["generate", "package", "chat", "doctor"],
)
def test_a_command_imports_nothing_from_the_current_folder(arguments, tmp_path):
    """It may be a model's, and hold anything."""
    for name in ("tokenizers", "numpy", "jinja2", "mlx", "transformers", "psutil", "tqdm"):
        (tmp_path / f"{name}.py").write_text("import os; print('ran'); os._exit(7)")
    command = [sys.executable, "-m", *arguments, "--model", str(demo.folder())]
    ran = subprocess.run(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, "ran" in ran.stdout.split()) == (0, False), ran.stderr
