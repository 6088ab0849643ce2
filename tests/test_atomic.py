"""Folders that appear whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from hlwq_mlx.errors import DeviceError, SourceError
from hlwq_mlx.store import atomic
from hlwq_mlx.store.atomic import building, place, scratch


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


def dead_process_id():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_remains_of_dead_runs_are_cleared_and_live_ones_kept(tmp_path):
    output = tmp_path / "model[1]"  # no glob pattern may be made of it
    alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        dead = tmp_path / f".model[1].partial-{dead_process_id()}"
        live = tmp_path / f".model[1].partial-{alive.pid}"
        other = tmp_path / f".other.partial-{dead_process_id()}"
        for folder in (dead, live, other):
            folder.mkdir()
            (folder / "big").write_text("1")
        with building(output):
            assert not dead.exists()
    finally:
        alive.kill()
        alive.wait()
    assert live.is_dir()
    assert other.is_dir()
    assert output.is_dir()


def test_a_run_clears_what_another_of_its_own_id_left(tmp_path):
    mine = tmp_path / f".model.partial-{os.getpid()}"
    mine.mkdir()
    (mine / "old").write_text("1")
    with building(tmp_path / "model"):
        pass
    assert names(tmp_path / "model") == []


def test_a_process_of_another_user_counts_as_alive(monkeypatch):
    def kill(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert atomic._is_alive("1")
    assert not atomic._is_alive("copy of 1")


def test_a_killed_run_leaves_nothing_of_that_name(tmp_path):
    output = tmp_path / "model"
    code = (
        "import sys, time, pathlib; from hlwq_mlx.store.atomic import building\n"
        "with building(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'config.json').write_text('{}'); print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    assert not output.exists()
    assert names(tmp_path) == [f".model.partial-{child.pid}"]
    with building(output):
        pass
    assert names(tmp_path) == ["model"]
