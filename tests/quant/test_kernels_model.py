"""A whole model on the kernels: the demo, in full precision, on the Metal host or a GPU."""

from collections import Counter
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest
from metal_host import Checks, device

from hlwq_mlx import cli, library, quantize
from hlwq_mlx.engine.answer import generate_tokens
from hlwq_mlx.engine.request import Prepared, Request
from hlwq_mlx.quant import device as computer
from hlwq_mlx.quant import fuse, kernels, selftest
from hlwq_mlx.quant.backends.base import Product
from hlwq_mlx.quant.chips import chips
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert

QUESTION = [{"role": "user", "content": "Tell me a story about a cat."}]
TOKENS = 6
LAYERS, MAKING = 7, 5  # layers, and those of them that make keys and values

# Launches of a token by variant, apart and fused. Apart, each coded matrix costs one, and so does
# the rotation of an input, which several may share. Fused, an input is rotated where it is made,
# but for o_proj, for the first layer that makes keys and values and the first that shares them, and
# for down_proj where gate is coded as up is and so one matrix with it. PQ5 leaves gate_proj.
ALL = "mlp=4,attention=4,ple=4,embedding=4"
LAUNCHES = {
    "PQ5": (
        {"hadamard": 4 * LAYERS, "qmv": 4 * LAYERS + 2 * MAKING},
        {
            "hadamard": LAYERS + 2,
            "qmv": 4 * LAYERS,
            "residual_norm": 3 * LAYERS,
            "gelu_mul": 2 * LAYERS,
        },
    ),
    "mlp=4,attention=4": (
        {"hadamard": 4 * LAYERS, "qmv": 5 * LAYERS + 2 * MAKING},
        {
            "hadamard": 2 * LAYERS + 2,
            "qmv": 4 * LAYERS,
            "residual_norm": 3 * LAYERS,
            "gelu_mul": LAYERS,
        },
    ),
    # The two matrices outside the layers, and the embedding.
    ALL: (
        {"hadamard": 6 * LAYERS + 2, "qmv": 7 * LAYERS + 2 * MAKING + 2, "embed": 1},
        {
            "hadamard": 2 * LAYERS + 2 + 2,
            "qmv": 6 * LAYERS + 2,
            "residual_norm": 3 * LAYERS,
            "gelu_mul": LAYERS,
            "embed": 1,
        },
    ),
}


# What lies between the first and the last of them is for `scripts/check --all`.
EACH = [
    pytest.param(name, marks=[] if name in ("PQ5", ALL) else pytest.mark.slow) for name in LAUNCHES
]


@pytest.fixture(scope="module", params=EACH)
def variant(request, tmp_path_factory):
    """The name of a variant of the demo and its converted folder, leftovers kept."""
    folder = tmp_path_factory.mktemp("mixture") / "model"
    if "=" not in request.param:
        convert.convert(Source(library.DEMO / request.param, request.param), folder)
        return request.param, folder
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

    selftest.forget()
    with device(checks), pytest.MonkeyPatch.context() as patch:
        patch.setattr(computer, "has_metal", lambda: True)
        patch.setattr(computer, "chip", lambda: chips()["M1"])
        patch.setattr(kernels, "built", counted)
        patch.setattr(Product, "is_lazy", mx.metal.is_available())  # the host computes at once
        yield names
    selftest.forget()


def answer(model, ids):
    """The greedy tokens of an answer, after a prefill in two chunks."""
    made = generate_tokens(model, Request(Prepared(ids), max_tokens=TOKENS, prefill_step=12))
    return [each.token for each in made]


def test_the_demo_gives_the_same_tokens_on_the_kernels(variant):
    name, folder = variant
    plain, tokenizer = library.load(folder)
    ids = library.prompt_ids(tokenizer, QUESTION)
    expected, logits = answer(plain, ids), np.array(plain(mx.array([ids])))
    with on_kernels(Checks()) as launches:
        model, _ = library.load(folder)
        launches.clear()  # those of the trials
        got, on_kernels_logits = answer(model, ids), np.array(model(mx.array([ids])))
    _, fused = LAUNCHES[name]
    assert set(launches) == {"qmm", *fused}
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
        launches.clear()  # those of the trials: none are left for the first token
        mx.eval(model(mx.array([[5]]), cache))
    assert Counter(launches) == LAUNCHES[name][is_fused]
