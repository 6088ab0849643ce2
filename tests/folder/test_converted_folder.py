"""The cache of converted models: what is read to find one, and two processes that make the same."""

import shutil

import pytest

from hlwq_mlx import library
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.errors import SourceError
from hlwq_mlx.source import detect
from hlwq_mlx.source import repository as source
from hlwq_mlx.write import convert


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(library.CACHE_VARIABLE, str(tmp_path / "cache"))
    caplog.set_level("INFO", logger="hlwq_mlx")
    return tmp_path / "cache"


def test_a_converted_model_is_found_by_headers_alone(monkeypatch):
    folder = library.converted_folder(str(library.DEMO), "PQ5")

    def refuse(*arguments):
        raise AssertionError("codes and norms were read")

    monkeypatch.setattr(detect, "settle", refuse)
    monkeypatch.setattr(source, "gather", refuse)
    monkeypatch.setattr(TensorFile, "view", refuse)
    assert library.converted_folder(str(library.DEMO), "PQ5") == folder


def test_a_source_without_config_is_refused_in_one_line(tmp_path):
    root = shutil.copytree(library.DEMO, tmp_path / "demo")
    (root / "config.json").unlink()
    with pytest.raises(SourceError, match=r"needed config\.json in this folder or the one above"):
        library.converted_folder(str(root), "PQ5")


def test_what_another_process_made_meanwhile_is_taken(cache, monkeypatch, caplog):
    copy_side_files = convert.copy_side_files

    def beside_another(source, folder):
        theirs = folder.with_name(folder.name.removeprefix(".").partition(".partial-")[0])
        theirs.mkdir()
        (theirs / "config.json").write_text("{}")
        return copy_side_files(source, folder)

    monkeypatch.setattr(convert, "copy_side_files", beside_another)
    target = library.converted_folder(str(library.DEMO), "PQ5")
    assert list(cache.rglob("*")) == [target, target / "config.json"]
    assert caplog.messages[-1] == f"using {target}, converted by another process meanwhile"


def test_a_source_that_cannot_be_converted_is_not_taken_for_that(cache, tmp_path):
    root = shutil.copytree(library.DEMO, tmp_path / "demo")
    (root / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SourceError, match=r"got 'llama'"):
        library.converted_folder(str(root), "PQ5")
    assert not cache.exists()
