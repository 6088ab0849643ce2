"""Folders that appear whole or not at all."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from hlwq_mlx.disk import atomic
from hlwq_mlx.disk.atomic import building, place, scratch
from hlwq_mlx.errors import DeviceError, SourceError

FULL_FLUSH = 51  # of macOS


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_folder_takes_its_name(tmp_path):
    output = tmp_path / "new" / "model"
    with building(output) as folder:
        (folder / "a").write_text("1")
        assert folder.parent == output.parent
        assert not output.exists()
    assert names(output) == ["a"]
    assert names(output.parent) == ["model"]


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path, problem):
    with pytest.raises(problem), building(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
        raise problem
    assert names(tmp_path) == []


def test_a_failed_write_becomes_a_device_error(tmp_path):
    message = r"\[output\] needed to write .*model, got .*No space"
    with pytest.raises(DeviceError, match=message), building(tmp_path / "model"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_our_own_errors_pass_unchanged(tmp_path):
    mine = SourceError("[x] needed a, got b. Do c.")
    with pytest.raises(SourceError) as caught, building(tmp_path / "model"):
        raise mine
    assert caught.value is mine


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_output_that_exists_is_refused(tmp_path, kind):
    output = tmp_path / "model"
    if kind == "folder":
        output.mkdir()
    elif kind == "file":
        output.write_text("")
    else:
        output.symlink_to(tmp_path / "nowhere")
    message = r"\[output\] needed a new folder, got .*exists"
    with pytest.raises(SourceError, match=message), building(output):
        raise AssertionError("the block must not run")
    assert names(tmp_path) == ["model"]


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    output = tmp_path / "model"
    message = r"\[output\] needed a new folder, got .*model, which exists"
    with pytest.raises(SourceError, match=message), building(output):
        output.mkdir()
        (output / "theirs").write_text("1")
    assert names(output) == ["theirs"]
    assert names(tmp_path) == ["model"]


def test_a_name_that_cannot_be_given_is_a_device_error(tmp_path):
    output = tmp_path / "new" / "model"
    message = r"\[output\] needed to write .*model, got .*No such file"
    with pytest.raises(DeviceError, match=message), building(output) as folder:
        folder.rmdir()
    assert names(output.parent) == []


def test_scratch_vanishes_also_when_all_went_well(tmp_path):
    output = tmp_path / "model"
    with scratch(output) as folder:
        with building(folder / "model") as inner:
            (inner / "a").write_text("1")
        place(folder / "model", output)
    assert names(output) == ["a"]
    assert names(tmp_path) == ["model"]


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"\[output\] needed to write .*file"
    with pytest.raises(DeviceError, match=message), building(tmp_path / "file" / "model"):
        raise AssertionError("the block must not run")


@pytest.fixture
def on_disk(monkeypatch):
    """Return what makes paths known, and the steps: what of them was flushed and renamed."""
    known, steps = {}, []
    fsync, rename = os.fsync, Path.rename

    def flushed(handle):
        fsync(handle)
        steps.append(("flush", known[os.fstat(handle).st_ino]))

    def renamed(path, target):
        steps.append(("rename", path.name))
        return rename(path, target)

    def know(*paths):
        known.update({path.stat().st_ino: path.name for path in paths})

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    return know, steps


def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path, on_disk):
    know, steps = on_disk
    with building(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
        (folder / "inner").mkdir()
        (folder / "inner" / "b").write_text("1")
        know(tmp_path, folder, *folder.rglob("*"))
    *before, renamed, last = steps
    flushed = [name for _, name in before]
    assert sorted(flushed) == sorted(["a", "b", "inner", folder.name])
    assert flushed.index("b") < flushed.index("inner") < flushed.index(folder.name)
    assert renamed == ("rename", folder.name)
    assert last == ("flush", tmp_path.name)


def test_the_disk_of_a_mac_empties_its_cache_before_the_name_and_after_it(
    tmp_path, on_disk, monkeypatch
):
    know, steps = on_disk
    plain = fcntl.fcntl

    def called(handle, command, *more):
        if command != FULL_FLUSH:
            return plain(handle, command, *more)
        here = {path.stat().st_ino: path.name for path in (tmp_path, *tmp_path.iterdir())}
        steps.append(("full", here[os.fstat(handle).st_ino]))
        raise OSError(errno.ENOTSUP, "no such flush")  # which fsync has to do for

    monkeypatch.setattr(atomic, "_FULL_FLUSH", FULL_FLUSH)
    monkeypatch.setattr(fcntl, "fcntl", called)
    with building(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
        know(tmp_path, folder, folder / "a")
    *_, full, renamed, flushed, last = steps
    assert full == ("full", folder.name) and renamed == ("rename", folder.name)
    assert (flushed, last) == (("flush", tmp_path.name), ("full", tmp_path.name))


@pytest.mark.parametrize(
    ("owner", "name", "number"), [(os, "fsync", errno.EIO), (Path, "rename", errno.EDQUOT)]
)
def test_a_disk_that_refuses_leaves_nothing_of_that_name(
    tmp_path, monkeypatch, owner, name, number
):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, refuse)
    message = rf"\[output\] needed to write .*model, got .*{os.strerror(number)}"
    with pytest.raises(DeviceError, match=message), building(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == []


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_alone(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_alone)
    with building(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path / "model") == ["a"]


WAITING = (
    "import sys, time, pathlib; from hlwq_mlx.disk.atomic import building\n"
    "with building(pathlib.Path(sys.argv[1])) as folder:\n"
    "    (folder / 'config.json').write_text('{}'); print('ready', flush=True); time.sleep(60)"
)


@contextmanager
def another_run(output):
    """A process that is amid a folder, and is killed when the block ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(output)], stdout=subprocess.PIPE, text=True
    )
    with child:
        try:
            assert child.stdout.readline() == "ready\n"
            yield
        finally:
            child.send_signal(signal.SIGKILL)


def test_a_killed_run_leaves_nothing_of_that_name_and_the_next_clears_it(tmp_path):
    output = tmp_path / "model[1]"  # no glob pattern may be made of it
    with another_run(output):
        pass
    (left,) = names(tmp_path)
    assert left.startswith(".model[1].partial-")
    with building(output):
        assert left not in names(tmp_path)
    assert names(tmp_path) == ["model[1]"]


def test_what_a_live_run_is_writing_is_left_alone(tmp_path):
    output = tmp_path / "model"
    with another_run(output):
        (theirs,) = names(tmp_path)
        with building(output) as folder:
            assert folder.name != theirs
            assert names(tmp_path / theirs) == ["config.json"]
        assert names(tmp_path) == [theirs, "model"]


def test_two_threads_of_one_process_do_not_share_a_folder(tmp_path):
    output = tmp_path / "model"
    message = r"needed a new folder, got .*model, which exists"
    with pytest.raises(SourceError, match=message), building(output) as first:
        (first / "a").write_text("1")
        with building(output) as second:
            assert names(second) == []
            assert names(first) == ["a"]
            (second / "b").write_text("2")
    assert names(tmp_path) == ["model"]
    assert names(output) == ["b"]


def test_remains_of_another_output_are_kept(tmp_path):
    with another_run(tmp_path / "other"):
        pass
    left = names(tmp_path)
    with building(tmp_path / "model"):
        pass
    assert names(tmp_path) == [*left, "model"]


def test_remains_that_another_run_clears_at_the_same_time(tmp_path, monkeypatch):
    remains = tmp_path / ".model.partial-1"
    remains.mkdir()
    opened = os.open

    def cleared_first(path, *options):
        if path == remains:
            remains.rmdir()
        return opened(path, *options)

    monkeypatch.setattr(os, "open", cleared_first)
    with building(tmp_path / "model"):
        pass
    assert names(tmp_path) == ["model"]


def test_without_locks_remains_are_left_alone(tmp_path, monkeypatch):
    def flock(handle, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".model.partial-1").mkdir()
    with building(tmp_path / "model") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == [".model.partial-1", "model"]
    assert names(tmp_path / "model") == ["a"]
