"""Conversion from a hub that deletes each source file in its time, stopped anywhere and gone on."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hub_server
import mlx.core as mx
import pytest
import tiny
from huggingface_hub import constants
from killed import PRELUDE

from hlwq_mlx import cli, convert
from hlwq_mlx.disk import atomic
from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.errors import SourceError
from hlwq_mlx.folder import checksums, loading
from hlwq_mlx.library import DEMO
from hlwq_mlx.memory import disk
from hlwq_mlx.source import hub
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import staged

NAME = "owner/Tiny-HLWQ"
CODES, PLAIN = "PQ5/codes.safetensors", "PQ5/bf16.safetensors"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    settings = tiny.config()
    tiny.write_root(root, settings)
    tiny.publish(root / "PQ5", tiny.make_weights(settings), tiny.pure(5))
    return root


@pytest.fixture
def server(repository, monkeypatch, tmp_path):
    with hub_server.standing_in(NAME, repository, monkeypatch, tmp_path) as running:
        yield running


def arguments(output, *more):
    return ["--model", NAME, "--variant", "PQ5", "--output", str(output), "--discard-source", *more]


def contents(folder):
    """Every tensor's digest, wherever it lies, and what the config says."""
    config = read_json(folder / "config.json")
    found = {"config": config}
    for path in folder.glob("*.safetensors"):
        file = TensorFile(path)
        for name, spec in file.specs.items():
            found[name] = spec, hashlib.sha256(file.view(name).tobytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def wanted(repository, tmp_path_factory):
    """What a plain conversion makes of the same files."""
    output = tmp_path_factory.mktemp("wanted") / "out"
    model = str(repository / "PQ5")
    assert cli.run(convert.main, ["--model", model, "--output", str(output)]) == 0
    return contents(output)


def check(output, wanted):
    assert contents(output) == wanted
    assert checksums.verify(output, [].append) == len(list(output.iterdir())) - 1
    assert mx.isfinite(loading.load(output)(mx.array([[2, 9, 77]]))).all()
    assert sorted(path.name for path in output.parent.glob(".*")) == []


def cached(cache=None):
    """The files of weights that the cache holds, and the sizes of all that it has of content."""
    folder = Path(cache or constants.HF_HUB_CACHE)
    names = {path.parent.name + "/" + path.name for path in folder.rglob("*.safetensors")}
    return names, sorted(path.stat().st_size for path in folder.rglob("blobs/*"))


def test_the_source_goes_and_the_output_is_that_of_a_plain_conversion(
    server, tmp_path, wanted, capsys
):
    assert cli.run(convert.main, arguments(tmp_path / "out")) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}\n"
    assert "disk: " in said.err
    assert "coded at 5 bits: 21 tensors" in said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("mlp.gate_proj ")]
    assert float(line.split()[-1]) > 0  # what was lost, once it is known
    check(tmp_path / "out", wanted)
    names, sizes = cached()
    assert names == set()
    weights = [len(server.repositories[NAME][name]) for name in (CODES, PLAIN)]
    assert not set(sizes) & set(weights)
    assert sizes  # tokenizer and config stay


KILLED = f"""{PRELUDE}
from hlwq_mlx import cli, convert
from hlwq_mlx.disk import atomic
from hlwq_mlx.memory import disk
from hlwq_mlx.source import hub
from hlwq_mlx.write import staged
if moment == "write":
    staged.write_file = dying(staged.write_file)
elif moment == "flush":
    staged.atomic.flush = dying(staged.atomic.flush)
elif moment == "save":
    staged.Job.save = dying(staged.Job.save)
elif moment == "discard":
    hub.discard = dying(hub.discard)
elif moment == "take":
    hub.take = dying(hub.take)
elif moment == "taken":
    staged._move_rows = dying(staged._move_rows)
elif moment == "cut":
    staged.MOVED_BYTES = 100 * 512
    staged.os.truncate = dying(staged.os.truncate)
elif moment == "moved":
    staged.MOVED_BYTES = 100 * 512
    move = staged._move_rows
    def moving(*given):
        staged.atomic.flush = dying(staged.atomic.flush)
        return move(*given)
    staged._move_rows = moving
elif moment == "finish":
    staged.checksums.write = dying(staged.checksums.write)
cli.run(convert.main, arguments)
"""
MOMENTS = [("save", 0), ("write", 1), ("discard", 0), ("cut", 1), ("moved", 4)]
MORE_MOMENTS = [
    *(("write", 0), ("save", 1), ("save", 3), ("discard", 1), ("take", 0), ("taken", 0)),
    *(("cut", 0), ("cut", 3), ("moved", 0), ("moved", 1), ("moved", 5), ("finish", 0)),
]


@pytest.mark.parametrize(
    ("moment", "number"),
    [*MOMENTS, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE_MOMENTS)],
)
def test_a_killed_run_is_gone_on_with(server, tmp_path, wanted, moment, number):
    cache = tmp_path / "hub"
    places = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(cache), "HF_TOKEN": ""}
    variables = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", KILLED, moment, str(number), *arguments(tmp_path / "out")]
    killed = subprocess.run(
        command, env=os.environ | variables | places, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.unfinished"
    begun = staged.is_begun(tmp_path / "out")
    assert begun == ((moment, number) != ("save", 0))
    if begun:
        records = read_json(work / "job.json")["records"]
        needed = {f"PQ5/{n}" for each in records if each["runs"] is None for n in each["sources"]}
        moved = {PLAIN} if (work / "rows.source").exists() else set()
        assert needed <= cached(cache)[0] | moved  # nothing went too early
        server.repositories.clear()  # what was begun needs no hub
    assert cli.run(convert.main, arguments(tmp_path / "out")) == 0
    check(tmp_path / "out", wanted)
    assert cached(cache)[0] == set()


def test_a_folder_of_the_users_own_is_never_deleted(repository, tmp_path, capsys):
    given = ["--model", str(repository / "PQ5"), "--output", str(tmp_path / "out")]
    assert cli.run(convert.main, [*given, "--discard-source"]) == 2
    assert "which is never deleted. Leave the option out." in capsys.readouterr().err
    assert sorted(path.name for path in (repository / "PQ5").iterdir()) == [
        "bf16.safetensors",
        "codes.safetensors",
    ]


def test_a_file_outside_the_cache_is_not_discarded(server, tmp_path):
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"mine")
    with pytest.raises(SourceError, match="Only what was downloaded is deleted"):
        hub.discard(own)
    assert own.read_bytes() == b"mine"


def test_bytes_that_another_revision_has_stay(server):
    root, _ = hub.download(NAME, "PQ5")
    other = root.parent / "other" / "PQ5"
    shutil.copytree(root / "PQ5", other, symlinks=True)
    hub.discard(root / CODES)
    assert not (root / CODES).exists()
    assert (other / "codes.safetensors").stat().st_size == len(server.repositories[NAME][CODES])
    hub.discard(other / "codes.safetensors")
    hub.discard(other / "codes.safetensors")
    assert len(server.repositories[NAME][CODES]) not in cached()[1]


def test_another_request_is_not_gone_on_with(server, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(staged, "write_file", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert.main(arguments(tmp_path / "out"))
    assert cli.run(convert.main, arguments(tmp_path / "out", "--leftovers", "small")) == 2
    assert "Repeat that one, or remove the folder to begin anew." in capsys.readouterr().err
    assert cached()[0] == {CODES, PLAIN}


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    server, tmp_path, monkeypatch, capsys, wanted
):
    usage = shutil.disk_usage(".")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        assert cli.run(convert.main, arguments(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "more at most in" in said
    assert "begin nevertheless with --force." in said
    assert cached() == (set(), [])
    free = 200_000_000  # enough for the download, and less than what is asked for
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    assert cli.run(convert.main, arguments(tmp_path / "out")) == 2
    assert cli.run(convert.main, arguments(tmp_path / "out", "--force")) == 0
    check(tmp_path / "out", wanted)


@pytest.mark.parametrize("choice", ["auto", "small"])
def test_the_disk_never_holds_more_than_was_said(server, tmp_path, monkeypatch, choice):
    spare = sum(
        len(content) for name, content in server.repositories[NAME].items() if "PQ" not in name
    )
    spare = 3 * spare + 100_000  # root files in the cache and the output, and the job
    monkeypatch.setattr(staged, "MOVED_BYTES", 100 * 512)
    monkeypatch.setattr(disk, "SPARE_BYTES", spare)
    need = disk.disk_need(hub.read_headers(NAME, "PQ5"), choice, is_discarded=True)
    plain = disk.disk_need(hub.read_headers(NAME, "PQ5"), choice, is_discarded=False)
    assert need.together < plain.together
    held = []

    def watched(path, flush=atomic.flush):
        flush(path)
        there = [each.lstat() for each in tmp_path.rglob("*") if not each.is_symlink()]
        held.append(sum(min(each.st_size, 512 * each.st_blocks) for each in there))

    monkeypatch.setattr(atomic, "flush", watched)
    assert cli.run(convert.main, arguments(tmp_path / "out", "--leftovers", choice)) == 0
    assert need.together - 2 * spare < max(held) < need.together
    assert len(held) > 20


def test_a_drafter_that_stays_as_it_is_is_told_of(tmp_path):
    def kept(*paths):
        return False

    source = Source(DEMO / "PQ5")
    lines = staged.run({"choice": "keep"}, tmp_path / "out", lambda: source, kept, kept)
    told = [line for line in lines if "drafter" in line]
    assert told == [
        f"warning: the drafter in {DEMO / 'drafter'} stays as it is: name it with --draft-model to "
        "draft with it"
    ]
