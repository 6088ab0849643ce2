"""What is said when the system refuses a file: the cause as it is, and never another one."""

import contextlib
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tiny

from hlwq_mlx import cli, convert, doctor, errors, library
from hlwq_mlx.disk import failures, names
from hlwq_mlx.disk.atomic import scratch
from hlwq_mlx.errors import SourceError
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.names import INDEX_NAME
from hlwq_mlx.memory import inventory
from hlwq_mlx.source import hub, resume
from hlwq_mlx.source import repository as source


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tiny.write_root(tmp_path_factory.mktemp("source"), tiny.config())
    weights = tiny.make_weights(tiny.config())
    tiny.publish(root / "PQ5", weights, tiny.pure(5))
    return root


@pytest.fixture
def own(published, tmp_path):
    return shutil.copytree(published, tmp_path / "own")


def refusal(root, output, capsys):
    """Convert, and return the one line that is said."""
    arguments = ["--model", str(root / "PQ5"), "--output", str(output)]
    assert cli.run(convert.main, arguments) == cli.EXIT_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert not output.exists()
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "PQ5/codes.safetensors", "PQ5/bf16.safetensors"]
)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", "got a folder"),
        ("pipe", "got a pipe"),
        ("socket", "got a socket"),
        ("device", "got a device"),
        ("loop", "symbolic links"),
    ],
)
def test_what_is_no_file_is_named(own, tmp_path, capsys, name, kind, message):
    path = own / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        bind(path)
    elif kind == "device":
        path.symlink_to(os.devnull)
    else:
        path.symlink_to(path)
    said = refusal(own, tmp_path / "out", capsys)
    assert "disk space" not in said
    assert path.name in said and message in said


def bind(path):
    """Put a socket at a path, which may be longer than a socket's may."""
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX_NAME])
def test_what_is_no_file_is_named_in_a_converted_folder(published, tmp_path, name):
    folder = tmp_path / "out"
    convert_to = ["--model", str(published / "PQ5"), "--output", str(folder)]
    assert cli.run(convert.main, convert_to) == 0
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    for read in (library.load, lambda path: doctor.main([str(path)])):
        with pytest.raises(SourceError, match=rf"{name}\] needed a .*file.*, got a pipe"):
            read(folder)


FORBIDDEN = """
import os, pathlib, sys
from hlwq_mlx import cli
from hlwq_mlx.disk import failures
os.geteuid() or os.seteuid(65534)  # root may read everything
def read(argv):
    with failures.reading(path := pathlib.Path(sys.argv[1])):
        path.open("rb")
sys.exit(cli.run(read))
"""


def test_a_file_that_may_not_be_read_is_no_full_disk():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o755)
        path = Path(folder, "tokenizer.json")
        path.write_text("{}")
        path.chmod(0)
        command = [sys.executable, "-c", FORBIDDEN, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == cli.EXIT_ERROR
    assert done.stderr == (
        f"error: [tokenizer.json] needed to read {path}, got 'Permission denied'. "
        "Change its permissions, or choose another folder.\n"
    )


def test_only_a_full_disk_is_called_one():
    problems = [OSError(number, os.strerror(number)) for number in errno.errorcode]
    full = [each.errno for each in problems if "disk space" in failures.advice(each)]
    assert sorted(full) == sorted((errno.ENOSPC, errno.EDQUOT))


def test_no_error_of_ours_passes_for_one_of_the_system():
    """Who catches what the system says would call it a fault of the network or the disk."""
    ours = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert errors.SourceError in ours
    assert [kind for kind in ours if issubclass(kind, OSError)] == []


def test_a_damaged_file_within_a_scratch_folder_is_not_a_full_disk(tmp_path):
    with pytest.raises(SourceError, match="this one"), scratch(tmp_path / "new"):
        raise SourceError("this one")


def test_what_nobody_foresaw_is_still_one_line(capsys):
    def failing(argv):
        with open("/" + "x" * 300):
            pass

    assert cli.run(failing) == cli.EXIT_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: [")
    assert "needed to read or write one, got 'File name too long'" in line
    assert line.endswith("Choose a shorter name.")


FOREIGN = ["../other.safetensors", "sub/x.safetensors", "..", "", "a\0b", "..\\x.safetensors"]


@pytest.mark.parametrize("name", [*FOREIGN, "ABSOLUTE"])
def test_an_index_names_files_of_its_own_folder_alone(published, own, tmp_path, name):
    """The file that it names is there, and whole."""
    weights = tiny.make_weights(tiny.config())
    tiny.save_plain(tmp_path / "other.safetensors", weights)
    name = str(tmp_path / "other.safetensors") if name == "ABSOLUTE" else name
    index = {"weight_map": dict.fromkeys(weights, name)}
    (own / INDEX_NAME).write_text(json.dumps(index))
    message = rf"^\[{INDEX_NAME}\] needed names of files in its own folder, got "
    with pytest.raises(SourceError, match=message):
        source.Source(own)


def test_a_converted_folder_names_its_own_files_alone(published, tmp_path):
    folder = tmp_path / "out"
    convert_to = ["--model", str(published / "PQ5"), "--output", str(folder)]
    assert cli.run(convert.main, convert_to) == 0
    shutil.move(folder / "model-00001-of-00001.safetensors", tmp_path / "x.safetensors")
    index = json.loads((folder / INDEX_NAME).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../x.safetensors")
    (folder / INDEX_NAME).write_text(json.dumps(index))
    for read in (loading.load, lambda path: inventory.take(str(path))):
        with pytest.raises(SourceError, match=r"own folder, got '\.\./x\.safetensors'"):
            read(folder)


def test_links_as_the_hubs_cache_has_them_are_followed(own, tmp_path):
    blob = tmp_path / "blob"
    shutil.move(own / "PQ5" / "codes.safetensors", blob)
    (own / "PQ5" / "codes.safetensors").symlink_to(blob)
    assert source.Source(own / "PQ5").coded


@pytest.mark.parametrize(
    "name",
    ["../codes.safetensors", "PQ5/../../x.safetensors", "PQ5/a/b.safetensors", "/etc/x.json"],
)
def test_a_hub_names_files_of_its_repository_alone(name):
    files = ["PQ5/codes.safetensors", "PQ5/bf16.safetensors", "config.json"]
    assert hub.choose_variant("a/b", [*files, name], None) == "PQ5"
    assert hub.wanted_files([*files, name], "PQ5") == files


@pytest.mark.parametrize("name", ["../../x", "a" * 39, "", None, "A" * 64])
def test_a_hubs_hash_is_a_hash(name):
    from huggingface_hub.hf_api import RepoSibling

    assert resume.blob_path("a/b", RepoSibling(rfilename="x", blob_id=name)) is None
    whole = resume.blob_path("a/b", RepoSibling(rfilename="x", blob_id="a" * 40))
    assert whole is not None and whole.name == "a" * 40


def test_plain_names():
    assert names.require_plain("model..safetensors", "x") == "model..safetensors"
    assert not any(map(names.is_plain, FOREIGN))
