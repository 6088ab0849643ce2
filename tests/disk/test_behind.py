"""Digests and the way to the disk, behind the thread that writes."""

import hashlib

import pytest

from hlwq_mlx.disk import behind
from hlwq_mlx.disk.behind import Digests, Writeback


def test_runs_that_grow_in_turns_are_digested_in_order(monkeypatch):
    monkeypatch.setattr(behind, "_MOST_BEHIND", 300)
    pieces = [bytes([number]) * 100 for number in range(40)]
    digests = Digests()
    for number, piece in enumerate(pieces):
        digests.add(10000 * (number % 2) + 100 * (number // 2), piece)
    found = digests.listed()
    digests.close()
    wanted = [hashlib.sha256(b"".join(pieces[first::2])).hexdigest() for first in (0, 1)]
    assert found == [(0, 2000, wanted[0]), (10000, 12000, wanted[1])]


def test_no_more_waits_than_may(monkeypatch):
    monkeypatch.setattr(behind, "_MOST_BEHIND", 1000)
    digests = Digests()
    for number in range(50):
        digests.add(100 * number, bytes(100))
        assert len(digests._waiting) <= 10
    digests.close()


def test_what_the_system_tells_of_the_disk_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(behind, "_FLUSH_BYTES", 10)
    writeback = Writeback(tmp_path / "gone")
    writeback.add(9)
    writeback.add(1)
    with pytest.raises(FileNotFoundError):
        writeback.close()


def test_a_file_is_flushed_while_it_is_written(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(behind, "_FLUSH_BYTES", 10)
    monkeypatch.setattr(behind, "hand_over", flushed.append)
    writeback = Writeback(tmp_path)
    writeback.add(10)
    writeback.close()
    assert flushed == [tmp_path]
