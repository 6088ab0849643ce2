"""A conversion that is cut short leaves nothing that looks finished, and can be run again."""

import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from hlwq_mlx.disk.tensorfile import TensorWriter
from hlwq_mlx.errors import DeviceError
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.folder import is_ours
from hlwq_mlx.folder.names import INDEX_NAME
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tiny.write_root(tmp_path_factory.mktemp("source"), tiny.config())
    tiny.publish(root / "PQ5", tiny.make_weights(tiny.config()), tiny.pure(5))
    return root / "PQ5"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_runs_again(published, folder):
    """A second run succeeds, clears what the first one left, and its result loads."""
    convert.convert(Source(published), folder / "out")
    assert names(folder) == ["out"]
    loading.load(folder / "out")


@pytest.mark.parametrize(
    ("count", "problem"), [(0, KeyboardInterrupt), (30, MemoryError), (75, KeyboardInterrupt)]
)
def test_an_exception_amid_the_tensors(published, tmp_path, monkeypatch, count, problem):
    write, calls = TensorWriter.write, []

    def failing(self, name, piece, at=0):
        calls.append(name)
        if len(calls) > count:
            raise problem
        return write(self, name, piece, at)

    with monkeypatch.context() as patch:
        patch.setattr(TensorWriter, "write", failing)
        with pytest.raises(problem):
            convert.convert(Source(published), tmp_path / "out")
    assert len(calls) == count + 1
    assert names(tmp_path) == []
    assert_runs_again(published, tmp_path)


@pytest.mark.parametrize("stage", ["write_shards", "copy_side_files", "write_json"])
def test_an_interruption_between_the_files(published, tmp_path, monkeypatch, stage):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert, stage, interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert.convert(Source(published), tmp_path / "out")
    assert names(tmp_path) == []
    assert_runs_again(published, tmp_path)


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_full_disk_at_a_small_file(published, tmp_path, monkeypatch, name):
    write_text = Path.write_text

    def failing(self, text, **options):
        if self.name == name:
            raise OSError(28, "No space left on device")
        return write_text(self, text, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", failing)
        message = r"\[output\] needed to write .*out, got 'No space left on device'"
        with pytest.raises(DeviceError, match=message):
            convert.convert(Source(published), tmp_path / "out")
    assert names(tmp_path) == []
    assert_runs_again(published, tmp_path)


def test_a_disk_that_is_too_small_is_told_before_work_begins(published, tmp_path, monkeypatch):
    (tmp_path / "free").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000_000))
        message = (
            r"\[output\] needed [67]\d\.\d\d MB in .*/free/new, got 50\.00 MB free\. Free disk"
        )
        with pytest.raises(DeviceError, match=message):
            convert.convert(Source(published), tmp_path / "free" / "new" / "out")
    assert names(tmp_path / "free" / "new") == []


def test_remains_are_cleared_before_the_disk_is_measured(published, tmp_path, monkeypatch):
    """A killed run's 10 GB must not keep the next one from starting."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    remains = tmp_path / f".out.partial-{child.pid}"
    remains.mkdir()

    def free(path):
        return SimpleNamespace(free=0 if remains.exists() else 10**12)

    monkeypatch.setattr(shutil, "disk_usage", free)
    assert_runs_again(published, tmp_path)


KILLED = """
import os, pathlib, signal, sys
from hlwq_mlx.disk import tensorfile
from hlwq_mlx.source import repository as source
from hlwq_mlx.write import convert
published, output, moment = sys.argv[1:]

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "config":
    convert.copy_side_files = die
elif moment == "rename":
    pathlib.Path.rename = die
else:
    write, calls = tensorfile.TensorWriter.write, []
    def counted(self, *arguments):
        calls.append(1)
        return die() if len(calls) > int(moment) else write(self, *arguments)
    tensorfile.TensorWriter.write = counted
convert.convert(source.Source(pathlib.Path(published)), pathlib.Path(output))
"""


@pytest.mark.parametrize("moment", ["40", "config", "rename"])
def test_a_killed_conversion(published, tmp_path, moment):
    arguments = [str(published), str(tmp_path / "out"), moment]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".out.partial-")
    if moment == "rename":  # all is there but the name
        assert is_ours(tmp_path / left)
    else:
        assert not is_ours(tmp_path / left)
    assert_runs_again(published, tmp_path)


def command(published, output):
    arguments = ["--model", str(published), "--output", str(output)]
    return [sys.executable, "-W", "error", "-m", "hlwq_mlx.convert", *arguments]


def test_the_command_says_in_one_line_that_the_disk_is_full(published, tmp_path):
    """A limit on the size of files stands for the disk: the table of 160 kB is too large."""
    done = subprocess.run(
        command(published, tmp_path / "out"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: [model-00001-of-00001.safetensors] needed ")
    assert last.endswith("got 'File too large'. Choose a folder where larger files are allowed.")
    assert done.stderr.count("error") == 1
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == []


INTERRUPTED = """
import sys, time
from hlwq_mlx import cli, convert as command
from hlwq_mlx.write import convert

def wait(*arguments):
    print("ready", flush=True)
    time.sleep(60)

convert.copy_side_files = wait
sys.exit(cli.run(command.main))
"""


def test_the_command_ends_quietly_when_it_is_interrupted(published, tmp_path):
    arguments = ["--model", str(published), "--output", str(tmp_path / "out")]
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        errors = child.stderr.read()
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert names(tmp_path) == []
