"""A group has room for what its fullest machine has room for, and is loaded after that is known."""

from types import SimpleNamespace

import pytest

from hlwq_mlx.errors import DeviceError
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.memory import inventory
from hlwq_mlx.memory.need import Settings, kv_bytes
from hlwq_mlx.server.start import Room
from hlwq_mlx.sharding import plan, room, start
from hlwq_mlx.sharding.speed import CHIPS, Mac, link_of
from scripts.sharding import parity

GB = 1e9
SETTINGS = Settings(8192)
ITEM_BYTES = 2
LENGTHS = (1, 300, 4096, 50_000, 131_072)


@pytest.fixture(scope="module")
def e4b():
    return inventory.as_converted(inventory.of_variant("PQ5"), "auto")


def planned(found, split, *gb):
    macs = [Mac(f"{each} GB", each * GB, CHIPS["M1"]) for each in gb]
    made = plan.MAKERS[split](found, SETTINGS, macs, link_of(10))
    return made, room.space(made, found.args, SETTINGS, ITEM_BYTES)


def free(made, rank):
    """Return what a machine's weights and its work leave of its memory."""
    return made.limits[rank] - made.held[rank] + made.kept[rank]


@pytest.mark.parametrize(
    ("split", "gb"),
    [
        ("layers", (11, 4)),
        ("layers", (4, 11, 5)),
        ("tensors", (11, 4)),
        ("tensors", (11, 11, 3, 9)),
    ],
)
def test_what_fills_the_room_fits_every_machine(e4b, split, gb):
    made, space = planned(e4b, split, *gb)
    assert space.nbytes > 0
    for length in LENGTHS:
        sequences = space.nbytes / space.bytes_of(length)
        for rank, config in enumerate(room.parts(made, e4b.args)):
            own = kv_bytes(config, Settings(length), ITEM_BYTES)
            assert sequences * own <= 1.001 * free(made, rank)


def conversations(space):
    """Return how many there is room for; what rank 0 keeps of one depends on the cut."""
    return space.nbytes / space.bytes_of(SETTINGS.context)


@pytest.mark.parametrize("split", plan.SPLITS)
def test_the_fullest_machine_counts(e4b, split):
    made, space = planned(e4b, split, 11, 11)
    smaller = [planned(e4b, split, *gb)[1] for gb in ((11, 3), (3, 11))]
    assert max(map(conversations, smaller)) < conversations(space)
    assert space.nbytes <= free(made, 0)


def test_a_machine_that_its_part_overfills_leaves_one_conversation(e4b):
    _, space = planned(e4b, "tensors", 11, 1)
    arguments = SimpleNamespace(prompt_cache_bytes=None, context=None)
    found = Room.of(space, 131_072, arguments)
    assert space.nbytes == 0
    assert found.prefix_bytes == 0 and found.capacity.context >= SETTINGS.context


class Others:
    """Rank 0's end of a group whose other rank has so much memory; nothing is told to it."""

    def __init__(self, folder, limit):
        self.place = SimpleNamespace(hosts=("here", "there"), backend="ring")
        self._facts = {1: {"folder": start._facts(folder)["folder"], "limit": limit}}
        self.told = []

    def hear(self):
        return self._facts

    def tell(self, message):
        self.told.append(message)

    def require_same(self, *_):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder.open(parity.coded(tmp_path_factory.mktemp("experts"), parity.experts()))


@pytest.mark.parametrize("split", plan.SPLITS)
def test_a_group_agrees_on_its_room_before_anything_is_loaded(folder, split):
    few, many = (
        start.agree(Others(folder, limit), folder, SETTINGS, split, is_forced=False)
        for limit in (2 * GB, 64 * GB)
    )
    assert conversations(few.space) < conversations(many.space)
    assert not few.leader.told


def test_a_rank_without_room_is_refused_before_anything_is_loaded(folder):
    with pytest.raises(DeviceError, match=r"\[rank 1\] needed"):
        start.agree(Others(folder, 1 << 20), folder, SETTINGS, "tensors", is_forced=False)
