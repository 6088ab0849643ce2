"""Stock mlx-lm on our folder: its library, its commands, registered or not, moved or broken."""

import json
import shutil
import subprocess
import sys

import demo
import environments
import pytest
from environments import run

from hlwq_mlx import register
from hlwq_mlx.folder.rows import FILE_NAME
from scripts.training import tinyworld

ASK = ["--prompt", demo.CARD_QUESTION, "--max-tokens", "20"]
THINKING_OFF = ["--chat-template-config", '{"enable_thinking": false}']


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The converted demo, somewhere else than where it was converted to."""
    folder = tmp_path_factory.mktemp("moved") / "model"
    shutil.copytree(demo.folder(), folder)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return environments.make(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def registered(environment):
    ran = run(environment, "-m", "hlwq_mlx.register")
    assert ran.returncode == 0, ran.stderr
    assert "mlx_lm.load and its commands now take HLWQ folders" in ran.stderr
    return environment


@pytest.mark.parametrize(
    "order", ["hlwq_mlx, mlx_lm", pytest.param("mlx_lm, hlwq_mlx", marks=pytest.mark.slow)]
)
def test_import_registers_this_process(environment, moved, order):
    script = (
        f"import {order}\n"
        f"model, tokenizer = mlx_lm.load({str(moved)!r})\n"
        "prompt = tokenizer.apply_chat_template("
        f"[{{'role': 'user', 'content': {demo.CARD_QUESTION!r}}}],"
        " add_generation_prompt=True, enable_thinking=False)\n"
        "print(mlx_lm.generate(model, tokenizer, prompt))\n"
    )
    ran = run(environment, "-c", script)
    assert (ran.returncode, ran.stdout) == (0, "4\n"), ran.stderr
    assert "You are using a model of type" not in ran.stderr


def test_generate(registered, moved):
    ran = run(registered, "-m", "mlx_lm", "generate", "--model", str(moved), *ASK, *THINKING_OFF)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("==========")[1].strip() == "4"


@pytest.mark.slow  # `generate` goes the same way
def test_chat(registered, moved):
    """Stock chat thinks by default and takes one line."""
    said = f"{demo.STORY} {demo.STORY_QUESTION}\nq\n"
    ran = run(registered, "-m", "mlx_lm", "chat", "--model", str(moved), stdin=said)
    assert ran.returncode == 0, ran.stderr
    assert f"<|channel>thought\n{demo.STORY_THOUGHT}" in ran.stdout
    assert f"<channel|>{demo.STORY_ANSWER}" in ran.stdout


@pytest.mark.slow
def test_perplexity(registered, moved, tmp_path):
    pytest.importorskip("datasets", reason="mlx_lm.perplexity needs the datasets package")
    stories = [{"text": item} for item in story_texts(60)]
    lines = "".join(json.dumps(item) + "\n" for item in stories)
    (tmp_path / "train.jsonl").write_text(lines)
    ran = run(
        registered,
        *("-m", "mlx_lm", "perplexity", "--model", str(moved), "--data-path", str(tmp_path)),
        *("--sequence-length", "64", "--num-samples", "16"),
    )
    assert ran.returncode == 0, ran.stderr
    found = next(line for line in ran.stdout.splitlines() if line.startswith("Perplexity: "))
    assert 1.0 < float(found.split()[1]) < 10.0  # of 1,024 tokens, on text without a template


def story_texts(count):
    import random

    rng = random.Random("perplexity")
    return [tinyworld.make_story(rng).text for _ in range(count)]


@pytest.mark.slow
def test_benchmark(registered, moved):
    ran = run(
        registered,
        *("-m", "mlx_lm", "benchmark", "--model", str(moved), "-p", "64", "-g", "16", "-n", "1"),
        *("-b", "2"),
    )
    assert ran.returncode == 0, ran.stderr
    assert "Averages: prompt_tps=" in ran.stdout


@pytest.mark.slow
def test_a_missing_row_store_is_named(registered, moved, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(moved, broken)
    (broken / FILE_NAME).unlink()
    ran = run(registered, "-m", "mlx_lm", "generate", "--model", str(broken), *ASK)
    assert ran.returncode != 0
    last = ran.stderr.strip().splitlines()[-1]
    assert f"needed the row store {broken / FILE_NAME}, got no such file." in last


@pytest.mark.slow
def test_register_can_be_undone(registered, moved):
    path = environments.site_packages(registered) / register.FILE_NAME
    assert path.read_text() == register.LINE
    ran = run(registered, "-m", "hlwq_mlx.register", "--remove")
    assert ran.returncode == 0 and not path.exists()
    ran = run(registered, "-m", "mlx_lm", "generate", "--model", str(moved), *ASK)
    assert "Model type hlwq_gemma4 not supported." in ran.stderr
    again = run(registered, "-m", "hlwq_mlx.register", "--remove")
    assert again.returncode == 0 and "nothing to remove" in again.stderr


def test_the_line_is_silent_without_the_package():
    """What a person sees who uninstalls hlwq_mlx and leaves the file behind."""
    ran = subprocess.run(
        [sys.executable, "-S", "-c", register.LINE], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_read_only_environment_is_named(tmp_path):
    with pytest.raises(register.DeviceError, match=r"^\[register\] needed to change .*hlwq_mlx"):
        register.register(tmp_path / "nowhere" / register.FILE_NAME)
