"""A row's result has the same bits alone and in company: products, what lies between them, models.

Bit for bit on a CPU for every backend and width, and for the kernels in the Metal host. Where a
backend sums in another order from some number of rows on, the rows below keep their bits.
"""

from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest
from metal_host import Checks, device
from mlx import nn

from hlwq_mlx.gemma4.caches import Caching
from hlwq_mlx.gemma4.model import Resources
from hlwq_mlx.quant import codec, fuse, kernels, ops, selftest
from hlwq_mlx.quant import device as computer
from hlwq_mlx.quant.activation import Activation
from hlwq_mlx.quant.backends import affine, choose
from hlwq_mlx.quant.backends.affine import Affine
from hlwq_mlx.quant.backends.base import FEW_ROWS, GateUp
from hlwq_mlx.quant.backends.dense import Dense
from hlwq_mlx.quant.chips import chips
from hlwq_mlx.quant.layers import ExpertLinear, Linear, pad_table
from hlwq_mlx.quant.matrix import CodedMatrix
from hlwq_mlx.quant.tables import centroids
from scripts.benchmarks import launches

WIDTHS = range(1, 9)
F32 = mx.float32
DTYPES = (F32, mx.float16, mx.bfloat16)
UNWATCHED = Checks(is_watched=False)


def matrix(bits, N=70, K=512, table="clip4_100"):
    """Random codes; any words are codes of some matrix."""
    words, norms = mx.random.split(mx.random.key(bits))
    return CodedMatrix(
        mx.random.randint(0, 1 << 16, (N, K * bits // 32), mx.uint32, words) * 65521,
        mx.random.uniform(0.5, 1.5, (N, K // 128), mx.float16, norms),
        mx.array(pad_table(centroids(table, bits))),
        bits,
    )


def rows(count, K=512, dtype=F32):
    return mx.random.normal((count, K), key=mx.random.key(count)).astype(dtype)


def bits_of(array):
    """An array's bits, for NaN and the sign of zero count, too."""
    return np.array(array.astype(mx.float32)).view(np.uint32)


def assert_rows_are_alone(compute, *xs, counts=range(2, FEW_ROWS + 1)):
    """Compare every row of `compute` on the first rows of xs, in three shapes, with it alone."""
    alone = [bits_of(compute(*(x[i : i + 1] for x in xs))[0]) for i in range(max(counts))]
    for count in counts:
        first = [x[:count] for x in xs]
        for got in (
            compute(*first),
            compute(*(x[:, None] for x in first))[:, 0],  # a batch of one token each
            compute(*(x[None] for x in first))[0],  # tokens of one sequence
        ):
            for i, row in enumerate(bits_of(got)):
                np.testing.assert_array_equal(row, alone[i], f"row {i} of {count}")


@pytest.mark.parametrize("make", [Dense, Affine])
@pytest.mark.parametrize("bits", WIDTHS)
def test_products_of_stock_mlx(bits, make):
    for table, dtype in (("clip4_100", F32), ("converged", DTYPES[bits % 3])):
        product = make(matrix(bits, table=table))
        assert_rows_are_alone(lambda x, p=product: p(Activation(x)), rows(8, dtype=dtype))
    gate_up = GateUp(product)
    assert_rows_are_alone(lambda x: gate_up(Activation(x)), rows(8), counts=(3, 8))


def test_products_of_a_prompt():
    """Up to where an image is decoded; beyond it, sums are taken in another order."""
    image, x = Affine(matrix(5)), rows(affine.DECODED_ROWS)
    counts = (33, affine.DECODED_ROWS - 1)
    assert_rows_are_alone(lambda x: image(Activation(x)), x, counts=counts)
    many, alone = image(Activation(x)), image(Activation(x[:1]))
    assert mx.allclose(many[:1], alone, rtol=1e-4, atol=1e-4)
    dense = Dense(matrix(5))
    assert_rows_are_alone(lambda x: dense(Activation(x)), x, counts=(33, affine.DECODED_ROWS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_that_are_not_coded(dtype):
    layer = Linear(512, 70, bias=False)
    layer.set_dtype(dtype)
    many = choose.steady_rows()
    assert_rows_are_alone(layer, rows(many, dtype=dtype), counts=(2, 3, 8, many))


def test_operations_between_products():
    """In shapes of one rank, for which MLX compiles them once."""
    x, norm = rows(8), nn.RMSNorm(512)
    for compute in (
        lambda x: ops.gelu_mul(x, 2 * x),
        lambda x: ops.residual_norm(x, 2 * x, norm, norm, mx.array([0.7]))[1].plain,
    ):
        alone = mx.concatenate([compute(x[i : i + 1]) for i in range(8)])
        for count in (2, 3, 8):
            np.testing.assert_array_equal(bits_of(compute(x[:count])), bits_of(alone[:count]))


@contextmanager
def on_metal_host():
    """Kernels run in the Metal host as on an M1, without trials."""
    with device(UNWATCHED), pytest.MonkeyPatch.context() as patch:
        patch.setattr(computer, "has_metal", lambda: True)
        patch.setattr(computer, "chip", lambda: chips()["M1"])
        patch.setattr(selftest, "passes", lambda *case: True)
        patch.setattr(selftest, "passes_on", lambda *case: True)
        yield


# The tiles of 1 to 8 rows where N is large, which are the most unlike each other.
TALL = 1024


@pytest.mark.skipif(mx.metal.is_available(), reason="a GPU is asked by tests of its own")
@pytest.mark.parametrize("bits", WIDTHS)
def test_few_rows_on_kernels(bits):
    tall = matrix(bits, N=TALL, K=128)
    x = rows(8, 128, mx.float16)
    with on_metal_host():
        product = choose.prepare(tall)
        alone = [bits_of(product(Activation(x[i : i + 1]))[0]) for i in range(FEW_ROWS)]
        for count in range(2, FEW_ROWS + 1):
            got = bits_of(product(Activation(x[:count])))
            np.testing.assert_array_equal(got, alone[:count], f"{count} rows")


@pytest.mark.skipif(mx.metal.is_available(), reason="a GPU is asked by tests of its own")
def test_other_kernels():
    few, x = rows(8, 512, mx.float16), rows(40, 512, mx.float16)
    weight = mx.ones(512, mx.float16) * 1.5
    scale = mx.array([0.7], mx.float16)

    def rotated_norm(*arguments):
        return kernels.residual_norm(*arguments, 1e-6, weight)[2]

    with on_metal_host():
        gate_up, embed = choose.prepare_gate_up(matrix(4)), choose.prepare_rows(matrix(4))
        for compute in (
            lambda x: gate_up(Activation(x)),
            lambda x: kernels.hadamard(x),
            lambda x: kernels.gelu_mul(x, x * 2)[1].reshape(x.shape),
            lambda x: rotated_norm(x, x * 2, weight, scale).reshape(x.shape),
        ):
            assert_rows_are_alone(compute, few, counts=(2, 3, 5, 8))
        assert_rows_are_alone(lambda ids: embed(ids.astype(mx.int32)), mx.arange(8) * 7.0)
        # Rows of qmm have the same bits among each other.
        product = choose.prepare(matrix(4))
        nine, forty = (product(Activation(x[:count])) for count in (9, 40))
        np.testing.assert_array_equal(bits_of(nine), bits_of(forty[:9]))


@pytest.mark.skipif(mx.metal.is_available(), reason="a GPU is asked by tests of its own")
def test_experts_on_kernels():
    """Any number of rows, in the order of the twin's numbers."""
    count, x = 7, rows(9, 512, mx.float16)
    experts = mx.random.randint(0, count, (9, 3), key=mx.random.key(2)).astype(mx.uint32)
    with on_metal_host():
        product = choose.prepare_experts(matrix(3), count)
        assert_rows_are_alone(lambda x, e: product(Activation(x), e), x, experts, counts=(2, 9))
        got = product(Activation(x), experts)
        # Beyond 8 rows an expert sums are in another order; rows have the same bits there too.
        many, chosen = mx.tile(x, (3, 1)), mx.tile(experts, (3, 1))
        sums = product(Activation(many), chosen)
        turned = product(Activation(many[::-1]), chosen[::-1])
        np.testing.assert_array_equal(bits_of(sums), bits_of(turned[::-1]))
        assert not np.array_equal(bits_of(sums[:9]), bits_of(got))
    expected = product_of_twins(x, experts, matrix(3), count)
    for each in (got, sums[:9]):
        assert mx.linalg.norm(each - expected).item() < 2e-3 * mx.linalg.norm(expected).item()


def product_of_twins(x, experts, stack, count):
    return codec.gather_qmv(codec.hadamard(x.astype(F32)), experts, stack, count)


WINDOW = 32
SMALL = launches.SMALL | {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
}
EXPERTS = {"enable_moe_block": True, "num_experts": 5, "top_k_experts": 2}
EXPERTS |= {"moe_intermediate_size": 72}
# Bits of every matrix, up to how many weights it is kept dense, and what the config has besides.
BACKENDS = {
    "not coded": (None, 0, {}),
    "dense": (5, 1 << 22, {}),
    "affine": (5, 0, {}),
    "experts not coded": (None, 0, EXPERTS),
    "experts affine": (5, 0, EXPERTS),
}


@pytest.fixture(params=BACKENDS)
def tiny(request, monkeypatch):
    bits, dense_weights, changes = BACKENDS[request.param]
    monkeypatch.setattr(choose, "DENSE_WEIGHTS", dense_weights)
    return make_model(bits, **changes)


def make_model(bits, **changes):
    """A model of four small layers with random weights and random per-layer rows."""

    def rule(name, shape):
        return bits if len(shape) > 1 else None

    model = launches.coded_model(launches.e4b_config(**SMALL, **changes), rule, F32)
    for module in model.modules():
        if isinstance(module, ExpertLinear):
            module.weight = mx.random.normal(module.weight.shape, scale=0.2)
    text = model.args.text_config
    width = text.num_hidden_layers * text.hidden_size_per_layer_input
    table = mx.random.normal((text.vocab_size, width), key=mx.random.key(3))
    model.resources = Resources(lambda ids: table[mx.array(ids)])
    return model


def token_ids(count, length):
    return mx.random.randint(1, SMALL["vocab_size"] - 1, (count, length), key=mx.random.key(count))


def in_steps(model, ids, lengths, cache=None):
    """The logits of all positions, by one call for each length."""
    cache = model.make_cache() if cache is None else cache
    ends = np.cumsum(lengths).tolist()
    parts = [model(ids[:, end - n : end], cache) for n, end in zip(lengths, ends, strict=True)]
    return bits_of(mx.concatenate(parts, axis=1))


@pytest.mark.parametrize("count", [2, 3, 16])
def test_sequences_in_one_batch(tiny, count):
    """A prompt longer than the window, and steps of one token."""
    ids, lengths = token_ids(count, WINDOW + 6), [WINDOW + 2, 1, 1, 1, 1]
    together = in_steps(tiny, ids, lengths)
    for i in {*range(0, count, 5), count - 1}:
        np.testing.assert_array_equal(together[i], in_steps(tiny, ids[i : i + 1], lengths)[0])


@pytest.mark.parametrize("count", [2, 5, 8])
def test_tokens_of_one_pass(tiny, count):
    """As checking drafted tokens needs: their logits are those of steps of one token each."""
    ids = token_ids(1, 9 + count)
    together, one_by_one = (in_steps(tiny, ids, [9, *n]) for n in ([count], [1] * count))
    np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.parametrize("count", [2, 8])
def test_tokens_of_one_pass_past_the_window(tiny, count):
    """A sum over keys is taken in their order, so the order has to be that of a longer pass."""
    ids = token_ids(1, WINDOW + 5 + count)
    together, one_by_one = (
        in_steps(tiny, ids, [WINDOW + 5, *n], tiny.make_cache()) for n in ([count], [1] * count)
    )
    np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.parametrize("count", [2, 8])
def test_coded_keys_and_values(count):
    model, caching = make_model(5), Caching(kv_bits=8)
    ids, lengths = token_ids(count, 20), [16, 1, 1, 1, 1]
    together = in_steps(model, ids, lengths, model.make_cache(caching))
    for i in range(count):
        alone = in_steps(model, ids[i : i + 1], lengths, model.make_cache(caching))
        np.testing.assert_array_equal(together[i], alone[0])
    ids = token_ids(1, 9 + count)
    together, one_by_one = (
        in_steps(model, ids, [9, *n], model.make_cache(caching)) for n in ([count], [1] * count)
    )
    np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.skipif(mx.metal.is_available(), reason="a GPU is asked by tests of its own")
def test_a_fused_batch_equals_single_rows_on_kernels():
    """Batch and pass on the kernels of an M1; what is not ours runs on the CPU."""
    with on_metal_host():
        model = make_model(4)
        for block in fuse.blocks(model):
            fuse.fuse(block)
        ids, lengths = token_ids(3, 12), [10, 1, 1]
        together = in_steps(model, ids, lengths)
        for i in range(3):
            np.testing.assert_array_equal(together[i], in_steps(model, ids[i : i + 1], lengths)[0])
        together, one_by_one = (in_steps(model, ids[:1], [9, *n]) for n in ([3], [1] * 3))
        np.testing.assert_array_equal(together, one_by_one)
