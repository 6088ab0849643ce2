"""The benchmarks' counts, and that the timings time what they say."""

import json

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.quant import kernels
from hlwq_mlx.source import rules
from scripts.benchmarks import bench, launches, m1, row_reads

LAYERS, OWN_KV = 42, 24


@pytest.fixture(scope="module")
def shapes():
    return launches.plain_shapes(launches.e4b_config())


@pytest.fixture(scope="module")
def pq5():
    return launches.count_ours(rules.variant_rule("PQ5")[1])


def gigabytes(cost, shapes):
    return (m1.weight_bytes(cost, shapes) + m1.kv_bytes(1024)) / 1e9


# An older count by hand, of GB a token at T=1024.
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (rules.variant_rule("PQ2")[1], 4.53),
        (rules.variant_rule("PQ5")[1], 5.58),
        (rules.variant_rule("PQ8")[1], 6.62),
        (m1.full(), 3.14),
    ],
)
def test_bytes_agree_with_a_count_by_hand(rule, expected, shapes):
    assert gigabytes(m1.hlwq(rule), shapes) == pytest.approx(expected, rel=5e-3)


def test_parts_of_the_bytes(shapes):
    assert m1.kv_bytes(512) == 2 * 2 * 2 * 512 * (35 * 256 + 7 * 512)
    assert m1.kv_bytes(8192) - m1.kv_bytes(1024) == 2 * 2 * 2 * 512 * 7 * (8192 - 1024)
    assert m1.ple_row_bytes() == 21504
    weights = sum(mx.zeros(shape).size for shape in shapes.values() if len(shape) == 2)
    assert weights == pytest.approx(3.973e9 + 0.671e9, rel=1e-3)


def test_launches_of_a_token(pq5):
    assert pq5["scaled_dot_product_attention"] == LAYERS
    assert pq5["rope"] == LAYERS + OWN_KV
    assert pq5["SliceUpdate"] == 2 * OWN_KV
    # q|k|v, or q where k and v are another layer's; o, up and down.
    assert pq5["hlwq_qmv"] == 4 * LAYERS
    # gate and the two of the per-layer input, its projection and the head.
    assert pq5["Matmul"] == 3 * LAYERS + 2
    # Each part of a layer ends in one, and each gate is one.
    assert pq5["hlwq_residual_norm"] == 3 * LAYERS
    assert pq5["hlwq_gelu_mul"] == 2 * LAYERS
    # o's input, and that of the first layers that make keys and values and that share them.
    assert pq5["hlwq_hadamard"] == LAYERS + 2
    assert pq5["Compiled"] == 0
    assert "Transpose" not in pq5


def test_small_widths_take_the_kernels_that_e4b_s_do():
    real = launches.e4b_config()["text_config"]
    for key in ("hidden_size", "hidden_size_per_layer_input", "intermediate_size"):
        assert kernels.can_rotate(launches.SMALL[key]) and kernels.can_rotate(real[key])
    assert kernels.can_residual_norm(launches.SMALL["hidden_size"]) and kernels.can_residual_norm(
        real["hidden_size"]
    )


def test_a_launch_of_what_is_fused_is_saved(pq5):
    fused = launches.count_ours(rules.variant_rule("PQ2-Mixed")[1])
    assert launches.total(fused) == launches.total(pq5) - LAYERS


def test_mlx_lm_is_counted_the_same_way():
    plain = launches.count_stock(None)
    assert plain["Matmul"] == 7 * LAYERS + 2 - 2 * (LAYERS - OWN_KV) + 2 * LAYERS
    assert 25 < launches.total(plain) / LAYERS < 36


def test_nothing_stays_replaced_after_counting(pq5):
    assert launches.device.activation_dtype() == mx.float32
    assert mx.fast.rms_norm(mx.ones((2, 4)), None, 1e-6).sum().item() == pytest.approx(8)


def test_what_is_timed_agrees_with_its_twin():
    bench.check_paths()
    products = bench.products(64, 256)
    assert list(products)[:3] == ["mx.matmul float32", "MLX affine 4", "MLX affine 8"]
    assert {product(mx.ones((3, 256))).shape for product in products.values()} == {(3, 64)}


def test_ops_end_with_their_rows(capsys):
    found = bench.bench_ops({"small": (256, 64)}, rounds=1)
    assert all(row["ms"] > 0 for row in found["rows"])
    first, _, base, *others = capsys.readouterr().out.splitlines()
    assert first == "| CPU ms (ratio) | small 256 x 64, 1 row | small 256 x 64, 16 rows |"
    assert base.startswith("| mx.matmul float32 |")
    assert base.count("(1.00)") == 2
    assert others[-1].startswith("| HLWQ 8, Affine |")


def test_model_times_every_contender(capsys):
    config = bench.decoder_config(2, hidden_size=128, intermediate_size=256, head_dim=64)
    found = bench.bench_model(config, rounds=1)
    contenders = [row["contender"] for row in found["rows"] if row["case"] == "1 token"]
    assert contenders == [
        *("mlx-lm float32", "mlx-lm affine 4", "mlx-lm affine 8"),
        *("hlwq_mlx, 4 bits", "hlwq_mlx, 5 bits"),
    ]
    assert "2 of 42 layers" in capsys.readouterr().out


def test_rows_are_the_same_from_disk_and_from_memory(tmp_path):
    readers = row_reads.contenders(tmp_path, 40)
    ids = np.array([39, 0, 39])
    wanted = readers["row store, 16 bits"][1]()(ids)
    for name in ("memory map, 16 bits", "the same, told ahead", "resident, 16 bits"):
        assert mx.array_equal(readers[name][1]()(ids).view(mx.uint16), wanted.view(mx.uint16))
    assert readers["row store, 8 bits"][1]()(ids).shape == wanted.shape


def test_rows_print_every_contender(capsys):
    found = row_reads.bench_rows(40, rounds=1)
    assert all(row["ms"] > 0 for row in found["rows"]) and found["graph_ms"] > 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(" | ")[1:4] == ["a token, cold", "a token, warm", "a token, again"]
    assert len([line for line in lines if line.startswith("| ")]) == 1 + 6


def test_m1_prints_tables_and_a_line_of_json(monkeypatch, capsys, pq5):
    few = {"mlx-lm, 16 bits", "mlx-lm, affine", "ours, PQ5", "ours, PQ2-Mixed", "ours, all coded"}
    monkeypatch.setattr(m1, "count_launches", lambda: dict.fromkeys(sorted(few), pq5))
    monkeypatch.setattr(launches, "count_passes", lambda rule, most: [800] * most)
    monkeypatch.setattr(launches, "count_larger_passes", lambda name, most: [1400] * most)
    bench.main(["m1"])
    *text, last = capsys.readouterr().out.splitlines()
    assert text[0].startswith("A model, not a measurement")
    rows = {row["name"]: row for row in json.loads(last)["rows"]}
    assert set(rules.VARIANTS) < set(rows)
    assert rows["PQ5"]["gb"][0] == pytest.approx(5.56, abs=0.01)
    assert rows["GGUF Q8_0 (8.5 bits)"]["launches"] is None
