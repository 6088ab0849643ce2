"""References of the media tests, and the pictures and sounds they were computed from."""

import importlib.util
import json
from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "media"


def references(name):
    """The rows of one reference file; make_media.py wrote them."""
    return json.loads((FOLDER / f"{name}.json").read_text())["rows"]


def _inputs():
    spec = importlib.util.spec_from_file_location("media_inputs", FOLDER / "inputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


inputs = _inputs()
