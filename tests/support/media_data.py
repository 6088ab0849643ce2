"""References of the media tests, and the pictures and sounds they were computed from."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "data" / "media"


def references(name):
    """The rows of one reference file; the scripts beside it wrote them."""
    return json.loads((FOLDER / f"{name}.json").read_text())["rows"]


def arrays(name):
    """The arrays of one reference file, by row."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def digest(array):
    """What the references hold instead of a long array."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:32]


def _inputs():
    spec = importlib.util.spec_from_file_location("media_inputs", FOLDER / "inputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


inputs = _inputs()
