"""Models from a hub: what is fetched, what a broken download leaves, and what is said of faults."""

import errno
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import demo
import hub_server
import mlx.core as mx
import numpy as np
import pytest
import tiny
from hub_server import Fault
from huggingface_hub import constants

from hlwq_mlx import cli, convert, library
from hlwq_mlx.errors import DeviceError, SourceError
from hlwq_mlx.folder import loading
from hlwq_mlx.folder.folder import is_ours
from hlwq_mlx.source import hub, resume

NAME = "owner/Tiny-HLWQ"
OLD_NAME = "owner/Tiny-PolarQuant"
CODES = r"/cdn/.*/PQ5/codes"
WANTED = {"PQ5/codes.safetensors", "PQ5/bf16.safetensors", "config.json", *tiny.SIDE_FILES}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The files of a repository: two variants, other weights at the root, other files."""
    root = tmp_path_factory.mktemp("repository")
    settings = tiny.config()
    tiny.write_root(root, settings)
    weights = tiny.make_weights(settings, has_towers=False)
    for bits in (4, 5):
        tiny.publish(root / f"PQ{bits}", weights, tiny.pure(bits))
    (root / "model.safetensors").write_bytes(b"other weights")
    (root / "README.md").write_text("A model")
    (root / "PQ5" / "chart.png").write_bytes(b"a chart")
    return root


@pytest.fixture
def server(repository, monkeypatch, tmp_path):
    """A hub that this process takes for the hub, with an empty cache and no login."""
    with hub_server.standing_in(NAME, repository, monkeypatch, tmp_path) as running:
        yield running


def failing(capfd, *arguments):
    """Run the convert command in this process and return the one line it says as it fails."""
    assert cli.run(convert.main, ["--output", "never", *arguments]) == cli.EXIT_ERROR
    assert not Path("never").exists()
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def blobs():
    """The sizes of what the cache holds as whole files, and as parts."""
    files = [path for path in Path(constants.HF_HUB_CACHE).rglob("blobs/*") if path.is_file()]
    parts = [path.stat().st_size for path in files if path.suffix == ".incomplete"]
    return [path.stat().st_size for path in files if path.suffix != ".incomplete"], parts


def drop(server, sent, times=7):
    """Serve the codes only up to some bytes, and then not at all."""
    server.faults = [Fault(CODES, sent=sent), Fault(CODES, times=times - 1)]


@pytest.mark.parametrize(
    ("model", "variant"),
    [(f"{NAME}/PQ5", None), (f"{NAME}/pq5", "PQ5"), (NAME, "pq5"), (OLD_NAME, "PQ5")],
)
def test_only_the_wanted_files(server, repository, model, variant):
    root, found = hub.download(model, variant)
    assert found == "PQ5"
    assert server.served() == WANTED
    there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert there == WANTED
    for name in WANTED:
        assert (root / name).read_bytes() == (repository / name).read_bytes()


def test_a_name_from_before_the_hub_knew_of_the_renaming(server):
    server.repositories = {OLD_NAME: server.repositories[NAME]}
    assert hub.download(NAME, "PQ5")[0].parts[-3] == "models--owner--Tiny-PolarQuant"


def test_a_repository_that_the_hub_redirects(server):
    server.renamed = {"owner/first": NAME}
    assert hub.download("owner/first/PQ5", None)[0].parts[-3] == "models--owner--Tiny-HLWQ"


def test_weights_at_the_root(server):
    files = server.repositories[NAME]
    server.repositories[NAME] = {name: files[name] for name in files if "PQ" not in name}
    assert hub.download(NAME, None)[1] is None
    assert server.served() == {"model.safetensors", "config.json", *tiny.SIDE_FILES}


def test_the_drafter_beside_a_model_comes_along(server):
    own = {"drafter/config.json", "drafter/model.safetensors"}
    others = {"drafter/README.md", "drafter/more/model.safetensors", "drafter/tokenizer.json"}
    server.repositories[NAME] |= dict.fromkeys(own | others, b"{}")
    root, _ = hub.download(NAME, "PQ5")
    assert server.served() == WANTED | own
    assert {path.name for path in (root / "drafter").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_weights_without_a_config_are_no_drafter(server):
    server.repositories[NAME] |= {"drafter/model.safetensors": b"weights"}
    hub.download(NAME, "PQ5")
    assert server.served() == WANTED


def test_a_mirror_that_states_no_hashes(server):
    server.states_hashes = False
    root, _ = hub.download(NAME, "PQ5")
    assert server.served() == WANTED
    assert (root / "PQ5" / "codes.safetensors").is_file()


def test_a_second_time_nothing_is_fetched(server):
    first = hub.download(NAME, "PQ5")
    server.requests.clear()
    assert hub.download(NAME, "PQ5") == first
    assert server.served() == set()


def test_a_login_is_shown_to_the_hub_alone(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.download(NAME, "PQ5")
    shown = {request.path.split("/")[1] for request in server.requests if request.has_token}
    kept = {request.path.split("/")[1] for request in server.requests if not request.has_token}
    assert shown == {"api", "owner"}
    assert kept == {"cdn"}


def test_a_dropped_connection_is_taken_up(server, repository):
    server.faults = [Fault(CODES, sent=5000), Fault(CODES, sent=3000)]
    root, _ = hub.download(NAME, "PQ5")
    first, *later = server.ranges("PQ5/codes.safetensors")
    assert first is None
    starts = [int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) for asked in later]
    assert 0 < starts[0] <= 5000
    assert starts[0] < starts[1] <= starts[0] + 3000
    whole = (repository / "PQ5" / "codes.safetensors").read_bytes()
    assert (root / "PQ5" / "codes.safetensors").read_bytes() == whole


def test_the_next_run_goes_on_where_one_failed(server, repository, capfd):
    drop(server, sent=5000)
    error = failing(capfd, "--model", NAME, "--variant", "PQ5")
    assert error.startswith(f"error: [{NAME}] needed the hub, got RemoteProtocolError: peer closed")
    assert error.endswith("run the same command again: it goes on where it stopped.")
    codes = repository / "PQ5" / "codes.safetensors"
    whole, (part,) = blobs()
    assert codes.stat().st_size not in whole
    assert 0 < part <= 5000
    server.faults, server.requests = [], []
    root, _ = hub.download(NAME, "PQ5")
    assert server.ranges("PQ5/codes.safetensors") == [f"bytes={part}-"]
    assert (root / "PQ5" / "codes.safetensors").read_bytes() == codes.read_bytes()
    assert blobs()[1] == []


@pytest.mark.parametrize("junk", [b"x" * 5000, b"x" * 10_000_000], ids=["other", "longer"])
def test_a_part_that_does_not_belong(server, junk, capfd):
    info = hub.find_repository(NAME)
    file = next(item for item in info.siblings if item.rfilename == "PQ5/codes.safetensors")
    part = resume.partial_path(resume.blob_path(NAME, file))
    part.parent.mkdir(parents=True)
    part.write_bytes(junk)
    if len(junk) < file.size:
        error = failing(capfd, "--model", NAME, "--variant", "PQ5")
        assert "needed PQ5/codes.safetensors as the hub describes it, got other content" in error
    hub.download(NAME, "PQ5")
    assert blobs()[1] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            [NAME, "--variant", "PQ3"],
            r"needed variant PQ3, got PQ4, PQ5, bf16\. Choose one of these",
        ),
        ([f"{NAME}/PQ3"], r"needed variant PQ3, got PQ4, PQ5, bf16\. Choose one of these"),
        ([NAME], r"needed one variant, got PQ4, PQ5\. Choose with --variant"),
        (["owner/none"], r"needed a repository on the hub, got none of that name\. Check the sp"),
        (["owner/Other-HLWQ/PQ5"], r"needed a repository on the hub, got none of that name"),
        (["owner/no name/PQ5"], r"needed a name that the hub allows, got this\. Repo id must"),
    ],
)
def test_what_is_not_there(server, capfd, arguments, expected):
    assert re.search(expected, failing(capfd, "--model", *arguments))
    assert server.served() == set()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("/api/", 403, times=99), r"needed the hub, got HfHubHTTPError: 403 Forbidden"),
        (Fault("/api/", 500, times=99), r"needed the hub, got HfHubHTTPError: .*500 Internal"),
        (Fault("PQ5/codes", 500, times=99), r"needed the hub, got HfHubHTTPError: .*500 Internal"),
        (
            Fault("PQ5/codes", 404, {"X-Error-Code": "EntryNotFound"}, times=99),
            r"needed the hub, got RemoteEntryNotFoundError: 404 .*PQ5/codes\.safetensors",
        ),
        (
            Fault("/resolve/", 401, {"X-Error-Code": "GatedRepo"}, times=99),
            r"needed consent to its terms, got none from you\. Give it at http://127\S+/owner/Tin",
        ),
        (
            Fault("/api/", 403, {"X-Error-Code": "GatedRepo"}, times=99),
            r"needed consent to its terms, got none from you\. .* log in with `hf auth login`",
        ),
    ],
    ids=["forbidden", "down", "down for a file", "no file", "gated file", "gated"],
)
def test_faults_of_the_hub(server, capfd, fault, expected):
    server.faults = [fault]
    assert re.search(expected, failing(capfd, "--model", NAME, "--variant", "PQ5"))


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ("config.json", r"needed config\.json, got a repository without"),
        (".safetensors", r"needed \*\.safetensors, got a repository without"),
    ],
)
def test_a_repository_without_a_model(server, capfd, left_out, expected):
    files = server.repositories[NAME]
    server.repositories[NAME] = {
        name: files[name] for name in files if "PQ4" not in name and not name.endswith(left_out)
    }
    assert re.search(expected, failing(capfd, "--model", NAME))
    assert server.served() == set()


def test_no_connection(server, capfd, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        error = failing(capfd, "--model", NAME, "--variant", "PQ5")
    assert "needed the hub, got ConnectError" in error


@pytest.mark.parametrize("path", ["/api/", r"/resolve/.*/config\.json"], ids=["info", "config"])
def test_a_hub_that_says_nothing_more_is_not_waited_for(server, monkeypatch, path):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hold = threading.Event()
    server.faults = [Fault(path, hold=hold, times=99)]
    try:
        with pytest.raises(SourceError, match=r"needed the hub, got ReadTimeout: .*timed out\."):
            hub.read_headers(NAME, "PQ5")
    finally:
        hold.set()


def test_no_room_is_said_before_anything_is_fetched(server, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DeviceError, match=r"needed \d+\.\d\d [kM]B in .*hub, got 1\.00 kB of free"):
        hub.download(NAME, "PQ5")
    assert server.served() == set()


def test_a_disk_that_fills_up(server, repository, capfd):
    size = (repository / "PQ5" / "codes.safetensors").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(DeviceError) as caught:
            hub.download(NAME, "PQ5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert "Choose a folder where larger files are allowed" in str(caught.value)
    whole, parts = blobs()
    assert size not in whole
    assert all(part <= size // 2 for part in parts)
    hub.download(NAME, "PQ5")
    assert blobs()[1] == []


@pytest.mark.parametrize("fault", ["offline", "down", "gone"])
def test_without_the_hub_a_copy_is_used(server, monkeypatch, caplog, fault):
    """A repository that was removed is one that the hub cannot give either."""
    whole = hub.download(NAME, "PQ5")
    server.requests.clear()
    if fault == "gone":
        server.repositories.clear()
    else:
        server.faults = [Fault("/", 500, times=999)]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", fault == "offline")
    for model, variant in ((NAME, "pq5"), (NAME, None), (OLD_NAME, "PQ5")):
        caplog.clear()
        assert hub.download(model, variant) == whole
        assert caplog.messages[-1].endswith("Using the copy downloaded before.")
    assert bool(server.requests) == (fault != "offline")


def test_without_the_hub_a_part_is_no_copy(server, monkeypatch):
    drop(server, sent=5000)
    with pytest.raises(SourceError):
        hub.download(NAME, "PQ5")
    hub.download(NAME, "PQ4")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="needed the hub, got OfflineModeIsEnabled"):
        hub.download(NAME, "PQ5")
    assert hub.download(NAME, None)[1] == "PQ4"


def test_without_the_hub_several_copies_need_a_choice(server, monkeypatch):
    for variant in ("PQ4", "PQ5"):
        hub.download(NAME, variant)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match=r"needed one variant, got PQ4, PQ5\. Choose"):
        hub.download(NAME, None)


def environment(server, cache):
    """What makes another process take the server for the hub."""
    places = {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub")}
    own = {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return own | places | {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "HF_TOKEN": ""}


@pytest.mark.parametrize(
    "ending",
    [
        signal.SIGTERM,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGKILL, signal.SIGINT)),
    ],
)
def test_a_run_that_was_ended_is_taken_up(server, tmp_path, ending):
    content = np.random.default_rng(0).bytes(12_000_000)  # written 10 MiB at a time
    server.repositories[NAME]["PQ5/codes.safetensors"] = content
    file = next(item for item in hub.find_repository(NAME).siblings if item.size == len(content))
    partial = resume.partial_path(resume.blob_path(NAME, file))
    hold = threading.Event()
    server.faults = [Fault(CODES, sent=11_000_000, hold=hold)]
    arguments = ("--model", NAME, "--variant", "PQ5", "--output", str(tmp_path / "out"))
    command = [sys.executable, "-m", "hlwq_mlx.convert", *arguments]
    variables = os.environ | environment(server, tmp_path)
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
            hold.wait(0.05)
        process.send_signal(ending)
        _, errors = process.communicate(timeout=60)
    hold.set()
    assert process.returncode == (-ending if ending == signal.SIGKILL else 128 + ending)
    assert "Traceback" not in errors
    (part,) = blobs()[1]
    assert 0 < part < len(content)
    hub.download(NAME, "PQ5")
    assert server.ranges("PQ5/codes.safetensors") == [None, f"bytes={part}-"]
    assert len(content) in blobs()[0]


def test_convert_from_the_hub(server, repository, tmp_path):
    output = tmp_path / "out"
    arguments = ("--model", NAME, "--variant", "PQ5", "--output", str(output))
    ran = demo.run("hlwq_mlx.convert", *arguments, **environment(server, tmp_path))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{output}\n"
    assert server.served() == WANTED
    own = tmp_path / "own"
    assert cli.run(convert.main, ["--model", str(repository / "PQ5"), "--output", str(own)]) == 0
    ids = mx.array([[2, 9, 77, 300]])
    assert mx.array_equal(loading.load(output)(ids), loading.load(own)(ids))


@pytest.mark.slow
def test_quantize_from_the_hub(server, tmp_path):
    server.publish("owner/Demo-HLWQ", library.DEMO)
    arguments = (
        "--model",
        "owner/Demo-HLWQ",
        "--variant",
        "PQ5",
        "--output",
        str(tmp_path / "out"),
    )
    ran = demo.run("hlwq_mlx.quantize", *arguments, **environment(server, tmp_path))
    assert (ran.returncode, ran.stdout) == (0, f"{tmp_path / 'out'}\n"), ran.stderr
    assert server.served() == {name for name in demo.SHIPPED if not name.startswith("PQ5/")}
    assert is_ours(tmp_path / "out")


def test_generate_from_the_hub_converts_once(server, tmp_path, monkeypatch, caplog):
    server.publish("owner/Demo-HLWQ", library.DEMO)
    ours, model = tmp_path / "ours", "owner/Demo-HLWQ/PQ5"
    variables = environment(server, tmp_path) | {library.CACHE_VARIABLE: str(ours)}
    arguments = ("--model", model, "-p", demo.CARD_QUESTION, "--temp", "0")
    ran = demo.run("hlwq_mlx.generate", *arguments, **variables)
    assert (ran.returncode, ran.stdout) == (0, "4\n"), ran.stderr
    (folder,) = (each for each in ours.iterdir() if each.name != "native")
    assert f"converting {model} PQ5 once into {folder}" in ran.stderr.splitlines()
    monkeypatch.setenv(library.CACHE_VARIABLE, str(ours))
    caplog.set_level("INFO", "hlwq_mlx")
    assert library.converted_folder(model) == folder
    assert caplog.messages == [f"using {folder}, converted before"]
    assert server.ranges("codes.safetensors") == [
        "bytes=0-100000",
        None,
    ]  # asked first, then brought
