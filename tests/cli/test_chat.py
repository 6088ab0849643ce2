"""The chat command: its loop led by scripted lines and answers, and once with the demo model."""

import io
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import demo
import pytest
import tiny_media
import tiny_tokenizer

from hlwq_mlx import chat, cli, library
from hlwq_mlx.chat import Chat, find_file, parse_result, read_tools
from hlwq_mlx.cli import Screen
from hlwq_mlx.dialog.conversation import Conversation
from hlwq_mlx.dialog.tokenizer import load_tokenizer
from hlwq_mlx.engine.prefix_cache import MAX_BYTES
from hlwq_mlx.errors import RequestError
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.memory import verdict
from hlwq_mlx.memory.machine import mac
from hlwq_mlx.memory.need import Settings, kv_bytes

CALLS = "<|tool_call>call:add{a:1}<tool_call|><|tool_call>call:now{}<tool_call|>"
TOOLS = [{"name": "add", "description": "Adds."}, {"name": "now"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def talk(tokenizer):
    """Lead a chat by scripts; an exception in a script is raised where its turn comes."""

    def lead(lines, answers=(), is_terminal=False, media=(), **settings):
        waiting, left = iter(lines), iter(answers)
        conversation = Conversation(**settings)
        seen = SimpleNamespace(
            prompts=[], media=[], asked=[], conversation=conversation, forgotten=0
        )

        def forget():
            seen.forgotten += 1

        def read(prompt):
            seen.asked.append(prompt)
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        def stream(prompt):
            seen.prompts.append(prompt.text)
            seen.media.append([tuple(medium) for medium in prompt.media])
            answer = next(left)
            for piece in [answer] if isinstance(answer, str) else answer:
                if isinstance(piece, BaseException):
                    raise piece
                yield SimpleNamespace(text=piece, finish_reason=None)
            yield SimpleNamespace(text="", finish_reason="stop")

        screen = Screen(is_terminal=is_terminal)
        Chat(seen.conversation, tokenizer, stream, read, screen, media, forget).run()
        assert next(left, None) is None, "an answer was never asked for"
        return seen

    return lead


def contents(seen):
    return [message["content"] for message in seen.conversation.messages]


def test_questions_are_answered_with_the_history(talk, capsys):
    seen = talk(["Hi", "  ", "More"], ["Hello", ["So", " it is\n"]])
    assert capsys.readouterr() == ("Hello\nSo it is\n", "")
    assert seen.prompts[1].endswith(
        "<|turn>user\nHi<turn|>\n<|turn>model\nHello<turn|>\n"
        "<|turn>user\nMore<turn|>\n<|turn>model\n"
    )


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""'], "one\n\ntwo"),
        (['"""/reset"""'], "/reset"),
    ],
)
def test_a_block_is_one_question(talk, lines, text):
    assert contents(talk(lines, ["A"])) == [text, "A"]


def test_thoughts_are_dimmed_on_a_terminal(talk, capsys):
    answer = ["<|channel>thought\nHm", " hm\n<channel|>A"]
    talk(["Hi"], [answer], is_terminal=True)
    assert capsys.readouterr() == ("A\n", "\x1b[2mHm hm\x1b[0m\n")


def test_thoughts_stay_out_of_a_pipe(talk, capsys):
    talk(["Hi"], [["<|channel>thought\nHm", " hm\n<channel|>A"]])
    assert capsys.readouterr() == ("A\n", "Hm hm\n")


def test_calls_are_printed_and_their_results_read(talk, capsys):
    seen = talk(["Go", '{"sum": 2}', "noon"], [CALLS, "It is."], tools=TOOLS)
    assert seen.asked == [">>> ", "result> ", "result> ", ">>> "]
    first, second, last = capsys.readouterr().out.splitlines()
    assert json.loads(first) == {"name": "add", "arguments": {"a": 1}}
    assert json.loads(second) == {"name": "now", "arguments": {}}
    assert last == "It is."
    assert contents(seen) == ["Go", "", {"sum": 2}, "noon", "It is."]
    assert "<|tool>declaration:add{" in seen.prompts[0]
    assert "<|tool_response>response:add{sum:2}<tool_response|>" in seen.prompts[1]


def test_a_broken_call_is_told(talk, capsys):
    talk(["Hi"], ["<|tool_call>call:f{a<tool_call|>"])
    assert "a call that cannot be read: needed : after the key 'a'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "result"),
    [
        ("5555", "5555"),
        ("sunny", "sunny"),
        ('{"a": 1}', {"a": 1}),
        ("[1]", [1]),
        ("{not json", "{not json"),
        ("", ""),
    ],
)
def test_parse_result(line, result):
    assert parse_result(line) == result


def test_an_interrupted_answer_is_kept_and_the_chat_goes_on(talk, capsys):
    seen = talk(["Hi", "More"], [["Hel", KeyboardInterrupt()], "B"])
    assert contents(seen) == ["Hi", "Hel", "More", "B"]
    assert capsys.readouterr().out == "Hel\nB\n"


def test_an_interrupted_thought_leaves_no_dim_terminal(talk, capsys):
    talk(["Hi"], [["<|channel>thought\nHm", KeyboardInterrupt()]], is_terminal=True)
    assert capsys.readouterr().err == "\x1b[2mHm\x1b[0m\n\n"


def test_interrupting_a_result_takes_the_question_back(talk, capsys):
    seen = talk(["Go", "1", KeyboardInterrupt(), "Hi"], [CALLS, "A"])
    assert contents(seen) == ["Hi", "A"]
    assert "Ctrl-D or /exit leaves." in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_does_not_leave(talk, capsys):
    assert contents(talk([KeyboardInterrupt(), "Hi"], ["A"])) == ["Hi", "A"]
    assert "Ctrl-D or /exit leaves." in capsys.readouterr().err


def test_an_error_takes_the_question_back(talk, capsys):
    problem = RequestError("[prompt] needed at most 9 tokens, got 10. Shorten it.")
    seen = talk(["Long", "Hi"], [[problem], "A"])
    assert contents(seen) == ["Hi", "A"]
    assert "error: [prompt] needed at most 9 tokens, got 10." in capsys.readouterr().err


def test_an_answer_that_is_cut_off_is_told(tokenizer, capsys):
    lines = iter(["Hi"])

    def read(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    def stream(prompt):
        yield SimpleNamespace(text="A", finish_reason="length")

    Chat(Conversation(), tokenizer, stream, read, Screen(is_terminal=False)).run()
    assert "The answer was cut off; --max-tokens" in capsys.readouterr().err


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(b"")
    return str(path)


def test_media_go_with_the_next_message(talk, picture, capsys):
    clip = f"/video {picture}"
    lines = [f"/image {picture}", f"/audio {picture}", "Hi", "More", clip, "Last"]
    seen = talk(lines, ["A", "B", "C"])
    first = [("image", picture), ("audio", picture)]
    assert seen.media == [first, first, [*first, ("video", picture)]]
    assert "<|turn>user\n<|image|><|audio|>Hi<turn|>" in seen.prompts[0]
    assert seen.prompts[2].endswith("<|turn>user\n<|video|>Last<turn|>\n<|turn>model\n")
    assert "The next message begins with this image." in capsys.readouterr().err


def test_the_first_message_begins_with_the_media_given(talk, picture):
    seen = talk(["Hi", "/reset", "Hi"], ["A", "B"], media=[{"type": "image", "path": picture}])
    assert seen.media == [[("image", picture)], []]


def test_media_are_saved_by_their_names(talk, picture, tmp_path):
    path = tmp_path / "talk.json"
    talk([f"/image {picture}", "Hi", f"/save {path}"], ["A"])
    message = json.loads(path.read_text())["messages"][0]
    parts = [{"type": "image", "path": picture}, {"type": "text", "text": "Hi"}]
    assert message == {"role": "user", "content": parts}


def test_a_file_that_is_not_there_is_told_at_once(talk, capsys):
    web = "https://example.org/a.png"
    seen = talk(["/image nowhere.png", "/audio", f"/image {web}", "Hi"], ["A"])
    assert seen.media == [[("image", web)]]
    told = capsys.readouterr().err
    assert "error: [/image] needed a file, got nowhere.png. Check the path." in told
    assert "Usage: /audio PATH" in told


def test_a_file_dropped_on_the_terminal_is_found(talk, tmp_path):
    for name in ("a picture.png", "a friend's.png"):
        path = str(tmp_path / name)
        Path(path).write_bytes(b"")
        escaped = path.replace(" ", "\\ ").replace("'", "\\'")
        for spelling in (path, shlex.quote(path), escaped, Path(path).as_uri()):
            assert talk([f"/image {spelling}", "Hi"], ["A"]).media == [[("image", path)]]


def test_a_name_that_no_file_can_have_is_no_file():
    for name in ("~nobody-of-this-name/a.png", "a" * 300, "don't", "file://[", "file:///a%00b"):
        assert find_file(name) is None


def test_what_is_forgotten_is_forgotten_between_prompts_too(talk):
    problem = RequestError("[prompt] needed less.")
    assert talk(["Hi", "More"], ["A", "B"]).forgotten == 0
    assert talk(["Hi", "/reset", "Hi"], ["A", "B"]).forgotten == 1
    assert talk(["Hi", "More"], ["A", [problem]]).forgotten == 1


def test_media_of_a_question_that_is_taken_back_are_gone(talk, picture, capsys):
    problem = RequestError("[image] needed less.")
    seen = talk([f"/image {picture}", "Hi", "Hi"], [[problem], "A"])
    assert seen.media == [[("image", picture)], []]


def test_reset_system_and_think(talk, capsys):
    lines = ["Hi", "/reset", "/system Be brief.", "/think on", "Hi", "/think off", "/system", "Hi"]
    seen = talk([*lines, "/think maybe"], ["A", "B", "C"])
    assert seen.prompts[1].startswith("<bos><|turn>system\n<|think|>\nBe brief.<turn|>\n")
    assert seen.prompts[1].count("Hi") == 1
    assert seen.prompts[2].startswith("<bos><|turn>user\nHi<turn|>\n<|turn>model\nB")
    told = capsys.readouterr().err
    assert "Thinking is on." in told
    assert "Usage: /think on or /think off" in told


def test_help_exit_and_what_is_no_command(talk, capsys):
    seen = talk(["/help", "/nothing", "/exit", "Hi"])
    assert seen.prompts == []
    told = capsys.readouterr().err
    assert chat.HELP in told
    assert "There is no such command." in told


def test_save(talk, tmp_path, capsys):
    path = tmp_path / "talk.json"
    path.write_text("old")
    talk(["Hi", f"/save {path}"], ["é"], system="Be brief.", thinking=True)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["thinking"] is True
    assert [message["content"] for message in saved["messages"]] == ["Be brief.", "Hi", "é"]
    assert f"Saved in {path}." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_save_says_why_it_cannot(talk, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    talk([f"/save {tmp_path}/none/x.json", f"/save {tmp_path}/folder", "/save", "Hi"], ["A"])
    told = capsys.readouterr().err
    assert told.count("error: [/save] needed to write") == 2
    assert "Usage: /save FILE" in told
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_read_tools(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    assert read_tools(str(path)) == TOOLS
    path.write_text(json.dumps(TOOLS[0]))
    assert read_tools(str(path)) == TOOLS[:1]


@pytest.mark.parametrize("text", [None, "{"])
def test_read_tools_says_what_is_wrong(tmp_path, text):
    path = tmp_path / "tools.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=r"\[--tools\] needed a JSON file of tools, got "):
        read_tools(str(path))


def test_a_bad_option_is_one_line_and_no_model_is_loaded(tmp_path, capsys):
    assert cli.run(chat.main, ["--tools", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err.startswith("error: [--tools] needed a JSON file of tools")


def test_chat_about_a_picture(tmp_path, monkeypatch, capsys):
    folder = tiny_media.write(tmp_path / "model")
    files = tiny_media.write_media(tmp_path)
    told = f"Well?\n/audio {files['a.wav']}\nAnd?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(told))
    image = ["--image", str(files["a.png"]), "--image-tokens", "70"]
    options = ["--model", str(folder), "--max-tokens", "1", *image]
    assert cli.run(chat.main, options) == 0
    printed = capsys.readouterr()
    assert "error" not in printed.err
    assert printed.err.count("The answer was cut off") == 2


def test_a_turn_reads_what_is_new_alone(tmp_path, monkeypatch, capsys):
    begins = []

    def progress(what, unit):
        seen = []
        begins.append(seen)
        return lambda done, total: seen.append((done, total))

    monkeypatch.setattr(cli.arguments, "progress", progress)
    questions = "What is 2+2?\nWhat is 3+4?\n/reset\nWhat is 2+2?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(questions))
    assert cli.run(chat.main, ["--model", str(demo.folder()), "--temp", "0"]) == 0
    assert capsys.readouterr().out == "4\n7\n4\n"
    first, second, third = (seen for seen in begins if seen)
    assert first[0] == third[0] == (0, 16)
    assert second[0][0] == 16 + len(("4",))  # <turn|> was chosen, and read by no step
    assert second[-1][0] == second[-1][1] > second[0][0]


def test_a_session_takes_what_the_model_leaves(monkeypatch):
    """Forced into a machine that is too small, a conversation still need not be read again."""
    settings = Settings(context=100)
    machine = replace(mac(16, 15), has_metal=False)
    model, _ = library.load(demo.folder())
    kv = kv_bytes(model.args.text_config, settings, item_bytes=4)
    for limit, kept in ((1, kv), (1 << 40, MAX_BYTES)):
        described = replace(machine, limit_bytes=limit)
        monkeypatch.setattr(verdict, "this_machine", lambda folder, found=described: found)
        assert chat.session_for(Folder.open(demo.folder()), settings).max_bytes == kept


def test_chat_with_the_demo(tmp_path, monkeypatch, capsys):
    tools = tmp_path / "tools.json"
    parameters = {"properties": {"expression": {"type": "string"}}, "required": ["expression"]}
    calculator = {"name": "calculator", "description": "Computes an expression."}
    tools.write_text(json.dumps(calculator | {"parameters": parameters}))
    transcript = tmp_path / "talk.json"
    monkeypatch.setenv("HLWQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        sys, "stdin", io.StringIO(f"What is 1234+4321?\n5555\n/save {transcript}\n")
    )
    assert cli.run(chat.main, ["--temp", "0", "--max-tokens", "40", "--tools", str(tools)]) == 0
    call, answer = capsys.readouterr().out.splitlines()
    assert json.loads(call) == {"name": "calculator", "arguments": {"expression": "1234+4321"}}
    assert answer.startswith("The answer is ")
    roles = [message["role"] for message in json.loads(transcript.read_text())["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
