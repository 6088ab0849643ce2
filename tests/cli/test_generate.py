"""`python -m hlwq_mlx.generate`, as a person runs it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import demo
import mlx.core as mx
import pytest
import tiny_media

from hlwq_mlx import cli, library
from hlwq_mlx.dialog import template
from hlwq_mlx.generate import main, make_parser, render_prompt
from hlwq_mlx.library import CACHE_VARIABLE
from hlwq_mlx.memory import machine as machines
from hlwq_mlx.memory import verdict
from hlwq_mlx.memory.machine import CACHE_BYTES, Machine, this_machine
from hlwq_mlx.prompt import prepare

MODULE = "hlwq_mlx.generate"


def test_the_demo_answers_without_a_model(tmp_path):
    cache = {CACHE_VARIABLE: str(tmp_path)}
    first = demo.run(MODULE, "--prompt", demo.CARD_QUESTION, **cache)
    assert (first.returncode, first.stdout) == (0, "4\n")
    assert first.stderr.startswith("This is the demo model (PQ5)")
    assert "--model caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi --variant PQ5" in first.stderr
    assert "converting " in first.stderr and "coded at 5 bits: 62 tensors" in first.stderr
    assert "Prompt: 16 tokens, " in first.stderr and "Peak memory: " in first.stderr
    second = demo.run(MODULE, "-p", demo.CARD_QUESTION, **cache)
    assert second.stdout == "4\n"
    assert "converted before" in second.stderr and "converting " not in second.stderr


def test_a_dash_reads_the_prompt_from_stdin():
    ran = demo.run(MODULE, "--model", str(demo.folder()), "--prompt", "-", stdin=demo.CARD_QUESTION)
    assert (ran.returncode, ran.stdout) == (0, "4\n")
    assert "demo" not in ran.stderr


def answer(capsys, *arguments):
    main(["--model", str(demo.folder()), *arguments])
    return capsys.readouterr().out.removesuffix("\n")


STORY = f"{demo.STORY}\n{demo.STORY_QUESTION}"


def test_it_reads_a_story(capsys):
    assert answer(capsys, "-p", STORY) == demo.STORY_ANSWER


@pytest.mark.parametrize(
    "options", [["--think"], ["--chat-template-config", '{"enable_thinking": true}']]
)
def test_a_thought_goes_to_stderr(capsys, options):
    main(["--model", str(demo.folder()), "-p", STORY, *options])
    printed = capsys.readouterr()
    assert printed.out == f"{demo.STORY_ANSWER}\n"
    assert f"{demo.STORY_THOUGHT}\n==========\n" in printed.err
    assert "<|channel>" not in printed.err and "<channel|>" not in printed.err


def test_a_system_prompt_comes_first(capsys):
    assert answer(capsys, "-p", demo.CARD_QUESTION, "--system-prompt", "Be brief.") == "4"


def test_stop_and_max_tokens(capsys):
    story = "Continue the story: Once upon a time there was a child named Tom. Tom had a red ball."
    whole = answer(capsys, "-p", story)
    first, _, _ = whole.partition(".")
    assert answer(capsys, "-p", story, "--stop", ".") == first
    assert whole.startswith(answer(capsys, "-p", story, "--max-tokens", "3"))


@pytest.mark.parametrize("option", ["--raw", "--ignore-chat-template"])
def test_plain_text_goes_on_without_a_template(capsys, option):
    text = "<|turn>user\nWhat is 3+4?<turn|>\n<|turn>model\n"
    assert answer(capsys, "-p", text, option) == "7"


def test_an_extra_eos_token_ends_the_answer(capsys):
    four = demo.load()[1].convert_tokens_to_ids("4")
    assert answer(capsys, "-p", demo.CARD_QUESTION, "--extra-eos-token", str(four)) == ""
    assert answer(capsys, "--extra-eos-token", str(four), "5", "-p", demo.CARD_QUESTION) == ""


def test_an_answer_without_limit_is_given_the_room_of_a_conversation(capsys, monkeypatch):
    asked = []
    planned = verdict.plan
    monkeypatch.setattr(
        verdict, "plan", lambda *given: (asked.append(given[1].context), planned(*given))[1]
    )
    arguments = ["-p", "What is", "--system-prompt", "Be brief."]
    answer(capsys, *arguments, "--max-tokens", "-1")
    answer(capsys, *arguments, "--max-tokens", "7")
    assert asked == [cli.CONTEXT + 5, 7 + 5]


def test_a_seed_repeats_an_answer(capsys):
    asked = ["-p", "Continue the story: Tom had a ball.", "--temp", "2", "--seed"]
    first, second, other = (answer(capsys, *asked, seed) for seed in ("5", "5", "6"))
    assert first == second != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "error: [nowhere] needed a folder that exists, or a hub id"),
        (["--variant", "PQ7"], "needed PQ7, got PQ5, bf16. "),
        (["--split", "layers"], "error: [--split] needed several machines that mlx.launch started"),
        (["--temp", "-1"], "error: [temp] needed 0.0 to 100.0, got -1.0."),
        (["--max-tokens", "0"], "error: [max_tokens] needed a positive number or -1, got 0."),
        (["--prompt", "", "--ignore-chat-template"], "error: [prompt] needed some text, got none."),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, capsys):
    assert cli.run(main, arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "argument --seed: needed 0 to 2**64 - 1, got -1"),
        (["--prefill-step-size", "0"], "argument --prefill-step-size: needed at least 1, got 0"),
        (["--chat-template-config", "[1]"], "needed a JSON object, got [1]"),
        (["--chat-template-config", "{x"], "needed a JSON object, got Expecting property name"),
    ],
)
def test_malformed_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extra-eos-token", "foo"], "error: [extra-eos-token] needed a token of the vocab"),
        (
            ["--ignore-chat-template", "--think"],
            "error: [ignore-chat-template] needed a plain prompt, got --system-prompt, --think",
        ),
    ],
)
def test_options_that_nothing_could_follow(arguments, message, capsys):
    assert cli.run(main, ["--model", str(demo.folder()), *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_help_tells_a_newcomer_what_to_type():
    ran = demo.run(MODULE, "--help")
    assert ran.returncode == 0
    for option in (
        "--model",
        "--variant",
        "--prompt",
        "--max-tokens",
        "--temp",
        "--stop",
        "--seed",
        "--image",
        "--audio",
        "--video",
        "--image-tokens",
        "--allow-http",
    ):
        assert option in ran.stdout


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    return tiny_media.write(folder / "model"), tiny_media.write_media(folder)


def test_media_from_files_in_the_order_given(seeing):
    """The prompt's length is told, and tells that every medium took its place."""
    folder, files = seeing
    order = ["--image", "a.png", "--audio", "a.mp3", "--video", "a.mp4", "--image", "b.jpg"]
    order += ["--audio", "a.wav"]
    paths = [str(files.get(each, each)) for each in order]
    ran = demo.run(MODULE, "--model", str(folder), *paths, "-p", "Well?", "--max-tokens", "2")
    assert ran.returncode == 0, ran.stderr
    loaded, tokenizer = library.load(folder)
    kinds = [each.removeprefix("--") for each in order[::2]]
    parts = [{"type": k, "path": str(files[n])} for k, n in zip(kinds, order[1::2], strict=True)]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "Well?"}]}]
    rendered = template.render(tokenizer, messages)
    ids = prepare(loaded, tokenizer, rendered).ids
    assert f"Prompt: {len(ids)} tokens, " in ran.stderr
    arguments = make_parser().parse_args([*paths, "-p", "Well?"])
    assert render_prompt(arguments, tokenizer, "Well?") == rendered
    assert [medium.kind for medium in rendered.media] == kinds


def test_an_option_takes_several_files_as_mlx_lm_s_does():
    parse = make_parser().parse_args
    together = parse(["--image", "a.png", "b.jpg", "--audio", "a.wav", "-p", "Well?"]).media
    apart = parse(["--image", "a.png", "--image", "b.jpg", "--audio", "a.wav"]).media
    assert together == apart
    assert [part["path"] for part in apart] == ["a.png", "b.jpg", "a.wav"]


def test_a_plain_prompt_names_the_places_of_its_media(seeing, capsys):
    folder, files = seeing
    arguments = ["--model", str(folder), "--image", str(files["a.png"]), "--ignore-chat-template"]
    main([*arguments, "-p", "a<|image|>b", "--max-tokens", "1", "--image-tokens", "70"])
    told = capsys.readouterr().err
    tokens = int(told.partition("Prompt: ")[2].split()[0])
    assert 10 < tokens <= 70 + 5  # around the picture: <bos>, a, b and its begin and end
    assert cli.run(main, [*arguments, "-p", "ab"]) == 2
    assert "needed one image for each <|image|>, got 1 for 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--image", "nowhere.png"], "error: [nowhere.png] needed a file that can be read, got: "),
        (["--audio", __file__], f"error: [{__file__}] needed a sound that FFmpeg reads, got: "),
        (["--image", "https://127.0.0.1/a.png"], "error: [https://127.0.0.1/a.png] needed a file"),
    ],
)
def test_media_that_cannot_be_used_end_in_one_line(seeing, option, message, capsys):
    assert cli.run(main, ["--model", str(seeing[0]), *option]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith(message)


def test_a_model_that_cannot_see_says_so(seeing, tmp_path, capsys):
    folder = shutil.copytree(demo.folder("bf16"), tmp_path / "blind")
    config = json.loads((folder / "config.json").read_text()) | {"vision_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    image = str(seeing[1]["a.png"])
    assert cli.run(main, ["--model", str(folder), "--image", image]) == 2
    assert "this checkpoint has no vision tower." in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("patience_s", "shows"), [(0.0, True), (3600.0, False)])
def test_progress_shows_after_a_moment_alone(monkeypatch, capsys, patience_s, shows):
    monkeypatch.setattr(cli.console, "PATIENCE_S", patience_s)
    show = cli.progress("read the prompt", "tokens")
    for _ in range(2):
        for done in (0, 5, 10):
            show(done, 10)
    told = capsys.readouterr().err
    assert ("read the prompt" in told) == shows
    assert bool(told) == shows


def test_ctrl_c_keeps_what_was_said_and_the_statistics(capsys):
    model, tokenizer = demo.load()

    def interrupted():
        from hlwq_mlx.library import stream_generate

        story = [{"role": "user", "content": "Continue the story: One day"}]
        stream = stream_generate(model, tokenizer, story)
        yield next(stream)
        yield next(stream)
        raise KeyboardInterrupt

    assert cli.run(lambda argv: cli.print_stream(interrupted())) == cli.EXIT_INTERRUPTED
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert "Generation: 2 tokens, " in printed.err
    assert "Traceback" not in printed.err


def test_freed_memory_is_kept_within_bounds_while_it_answers(monkeypatch):
    own = 1 << 30
    before = mx.set_cache_limit(own)
    machine = replace(this_machine(Path.cwd()), limit_bytes=16 << 30)
    monkeypatch.setattr(machines, "this_machine", lambda folder: machine)
    seen = []

    def print_stream(responses, read):
        seen.append(mx.set_cache_limit(machine.cache_bytes))

    monkeypatch.setattr(cli, "print_stream", print_stream)
    main(["--model", str(demo.folder()), "-p", demo.CARD_QUESTION])
    assert mx.set_cache_limit(before) == own
    assert seen == [machine.cache_bytes] == [CACHE_BYTES]


def test_coded_keys_and_values_answer_too(capsys):
    assert answer(capsys, "-p", STORY, "--kv-bits", "8", "--kv-group-size", "32") == "red"
    assert answer(capsys, "-p", STORY, "--max-kv-size", "512") == "red"


def test_drafts_bring_the_same_answer_and_statistics_tell(capsys):
    asked = ["--model", str(demo.folder()), "-p", STORY, "--think", "--seed", "1"]
    printed = []
    for draft in ("none", "lookup"):
        main([*asked, "--draft", draft])
        printed.append(capsys.readouterr())
    plain, drafted = printed
    assert drafted.out == plain.out
    assert "Passes" not in plain.err
    passes, tokens = (
        int(re.search(rf"{name}: (\d+)", drafted.err)[1]) for name in ("Passes", "Generation")
    )
    assert passes < tokens
    assert f"Passes: {passes}, {tokens / passes:.3f} tokens-per-pass\n" in drafted.err


def test_a_model_without_room_is_refused_unless_forced(capsys, monkeypatch):
    small = Machine("a small machine", 1 << 30, 1 << 22, has_metal=False)
    monkeypatch.setattr(verdict, "this_machine", lambda folder: small)
    arguments = ["--model", str(demo.folder()), "-p", demo.CARD_QUESTION]
    assert cli.run(main, arguments) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"error: \[memory\] needed \d+\.\d\d MB for a context of 260 \(text weights", said
    )
    assert (
        "got 4.19 MB on a small machine. Choose a variant of fewer bits, or convert it with" in said
    )
    assert cli.run(main, [*arguments, "--force"]) == 0
    assert capsys.readouterr().out == "4\n"
