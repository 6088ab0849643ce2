"""Conversions give the bytes that they always gave: a faster way must not change a code."""

import hashlib
import json

import pytest
import tiny

from hlwq_mlx import library
from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.disk.tensorfile import TensorFile
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert


def digest(folder):
    """Digest every tensor, and what the manifest says of leftovers, but no metadata."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        file = TensorFile(path)
        for name, spec in file.specs.items():
            found.update(f"{path.name} {name} {spec}".encode())
            found.update(file.view(name).tobytes())
    manifest = read_json(folder / "config.json")["quantization_config"]
    found.update(json.dumps(manifest["leftovers"], sort_keys=True).encode())
    return found.hexdigest()


# Written down while codes were found by a float64 product and a search, one slice after another.
DEMO = {
    "keep": "ba56035f2dc7a383229c8af2362ceb58126925c5003759d46f9c67a53982e780",
    "auto": "e815fa55dd1190f7e706d908d26193fdfc3ccdfa079694b13f8b94e44128e727",
    "small": "9a94b35d0754d2cf1fcfbf4ca8c2e201bdfdba4c451b313448878e7e9e1aba1b",
}
PADDED = {
    (1, "msb"): "a14cb180b33ba5b3e2b9e1fb90da9d7d741c7b0fca11a10a83942e41a6ca4b79",
    (2, "msb"): "a41e7ea7635f402ec92ca6880586d00919e2dd10d7955c8b72fb3844d069cecd",
    (3, "lsb"): "759b54e8d91d9bd9549aae646803a691d3260b7371349af80f4f742815b7aac0",
    (4, "half"): "2dcac6e510dcce9bfe27b9d9ddc56d2ab5743155e7729fe9bc4c0ec21c0c33bf",
    (4, "lsb"): "2dcac6e510dcce9bfe27b9d9ddc56d2ab5743155e7729fe9bc4c0ec21c0c33bf",
    (6, "msb"): "b8b6b2f8db40f8c8b608d73cc703a288d663b19bdd4445b557b767a8a24e882c",
    (7, "lsb"): "3538344e966f5a02df9267d3207a32bab35c12135699ba8e247a4e46c1646953",
    (8, "msb"): "be014eec7b5b9393f7ab7c2771fb3d7ec25f580281b30cd2ea7230f55e350dac",
}


@pytest.mark.parametrize("choice", DEMO)
def test_the_demo(choice, tmp_path):
    convert.convert(Source(library.DEMO / "PQ5", "PQ5"), tmp_path / "out", choice)
    assert digest(tmp_path / "out") == DEMO[choice]


@pytest.mark.parametrize(("bits", "order"), PADDED)
def test_every_width_and_padded_rows(bits, order, tmp_path):
    settings = tiny.config(even=False)
    tiny.write_root(tmp_path, settings)
    tiny.publish(tmp_path / "PQ5", tiny.make_weights(settings), tiny.pure(bits), order=order)
    convert.convert(Source(tmp_path / "PQ5", "PQ5", order), tmp_path / "out", "small")
    assert digest(tmp_path / "out") == PADDED[bits, order]
