"""Prefixes that outlive the process, whatever happens to their files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from oracle import model as oracle_model

from hlwq_mlx.engine.answer import prefill
from hlwq_mlx.engine.prefix_cache import Node, PrefixCache
from hlwq_mlx.engine.prefix_disk import Limits, PrefixStore, origin_of
from hlwq_mlx.engine.prefix_file import Header, host_arrays, read_node, write
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.errors import DeviceError
from hlwq_mlx.gemma4.caches import WHOLE, Caching

PROMPT = [2, 11, 45, 7, 130, 201, 9, 88, 64, 17, 255, 31, 5, 90, 14, 77, 3, 160, 21, 48]
OTHER = [*PROMPT[:9], 201, 202, 203, 204]
CODED = Caching(8, 32)
LIMITS = Limits()


@pytest.fixture(scope="module")
def model():
    return oracle_model()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of three files: two prompts that part."""
    folder = tmp_path_factory.mktemp("whole")
    stored(folder)
    return folder


class Disk:
    """A store, and a tree in memory before it."""

    def __init__(self, folder, caching=WHOLE, identity="one", limits=LIMITS, clock=time.time):
        self.model = oracle_model()
        origin = origin_of(self.model, identity, caching)
        self.store = PrefixStore(folder, origin, limits, clock)
        self.tree = PrefixCache(partial(self.model.make_cache, caching), store=self.store)

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.store.close()

    def keep(self, ids, *positions, salt="", **options):
        match = self.tree.find(ids, salt)
        caches = match.restore()
        read(self.model, ids, caches, match.length)
        for position in positions:
            assert position <= match.length or self.tree.keep(
                ids, caches, position, salt, **options
            )
        self.tree.save()

    def known(self, ids, salt=""):
        return self.tree.find(ids, salt).length


def read(model, ids, caches, begin=0):
    """The logits behind a prompt."""
    return np.array(prefill(model, Request(Prepared(ids)), caches, begin))


def files(folder):
    return sorted(folder.glob("prefix-*.safetensors"))


def stored(folder, **options):
    """Write two prompts that part, and return what is there."""
    with Disk(folder, **options) as disk:
        disk.keep(PROMPT, 19)
        disk.keep(OTHER, 9, 12)
    found = files(folder)
    assert len(found) == 3
    return found


def places():
    """Where another process finds this file and what it imports."""
    return [str(Path(__file__).parent), *sys.path]


IN_A_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_prefix_disk as test
test.stored(Path(sys.argv[1]), caching=test.CODED)
"""


def test_another_process_goes_on_bit_for_bit(model, tmp_path):
    subprocess.run([sys.executable, "-c", IN_A_PROCESS, tmp_path, *places()], check=True)
    with Disk(tmp_path, CODED) as disk:
        for ids, known in ((PROMPT, 19), (OTHER, 12), (PROMPT[:11], 9)):
            fresh = model.make_cache(CODED)
            read(model, ids[:known], fresh)
            match = disk.tree.find(ids)
            assert match.length == known
            found, wanted = read(model, ids, match.restore(), known), read(model, ids, fresh, known)
            # The other process read more at once, so codes may differ by a rounding.
            assert np.abs(found - wanted).max() < 0.05
    with Disk(tmp_path, CODED) as disk, Disk(tmp_path, CODED) as again:
        pairs = zip(
            disk.tree.find(PROMPT).restore(), again.tree.find(PROMPT).restore(), strict=True
        )
        assert all(
            mx.array_equal(one, other)
            for caches in pairs
            for one, other in zip(*(cache.snapshot(0, 19) for cache in caches), strict=True)
        )


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16, mx.uint32])
def test_a_file_holds_a_node_bit_for_bit(tmp_path, dtype):
    ranges = tuple(
        tuple(mx.random.uniform(0, 9, (1, 2, 3, width)).astype(dtype) for width in (4, 5))
        for _ in range(11)
    )
    node = Node(np.array([5, -(2**55), 7]), 9, ranges, ranges[:1])
    for has_state in (True, False):
        path = tmp_path / f"{has_state}.safetensors"
        header = Header("id", "parent", 6, 9, has_state, 12)
        write(path, header, {"model": "one"}, host_arrays(node, has_state))
        found = read_node(path)
        assert found.keys.tolist() == node.keys.tolist()
        assert (found.start, found.end) == (6, 9)
        pairs = [(found.ranges, node.ranges)]
        if has_state:
            pairs.append((found.state, node.state))
        else:
            assert found.state is None
        for one, other in pairs:
            assert [[(a.dtype, a.tolist()) for a in arrays] for arrays in one] == [
                [(a.dtype, a.tolist()) for a in arrays] for arrays in other
            ]


def test_what_was_cut_otherwise_since_is_still_found(tmp_path):
    """The first prompt was one file before the second one parted from it."""
    stored(tmp_path)
    with Disk(tmp_path) as disk:
        assert disk.known(OTHER) == 12
        assert disk.known(PROMPT) == 19
        disk.keep([*PROMPT[:14], 99, 98], 14, 15)
    assert len(files(tmp_path)) == 5
    with Disk(tmp_path) as disk:
        assert [disk.known(each) for each in (PROMPT, [*PROMPT[:14], 99, 98])] == [19, 15]


def test_only_what_a_prompt_needs_is_read(tmp_path):
    stored(tmp_path)
    with Disk(tmp_path) as disk:
        assert disk.tree.nbytes == 0
        assert disk.known([7, *PROMPT]) == 0
        assert disk.tree.nbytes == 0
        disk.known(OTHER)
        there = disk.tree.nbytes
        assert there > 0
        disk.known(OTHER)
        assert disk.tree.nbytes == there


def test_what_is_of_another_origin_is_neither_found_nor_removed(tmp_path):
    whole = stored(tmp_path)
    for options in ({"identity": "two"}, {"caching": CODED}):
        with Disk(tmp_path, **options) as disk:
            assert disk.known(PROMPT) == 0
    with Disk(tmp_path) as disk:
        assert disk.known(PROMPT, salt="key") == 0
        assert disk.known(PROMPT) == 19
    assert files(tmp_path) == whole


def test_files_tell_nothing_to_others(tmp_path):
    folder = tmp_path / "made" / "here"
    for path in stored(folder):
        assert path.stat().st_mode & 0o077 == 0
    assert folder.stat().st_mode & 0o077 == 0


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def rename(path):
    path.rename(path.with_name(f"prefix-{'0' * 64}.safetensors"))


DAMAGES = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"%PDF-1.7" * 99),
    "plain": lambda path: mx.save_safetensors(str(path), {"keys": mx.array([1])}),
    "renamed": rename,
    "number": lambda path: flip(path, -1),
    "stated": lambda path: path.write_bytes(path.read_bytes().replace(b'"start":"', b'"start":"x')),
    "gone": Path.unlink,
    "unreadable": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("is_running", [False, True], ids=["at start", "while it runs"])
def test_what_is_damaged_is_removed_and_read_anew(model, whole, tmp_path, damage, is_running):
    wanted = {
        each: read(model, ids, model.make_cache()) for each, ids in enumerate((PROMPT, OTHER))
    }
    for path in files(whole):
        folder = tmp_path / path.stem
        shutil.copytree(whole, folder)
        if not is_running:
            DAMAGES[damage](folder / path.name)
        with Disk(folder) as disk:
            if is_running:
                DAMAGES[damage](folder / path.name)
            known = [disk.known(PROMPT), disk.known(OTHER)]
            assert known[0] in (0, 9, 19)
            assert known[1] in (0, 9, 12)
            # Arrays that the other prompt brought are not read again, so nobody misses them.
            assert is_running or damage == "number" or known != [19, 12]
            for each, ids in enumerate((PROMPT, OTHER)):
                match = disk.tree.find(ids)
                found = read(model, ids, match.restore(), match.length)
                assert np.abs(found - wanted[each]).max() < 1e-4
        if damage == "unreadable":  # what is in the way stays there
            continue
        for _ in range(1 + is_running):  # what was not asked for is found out at the next start
            with Disk(folder) as disk:
                disk.keep(PROMPT, 19)
                disk.keep(OTHER, 9, 12)
        assert len(files(folder)) == 3
        with Disk(folder) as disk:
            assert [disk.known(PROMPT), disk.known(OTHER)] == [19, 12]


def test_files_of_other_names_are_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    stored(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_prefix_disk as test
from hlwq_mlx.disk.tensorfile import TensorWriter
from hlwq_mlx.engine import prefix_disk

def killing(call, count):
    def called(*args):
        nonlocal count
        count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return called

if sys.argv[2] == "before it is renamed":
    prefix_disk.place = killing(prefix_disk.place, 3)
else:  # a file has 11 arrays
    TensorWriter.write = killing(TensorWriter.write, 27)
with test.Disk(Path(sys.argv[1])) as disk:
    for seed in range(3, 13):
        disk.keep([seed, *test.PROMPT], 20)
"""


@pytest.mark.parametrize("moment", ["between arrays", "before it is renamed"])
def test_a_killed_process_leaves_what_loads(tmp_path, moment):
    process = subprocess.run([sys.executable, "-c", KILLED, tmp_path, moment, *places()])
    assert process.returncode == -signal.SIGKILL
    assert len(files(tmp_path)) == 2
    assert len(list(tmp_path.iterdir())) == 3  # beside them, what was half written
    with Disk(tmp_path) as disk:
        assert [disk.known([seed, *PROMPT]) for seed in range(3, 7)] == [20, 20, 0, 0]
        disk.keep([5, *PROMPT], 20)
    assert sorted(tmp_path.iterdir()) == files(tmp_path)
    assert len(files(tmp_path)) == 3


def test_what_was_used_least_recently_is_removed(tmp_path):
    ticks = iter(range(10**6))
    with Disk(tmp_path / "one") as disk:
        disk.keep(PROMPT, 19)
    size = files(tmp_path / "one")[0].stat().st_size
    limits = Limits(max_bytes=4 * size + size // 2)
    prompts = [[seed, *PROMPT[1:]] for seed in range(3, 9)]
    many = partial(Disk, tmp_path / "many", limits=limits, clock=lambda: next(ticks))
    with many() as disk:
        disk.keep(prompts[0], 19)
    for ids in prompts[1:]:
        with many() as disk:
            disk.known(prompts[0])  # is in use all the time
            disk.keep(ids, 19)
        assert disk.store.nbytes <= limits.max_bytes
    with many() as disk:
        assert [disk.known(ids) for ids in prompts] == [19, 0, 0, 19, 19, 19]


def test_a_beginning_is_not_removed_before_its_end(tmp_path):
    limits = Limits(max_bytes=sum(path.stat().st_size for path in stored(tmp_path / "all")))
    with Disk(tmp_path / "some", limits=limits) as disk:
        disk.keep(PROMPT, 9, is_system=True)
        disk.keep(PROMPT, 19)
        for seed in range(3, 40):
            disk.keep([*PROMPT[:9], seed, *PROMPT], 20)
    assert disk.store.nbytes <= limits.max_bytes
    with Disk(tmp_path / "some") as disk:
        assert disk.known([*PROMPT[:9], 39, *PROMPT]) == 20
        assert disk.known([*PROMPT[:9], 3, *PROMPT]) == 9


def test_bytes_written_in_a_day_are_limited(tmp_path):
    day = 24 * 60 * 60
    now = [day * 20_000]
    with Disk(tmp_path / "one") as disk:
        disk.keep(PROMPT, 19)
    size = files(tmp_path / "one")[0].stat().st_size
    limits = Limits(daily_bytes=3 * size)
    for first in (3, 13):  # a new process goes on counting
        with Disk(tmp_path / "two", limits=limits, clock=lambda: now[0]) as disk:
            for seed in range(first, first + 10):
                disk.keep([seed, *PROMPT[1:]], 19)
        assert len(files(tmp_path / "two")) == 3
    now[0] += day
    with Disk(tmp_path / "two", limits=limits, clock=lambda: now[0]) as disk:
        disk.keep(PROMPT, 19)
    assert len(files(tmp_path / "two")) == 4


def test_a_disk_that_takes_nothing_costs_no_request(model, tmp_path, caplog):
    with Disk(tmp_path) as disk:
        tmp_path.chmod(0o500)
        for path in tmp_path.iterdir():
            path.rmdir() if os.access(tmp_path, os.W_OK) else path.chmod(0o500)
        disk.keep(PROMPT, 19)
        assert disk.known(PROMPT) == 19
    tmp_path.chmod(0o700)
    assert files(tmp_path) == []
    assert "a prefix is not kept in" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match=r"needed to make the folder .*file"):
        PrefixStore(tmp_path / "file" / "inner", {})
