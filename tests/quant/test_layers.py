import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from pairwise import in_turn

from hlwq_mlx.errors import CheckpointError, ShapeError
from hlwq_mlx.quant import codec, device
from hlwq_mlx.quant.backends import choose
from hlwq_mlx.quant.layers import HLWQEmbedding, HLWQLinear, code_modules, pad_table
from hlwq_mlx.quant.packing import pack_p32
from hlwq_mlx.quant.tables import CENTROIDS, centroids

WIDTHS = range(1, 9)
# |y - W x| / |W x| of float32 sums in the rotated basis against float64 in the plain one.
TOL = 8e-7


def coded(bits, rows, columns, seed=0):
    """The parameters on disk, and the float64 weight they stand for."""
    weight = np.random.default_rng(seed + bits).normal(size=(rows, columns)).astype(np.float32)
    levels = centroids("converged", bits)
    codes, norms = codec.encode(weight, levels)
    parameters = {
        "codes": mx.array(pack_p32(codes, bits)),
        "norms": mx.array(norms),
        "centroids": mx.array(pad_table(levels)),
    }
    return parameters, codec.decode(codes, norms, levels)[:, :columns].astype(np.float64)


def load(layer, parameters):
    layer.load_weights(list(parameters.items()), strict=True)
    return layer


def relative_error(got, expected):
    got = np.array(got.astype(mx.float32)).astype(np.float64)
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def random(*shape, dtype=mx.float32):
    return mx.random.normal(shape, key=mx.random.key(3)).astype(dtype)


@pytest.mark.parametrize(("bits", "columns"), in_turn(WIDTHS, [128, 200, 384]))
def test_linear(bits, columns):
    parameters, weight = coded(bits, 7, columns)
    layer = load(HLWQLinear(columns, 7, bits), parameters)
    x = random(2, 3, columns)
    y = layer(x)
    assert y.shape == (2, 3, 7)
    assert relative_error(y, np.array(x).astype(np.float64) @ weight.T) < TOL


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_linear_keeps_the_dtype_of_x(dtype):
    layer = load(HLWQLinear(200, 7, 5), coded(5, 7, 200)[0])
    x = random(3, 200, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert mx.array_equal(y, layer(x.astype(mx.float32)).astype(dtype))


def test_linear_takes_a_single_row():
    parameters, weight = coded(4, 7, 200)
    x = random(200)
    y = load(HLWQLinear(200, 7, 4), parameters)(x)
    assert y.shape == (7,)
    assert relative_error(y, weight @ np.array(x).astype(np.float64)) < TOL


def test_linear_adds_its_bias():
    parameters, weight = coded(5, 7, 128)
    bias = random(7)
    layer = load(HLWQLinear(128, 7, 5, bias=True), parameters | {"bias": bias})
    x = random(3, 128)
    expected = np.array(x).astype(np.float64) @ weight.T + np.array(bias)
    assert relative_error(layer(x), expected) < TOL


@pytest.mark.parametrize(
    ("bits", "dtype", "tolerance"),
    in_turn(WIDTHS, [mx.float32, mx.bfloat16], [TOL, 4e-3]),
)
def test_embedding(bits, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(device, "activation_dtype", lambda: dtype)
    parameters, weight = coded(bits, 11, 200)
    layer = load(HLWQEmbedding(11, 200, bits), parameters)
    ids = mx.array([[0, 10, 3], [5, 5, 1]])
    rows = layer(ids)
    assert rows.shape == (2, 3, 200)
    assert rows.dtype == dtype
    assert relative_error(rows, weight[np.array(ids)]) < tolerance
    x = random(2, 200)
    logits = layer.as_linear(x)
    assert logits.shape == (2, 11)
    assert relative_error(logits, np.array(x).astype(np.float64) @ weight.T) < TOL


def test_parameters_are_the_arrays_on_disk_before_and_after_the_first_product():
    names = ["centroids", "codes", "norms"]
    for layer in (HLWQLinear(200, 7, 3), HLWQEmbedding(7, 200, 3)):
        load(layer, coded(3, 7, 200)[0])
        assert sorted(name for name, _ in tree_flatten(layer.parameters())) == names
        layer.prepare()
        assert sorted(name for name, _ in tree_flatten(layer.parameters())) == names
        assert sorted(layer.state) == names
        assert layer.codes.shape == (7, 2 * 128 * 3 // 32)
        assert (layer.codes.dtype, layer.norms.dtype) == (mx.uint32, mx.float16)
        assert (layer.centroids.shape, layer.centroids.dtype) == ((8,), mx.float32)


def test_loading_is_strict():
    parameters = coded(5, 7, 128)[0]
    layer = HLWQLinear(128, 7, 5)
    for name in parameters:
        fewer = [(key, value) for key, value in parameters.items() if key != name]
        with pytest.raises(ValueError, match=f"Missing 1 parameters: \n{name}"):
            layer.load_weights(fewer, strict=True)
    with pytest.raises(ValueError, match=r"Expected shape \(7, 20\) but received shape \(7, 16\)"):
        layer.load_weights(list(coded(4, 7, 128)[0].items()), strict=True)


def test_the_fast_path_is_made_once_and_again_for_other_parameters(monkeypatch):
    made = []
    prepare = choose.prepare
    monkeypatch.setattr(choose, "prepare", lambda matrix: made.append(1) or prepare(matrix))
    layer = HLWQLinear(128, 7, 5)
    x = random(3, 128)
    for seed in (0, 100):
        parameters, weight = coded(5, 7, 128, seed)
        load(layer, parameters)
        for _ in range(2):
            assert relative_error(layer(x), np.array(x).astype(np.float64) @ weight.T) < TOL
    assert len(made) == 2
    layer.norms = layer.norms * 2
    assert relative_error(layer(x), np.array(x).astype(np.float64) @ weight.T * 2) < TOL
    assert layer.prepare() is layer.prepare()
    assert len(made) == 3


def test_mlx_lm_does_not_take_a_coded_layer_for_its_own():
    assert not hasattr(HLWQLinear(128, 7, 5), "bits")
    assert HLWQLinear(128, 7, 5).code_bits == 5


def test_shapes_are_checked():
    parameters, _ = coded(5, 7, 200)
    layer = load(HLWQLinear(200, 7, 5), parameters)
    with pytest.raises(ShapeError) as caught:
        layer(mx.zeros((3, 256)))
    assert str(caught.value) == (
        "[layers.HLWQLinear] needed x [..., 200], got (3, 256). Check the order of the layers."
    )
    with pytest.raises(
        ShapeError, match=r"\[layers\.HLWQEmbedding\] needed x \[\.\.\., 200\], got"
    ):
        load(HLWQEmbedding(7, 200, 5), parameters).as_linear(mx.zeros((3, 128)))


def test_pad_table_repeats_the_last_centroid():
    np.testing.assert_array_equal(pad_table(np.array([-1, 1], np.float32)), [-1] + [1] * 7)
    table = centroids("converged", 4)
    np.testing.assert_array_equal(pad_table(table), table)
    assert pad_table(table).dtype == np.float32


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(128, 64, bias=False)
        self.o_proj = nn.Linear(64, 128, bias=True)
        self.norm = nn.RMSNorm(64)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 128)
        self.layers = [Attention() for _ in range(3)]


def manifest(entries):
    return {
        "tensors": {
            f"{path}.weight": {"bits": bits, "table": table}
            for path, (bits, table) in entries.items()
        },
        "tables": {
            f"{table}/{bits}": list(values)
            for table, widths in CENTROIDS.items()
            for bits, values in widths.items()
        },
    }


def test_code_modules():
    model = Model()
    code_modules(
        model,
        manifest(
            {
                "embed_tokens": (6, "converged"),
                "layers.1.q_proj": (2, "clip4_100"),
                "layers.2.o_proj": (5, "inf_100"),
            }
        ),
    )
    embedding, q_proj, o_proj = model.embed_tokens, model.layers[1].q_proj, model.layers[2].o_proj
    assert type(embedding) is HLWQEmbedding
    assert (embedding.num_embeddings, embedding.dims, embedding.code_bits) == (20, 128, 6)
    assert type(q_proj) is HLWQLinear
    assert (q_proj.input_dims, q_proj.output_dims, q_proj.code_bits) == (128, 64, 2)
    assert "bias" not in q_proj
    assert type(o_proj) is HLWQLinear
    assert (o_proj.input_dims, o_proj.output_dims, o_proj.code_bits) == (64, 128, 5)
    assert o_proj.bias.shape == (128,)
    np.testing.assert_array_equal(embedding.centroids, centroids("converged", 6))
    np.testing.assert_array_equal(q_proj.centroids[:4], centroids("clip4_100", 2))
    np.testing.assert_array_equal(q_proj.centroids[4:], [centroids("clip4_100", 2)[-1]] * 4)
    untouched = [model.layers[0].q_proj, model.layers[0].o_proj, model.layers[1].o_proj]
    assert all(type(module) is nn.Linear for module in untouched)
    assert type(model.layers[1].norm) is nn.RMSNorm
    names = {name for name, _ in tree_flatten(model.parameters())}
    assert {"layers.1.q_proj.codes", "layers.2.o_proj.bias", "embed_tokens.norms"} <= names
    assert "layers.1.q_proj.weight" not in names


def test_a_coded_model_loads_strictly_and_runs():
    model = Model()
    code_modules(model, manifest({"layers.0.q_proj": (5, "converged")}))
    parameters, weight = coded(5, 64, 128)
    tensors = dict(tree_flatten(model.parameters()))
    tensors |= {f"layers.0.q_proj.{name}": value for name, value in parameters.items()}
    model.load_weights(list(tensors.items()), strict=True)
    x = random(3, 128)
    expected = np.array(x).astype(np.float64) @ weight.T
    assert relative_error(model.layers[0].q_proj(x), expected) < TOL


def test_code_modules_lists_every_tensor_that_is_no_weight_of_the_model():
    model = Model()
    entries = {
        "layers.3.q_proj": (4, "converged"),
        "layers.0.q_proj": (4, "converged"),
        "layers.0.norm": (4, "converged"),
        "lm_head": (4, "converged"),
    }
    asked = manifest(entries)
    asked["tensors"]["layers.1.q_proj.bias"] = {"bits": 4, "table": "converged"}
    asked["tensors"]["layers.1.q_proj"] = {"bits": 4, "table": "converged"}
    with pytest.raises(CheckpointError) as caught:
        code_modules(model, asked)
    assert str(caught.value) == (
        "[layers.code_modules] needed coded tensors to be weights of linear layers, experts or "
        "embeddings of the model, got layers.0.norm.weight, layers.1.q_proj, layers.1.q_proj.bias, "
        "layers.3.q_proj.weight, lm_head.weight. "
        "Check that the configuration and the manifest belong together."
    )
    assert type(model.layers[0].q_proj) is nn.Linear


def test_code_modules_lists_every_tensor_without_a_table():
    model = Model()
    asked = manifest({"embed_tokens": (4, "converged"), "layers.0.q_proj": (5, "nf")})
    asked["tables"]["converged/4"].pop()
    with pytest.raises(CheckpointError) as caught:
        code_modules(model, asked)
    assert str(caught.value) == (
        "[layers.code_modules] needed a table of 2**bits centroids for every coded tensor, got "
        "none for embed_tokens.weight, layers.0.q_proj.weight. Convert the model again."
    )
