"""A child process is ended at each of its limits, and its answer comes back."""

import signal
import subprocess
import sys

import pytest

from hlwq_mlx.disk import child

LIMITS = child.Limits(cpu_s=2, memory_bytes=1 << 28)


@pytest.fixture
def script(tmp_path):
    def write(text):
        (tmp_path / "script.py").write_text(text)
        return tmp_path / "script.py"

    return write


def test_what_the_script_writes_comes_back(script):
    echo = script("import sys; print(sys.stdin.read()[::-1], end='')")
    assert child.run(echo, b"abc", LIMITS) == b"cba"


@pytest.mark.parametrize(
    ("text", "limits", "message"),
    [
        ("while True: pass", child.Limits(1, 1 << 28), "more than 1 s of computing"),
        ("bytearray(1 << 30)", LIMITS, "ended with 1|MB of memory"),
        ("import os; os.abort()", LIMITS, "ended with -6"),
    ],
)
def test_a_limit_or_a_crash_is_told(script, text, limits, message):
    with pytest.raises(child.Ended, match=message):
        child.run(script(text), b"", limits)


def test_a_child_that_the_clock_ended_is_told_apart(script):
    with pytest.raises(child.Starved, match="no end within 1 s on a busy machine"):
        child.run(script("import time; time.sleep(99)"), b"", child.Limits(2, 1 << 28, wall_s=1))


def test_memory_is_watched_where_the_system_does_not_limit_it():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    with child.watched(process, child.Limits(1, 1 << 20)) as reasons:
        process.wait()
    assert reasons == ["more than 1 MB of memory"]
    assert process.returncode == -signal.SIGKILL


def test_a_process_ends_with_the_block_that_needs_it():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    with pytest.raises(KeyError), child.watched(process, LIMITS) as reasons:
        raise KeyError
    assert (process.returncode, reasons) == (-signal.SIGKILL, [])


def test_modules_of_the_current_folder_are_not_imported(script, tmp_path, monkeypatch):
    (tmp_path / "runpy.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert child.run(script("print('fine', end='')"), b"", LIMITS) == b"fine"
