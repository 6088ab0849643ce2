"""A whole model on the kernels: the demo, in full precision, on the Metal host or a GPU."""

from collections import Counter
from contextlib import contextmanager

import demo
import mlx.core as mx
import numpy as np
import pytest
from metal_host import Checks, device

from hlwq_mlx import cli, library, quantize
from hlwq_mlx.engine.decode import generate_tokens
from hlwq_mlx.engine.sampling import Sampling
from hlwq_mlx.quant import backend, fuse, kernels, selftest

QUESTION = [{"role": "user", "content": "Tell me a story about a cat."}]
TOKENS = 6
LAYERS, MAKING = 7, 5  # layers, and those of them that make keys and values

# Coded matrices, apart and fused, by variant. PQ5 leaves gate_proj as it is; in the mixture gate is
# coded as up is. Each costs two launches a token, its own and that of its input's rotation.
PRODUCTS = {
    "PQ5": (4 * LAYERS + 2 * MAKING, 4 * LAYERS),
    "mlp=4,attention=4": (5 * LAYERS + 2 * MAKING, 4 * LAYERS),
}


@pytest.fixture(scope="module", params=PRODUCTS)
def variant(request, tmp_path_factory):
    """The name of a variant of the demo and its converted folder."""
    if "=" not in request.param:
        return request.param, demo.folder(request.param)
    folder = tmp_path_factory.mktemp("mixture") / "model"
    command = ["--model", str(library.DEMO), "--bits", request.param, "--output", str(folder)]
    assert cli.run(quantize.main, command) == 0
    return request.param, folder


@contextmanager
def on_kernels(checks):
    """Run kernels in place of stock MLX; gives their names, as they are launched."""
    names = []
    built = kernels.built

    def counted(make, name):
        names.append(name)
        return built(make, name)

    selftest.is_sound.cache_clear()
    with device(checks), pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "has_metal", lambda: True)
        patch.setattr(backend, "chip", lambda: backend.CHIPS[13])
        patch.setattr(kernels, "built", counted)
        yield names
    selftest.is_sound.cache_clear()


def answer(model, ids):
    """The greedy tokens of an answer, after a prefill in two chunks."""
    made = generate_tokens(model, ids, Sampling(), max_tokens=TOKENS, prefill_step=12)
    return [token for token, _ in made]


def test_the_demo_gives_the_same_tokens_on_the_kernels(variant):
    _, folder = variant
    plain, tokenizer = library.load(folder)
    ids = library.prompt_ids(tokenizer, QUESTION)
    expected, logits = answer(plain, ids), np.array(plain(mx.array([ids])))
    with on_kernels(Checks()) as launches:
        model, _ = library.load(folder)
        got, on_kernels_logits = answer(model, ids), np.array(model(mx.array([ids])))
    assert {"hadamard", "qmv", "qmm"} == set(launches)
    assert got == expected
    # Weights and activations of float16 in the tiles of qmm; seen 7e-5.
    assert np.linalg.norm(on_kernels_logits - logits) < 1e-3 * np.linalg.norm(logits)


@pytest.mark.parametrize("is_fused", [False, True], ids=["apart", "fused"])
def test_launches_of_a_decoded_token(variant, is_fused, monkeypatch):
    name, folder = variant
    if not is_fused:
        monkeypatch.setattr(fuse, "blocks", lambda model: [])
    with on_kernels(Checks(is_watched=False)) as launches:
        model, _ = library.load(folder)
        cache = model.make_cache()
        mx.eval(model(mx.array([[5]]), cache))  # tries the kernels first
        launches.clear()
        mx.eval(model(mx.array([[5]]), cache))
    products = PRODUCTS[name][is_fused]
    assert Counter(launches) == {"hadamard": products, "qmv": products}
