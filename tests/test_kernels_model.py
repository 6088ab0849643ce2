"""A whole model on the kernels: the demo, in full precision, on the Metal host or a GPU."""

import demo
import mlx.core as mx
import numpy as np
import pytest
from metal_host import Checks, device

from hlwq_mlx import library
from hlwq_mlx.quant import backend, kernels, selftest

QUESTION = [{"role": "user", "content": demo.CARD_QUESTION}]


@pytest.fixture
def launches(monkeypatch):
    """Kernels run in place of stock MLX; their names, as they are launched."""
    names = []
    built = kernels.built

    def counted(make, name):
        names.append(name)
        return built(make, name)

    selftest.is_sound.cache_clear()
    with device(Checks(is_watched=False)):
        monkeypatch.setattr(backend, "has_metal", lambda: True)
        monkeypatch.setattr(backend, "chip", lambda: backend.CHIPS[13])
        monkeypatch.setattr(kernels, "built", counted)
        yield names
    selftest.is_sound.cache_clear()


def test_the_demo_answers_on_the_kernels(launches):
    plain, tokenizer = demo.load()
    model, _ = library.load(demo.folder())
    ids = mx.array([library.prompt_ids(tokenizer, QUESTION)])
    expected, got = np.array(plain(ids)), np.array(model(ids))
    assert set(launches) == {"hadamard", "qmm"}
    # Weights and activations of float16 in the tiles of qmm; seen 7e-5.
    assert np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(expected)
    assert library.generate(model, tokenizer, QUESTION) == "4"
    assert "qmv" in launches
