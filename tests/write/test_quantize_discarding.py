"""A 16-bit model on the hub, quantized file by file, each deleted after use; stopped, gone on."""

import json
import os
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

from hlwq_mlx import cli, quantize
from hlwq_mlx.disk import atomic
from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.folder import checksums, loading
from hlwq_mlx.memory import disk
from hlwq_mlx.source import hub, rules
from hlwq_mlx.write import leftovers, staged

NAME = "owner/Tiny-16-bit"
ASKED = {
    "experts": ["--bits", "experts=3,attention=5,mlp=4,embedding=6"],
    "rows": ["--fit", "16GB", "--context", "64"],
}
FILES = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(scope="module", params=ASKED)
def repository(request, tmp_path_factory):
    """A model in three files, as transformers saves large ones: its kind and folder."""
    settings = tiny.experts_config() if request.param == "experts" else tiny.config()
    root = tiny.write_root(tmp_path_factory.mktemp("repository"), settings)
    weights = tiny.make_weights(settings, has_dead=False, has_towers=False)
    names = sorted(weights)
    cut = {file: names[number::3] for number, file in enumerate(FILES)}
    for file, held in cut.items():
        tiny.save_plain(root / file, {name: weights[name] for name in held})
    index = {name: file for file, held in cut.items() for name in held}
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return request.param, root


@pytest.fixture
def server(repository, monkeypatch, tmp_path):
    with hub_server.standing_in(NAME, repository[1], monkeypatch, tmp_path) as running:
        yield running


def arguments(kind, output):
    return ["--model", NAME, *ASKED[kind], "--output", str(output), "--discard-source"]


def contents(folder):
    """Every tensor, wherever it lies, and what the config says."""
    found = {"config": read_json(folder / "config.json")}
    for path in folder.glob("*.safetensors"):
        file = TensorFile(path)
        found |= {name: file.view(name).tobytes() for name in file.specs}
    return found


@pytest.fixture(scope="module")
def wanted(repository, tmp_path_factory):
    """What `quantize` makes of the same files when it keeps them."""
    kind, root = repository
    output = tmp_path_factory.mktemp("wanted") / "out"
    given = ["--model", str(root), *ASKED[kind], "--output", str(output)]
    assert cli.run(quantize.main, given) == 0
    return contents(output)


def left_in_cache(cache=None):
    return {path.name for path in Path(cache or constants.HF_HUB_CACHE).rglob("*.safetensors")}


def check(output, wanted):
    assert contents(output) == wanted
    assert checksums.verify(output, [].append) == len(list(output.iterdir())) - 1
    assert mx.isfinite(loading.load(output)(mx.array([[2, 9, 77]]))).all()
    assert not list(output.parent.glob(".out*"))


def test_the_disk_never_holds_more_than_was_said(
    repository, server, tmp_path, wanted, monkeypatch, capsys
):
    kind, _ = repository
    spare = 3 * sum(
        len(content) for name, content in server.repositories[NAME].items() if "model-" not in name
    )
    monkeypatch.setattr(disk, "SPARE_BYTES", spare + 200_000)  # root files, and the job
    monkeypatch.setattr(staged, "MOVED_BYTES", 100 * 512)
    held = []

    def watched(path, flush=atomic.flush):
        flush(path)
        there = [each.lstat() for each in tmp_path.rglob("*") if not each.is_symlink()]
        held.append(sum(min(each.st_size, 512 * each.st_blocks) for each in there))

    monkeypatch.setattr(atomic, "flush", watched)
    found = hub.read_headers(NAME, "bf16")
    choice = leftovers.AUTO if kind == "rows" else leftovers.KEEP
    rule = rules.class_rule(dict.fromkeys(("attention", "mlp", "embedding", "ple"), 8))
    if kind == "experts":
        rule = rules.class_rule(rules.parse_bits(ASKED[kind][1]))
    need = disk.disk_need(found, choice, is_discarded=True, rule=rule)
    assert cli.run(quantize.main, arguments(kind, tmp_path / "out")) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}\n"
    assert "disk: " in said.err and "more at most in" in said.err
    assert "cos_sim" in said.err
    check(tmp_path / "out", wanted)
    assert left_in_cache() == set()
    assert max(held) < need.together < need.source + need.output


KILLED = f"""{PRELUDE}
from hlwq_mlx import cli, quantize
from hlwq_mlx.source import hub
from hlwq_mlx.write import staged
room = dict(write=staged, save=staged.Job, discard=hub)[moment]
name = dict(write="write_file").get(moment, moment)
setattr(room, name, dying(getattr(room, name)))
cli.run(quantize.main, arguments)
"""


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("write", 1),
        *(pytest.param(*m, marks=pytest.mark.slow) for m in [("save", 2), ("discard", 1)]),
    ],
)
def test_a_killed_run_is_gone_on_with(repository, server, tmp_path, wanted, moment, number):
    kind, _ = repository
    cache = tmp_path / "hub"
    places = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(cache), "HF_TOKEN": ""}
    variables = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_TELEMETRY": "1"}
    given = arguments(kind, tmp_path / "out")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, moment, str(number), *given],
        env=os.environ | variables | places,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    assert staged.is_begun(tmp_path / "out")
    server.repositories.clear()  # what was begun needs no hub
    assert cli.run(quantize.main, given) == 0
    check(tmp_path / "out", wanted)
    assert left_in_cache(cache) == set()


def test_what_it_is_not_for_is_refused(repository, tmp_path, capsys):
    kind, root = repository
    own = ["--model", str(root), *ASKED[kind], "--output", str(tmp_path / "out")]
    assert cli.run(quantize.main, [*own, "--discard-source"]) == 2
    assert "which is never deleted. Leave the option out." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        quantize.main([*own, "--discard-source", "--layout", "published"])
    assert "not --layout published" in capsys.readouterr().err
    assert sorted(path.name for path in root.glob("*.safetensors")) == FILES
