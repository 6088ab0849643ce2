"""A command that a signal ends at some moment: its exit status, and what lies on the disk after."""

import signal
import subprocess
import sys
import tempfile

import demo
import pytest
import tiny
from served import OURS, free_port, wait_until_open

from hlwq_mlx import cli, convert
from hlwq_mlx.folder import loading

LIMIT_S = 60

# A command as a person runs it, that stops and waits at a moment.
WAITING = """
import sys, time
from importlib import import_module
from hlwq_mlx import cli
from hlwq_mlx.disk import atomic, tensorfile

def wait(*arguments, **options):
    print("ready", flush=True)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        time.sleep(0.05)  # a signal just before a sleep is seen after it

verb, moment, *arguments = sys.argv[1:]
if moment.isdigit():
    write, left = tensorfile.TensorWriter.write, iter(range(int(moment)))
    def counted(self, *piece):
        return wait() if next(left, None) is None else write(self, *piece)
    tensorfile.TensorWriter.write = counted
else:
    setattr(atomic, moment, wait)
sys.exit(cli.run(import_module(f"hlwq_mlx.{verb}").main, arguments))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A model in 16 bits, and a variant of it."""
    root = tiny.write_root(tmp_path_factory.mktemp("source"), tiny.config())
    weights = tiny.make_weights(tiny.config())
    tiny.save_plain(root / "model.safetensors", weights)
    tiny.publish(root / "PQ5", weights, tiny.pure(5))
    return root


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def end(number, *arguments):
    """Run a command, send it a signal where it waits, and return its exit status."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            child.send_signal(number)
            _, errors = child.communicate(timeout=LIMIT_S)
        finally:
            child.kill()
    assert "Traceback" not in errors
    return child.returncode


@pytest.mark.parametrize(
    ("number", "moment", "verb", "options"),
    [
        (signal.SIGTERM, "_lock", "convert", ("--variant", "PQ5")),
        (signal.SIGTERM, "0", "convert", ("--variant", "PQ5")),
        (signal.SIGHUP, "60", "convert", ("--variant", "PQ5")),
        (signal.SIGTERM, "place", "export", ("--variant", "PQ5", "--bf16")),
        (signal.SIGINT, "40", "export", ("--variant", "PQ5", "--affine", "4")),
        (signal.SIGTERM, "40", "quantize", ("--variant", "PQ4")),
        (signal.SIGHUP, "place", "quantize", ("--variant", "PQ4")),
    ],
)
def test_a_signal_leaves_nothing(repository, tmp_path, number, moment, verb, options):
    arguments = (verb, moment, "--model", repository, "--output", tmp_path / "out", *options)
    assert end(number, *arguments) == 128 + number
    if moment == "_lock":  # made a moment ago; the next run clears it, as what SIGKILL leaves
        assert [name[:13] for name in names(tmp_path)] == [".out.partial-"]
    else:
        assert names(tmp_path) == []


def test_what_a_signal_may_leave_is_cleared_by_the_next_run(repository, tmp_path):
    arguments = ("--model", str(repository / "PQ5"), "--output", str(tmp_path / "out"))
    assert end(signal.SIGKILL, "convert", "_lock", *arguments) == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    assert cli.run(convert.main, arguments) == 0
    assert names(tmp_path) == ["out"]
    loading.load(tmp_path / "out")


def test_a_variant_added_to_a_repository_leaves_its_other_files(repository, tmp_path):
    root = tiny.write_root(tmp_path / "repository", tiny.config())
    before = names(root)
    arguments = ("--model", repository, "--output", root, "--variant", "PQ4")
    status = end(signal.SIGTERM, "quantize", "40", *arguments, "--layout", "published")
    assert status == 128 + signal.SIGTERM
    assert names(root) == before


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_the_server_ends_with_success(number):
    port = free_port()
    arguments = ("--model", str(demo.folder()), "--port", str(port))
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, *OURS, *arguments], stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            wait_until_open(port, process, log)
            process.send_signal(number)
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
        log.seek(0)
        assert "Traceback" not in log.read()


def test_a_signal_that_is_to_be_ignored_is(tmp_path):
    """As nohup has it."""
    code = (
        "import os, signal; from hlwq_mlx import cli\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "raise SystemExit(cli.run(lambda argv: os.kill(os.getpid(), signal.SIGHUP)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
