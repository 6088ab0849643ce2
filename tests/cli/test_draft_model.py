"""--draft and --draft-model: what drafts, and what is refused."""

import re
import shutil

import demo
import drafters
import pytest

from hlwq_mlx import cli, library
from hlwq_mlx.errors import CheckpointError, RequestError, SourceError
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.generate import main, make_parser

BEGINNING = "Continue the story: One day Sue woke up early. Sue had a pink kite."


def told(capsys, *arguments):
    """The answer, and how many tokens a pass brought if more than one."""
    model = ["--model", str(demo.folder()), "-p", BEGINNING, "-m", "40", "--temp", "0"]
    assert cli.run(main, [*model, *arguments]) == 0
    said = capsys.readouterr()
    found = re.search(r"Passes: \d+, ([\d.]+) tokens-per-pass", said.err)
    return said.out, float(found[1]) if found else 1.0


def test_the_drafter_beside_a_model_drafts_unless_told_not_to(capsys):
    plain, one = told(capsys, "--draft", "none")
    assert one == 1
    assert told(capsys) == told(capsys, "--draft", "model")
    drafted, several = told(capsys, "--draft-model", str(library.DEMO / "drafter"))
    assert drafted == plain and several > 2


def folder_with(*arguments, path=None):
    folder = Folder.open(path or demo.folder())
    parsed = make_parser().parse_args(["--model", str(folder.path), *arguments])
    return cli.arguments.drafter_for(parsed, folder)


def test_the_folder_of_the_drafter(tmp_path):
    assert folder_with().path == demo.folder() / "drafter"
    assert folder_with("--draft", "none") is None
    assert folder_with("--draft", "lookup") is None
    without = shutil.copytree(demo.folder(), tmp_path / "model")
    shutil.rmtree(without / "drafter")
    assert folder_with(path=without) is None
    with pytest.raises(RequestError, match="--draft-model"):
        folder_with("--draft", "model", path=without)


def test_a_drafter_that_cannot_be_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HLWQ_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RequestError, match="--draft lookup"):
        folder_with("--draft", "lookup", "--draft-model", "any")
    with pytest.raises(SourceError, match="a whole model"):
        folder_with("--draft-model", str(demo.folder()))
    other = drafters.write(tmp_path / "other")
    with pytest.raises(CheckpointError, match="backbone_hidden_size"):
        folder_with("--draft-model", str(other))
    with pytest.raises(SourceError, match="nowhere"):
        folder_with("--draft-model", "./nowhere")
    with pytest.raises(SourceError, match="got an empty one"):
        folder_with("--draft-model", "")


def test_python_users_name_one_too():
    model, tokenizer = demo.load()
    options = {"max_tokens": 24}
    asked = [{"role": "user", "content": BEGINNING}]
    drafter = library.load_drafter(model, library.DEMO / "drafter")
    found = list(library.stream_generate(model, tokenizer, asked, draft=drafter, **options))
    wanted = list(library.stream_generate(model, tokenizer, asked, **options))
    assert [each.token for each in found] == [each.token for each in wanted]
    assert found[-1].passes < len(found) / 2 and any(each.from_draft for each in found)
