"""A converted folder is opened once, by whatever it is used for."""

import shutil
import subprocess
import sys

import demo
import pytest

from hlwq_mlx import library
from hlwq_mlx.errors import CheckpointError, SourceError
from hlwq_mlx.folder.folder import Folder, is_ours
from hlwq_mlx.folder.names import INDEX_NAME
from hlwq_mlx.memory import inventory
from hlwq_mlx.memory.need import Settings
from hlwq_mlx.memory.verdict import plan

COUNTING = """
import collections, os, sys
import hlwq_mlx.library, hlwq_mlx.cli, hlwq_mlx.generate, hlwq_mlx.memory.verdict
opened = collections.Counter()

def count(event, arguments):
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        path, folder = os.path.split(os.fspath(arguments[0]))[::-1]
        opened[path] += folder == sys.argv[1]

sys.addaudithook(count)
{}
print(opened["config.json"], opened["{}"])
"""
LOAD = "hlwq_mlx.load(sys.argv[1])"
GENERATE = "hlwq_mlx.generate.main(['--model', sys.argv[1], '--prompt', 'Hi', '--max-tokens', '1'])"


@pytest.mark.parametrize(
    ("use", "reads"),
    [
        (LOAD, 1),
        # Once to see that nothing has to be downloaded, before any of it is trusted.
        (GENERATE, 2),
    ],
    ids=["load", "generate"],
)
def test_a_folder_s_config_is_read_once(use, reads):
    script = COUNTING.format(use, INDEX_NAME)
    command = [sys.executable, "-c", script, str(demo.folder())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines()[-1:] == [f"{reads} 1"], ran.stderr


def test_a_folder_that_changes_under_a_program_stays_what_it_was(tmp_path):
    folder = Folder.open(shutil.copytree(demo.folder(), tmp_path / "model"))
    wanted = plan(folder, Settings(context=64)).needed
    (folder.path / INDEX_NAME).unlink()
    assert plan(folder, Settings(context=64)).needed == wanted


def test_only_what_convert_wrote_is_found(tmp_path):
    assert Folder.find(tmp_path) is None
    assert Folder.find(library.DEMO) is None and not is_ours(library.DEMO)
    found = Folder.find(demo.folder())
    assert found is not None and found.args.text_config.vocab_size == 1024
    assert found.shards and found.weight_map.keys() == found.specs.keys()
    with pytest.raises(CheckpointError, match=r"needed a folder of format hlwq 1, got None None"):
        _ = Folder.open(library.DEMO).manifest


def test_a_variant_that_a_folder_is_not_of(tmp_path):
    folder = Folder.open(demo.folder())
    folder.require_variant(None)
    folder.require_variant("pq5")
    for refusing in (
        lambda: folder.require_variant("PQ3"),
        lambda: library.open_folder(str(folder.path), "PQ3"),
        lambda: inventory.take(str(folder.path), "PQ3"),
    ):
        with pytest.raises(SourceError, match=r"needed PQ3, got a folder converted from PQ5"):
            refusing()
