"""Order and table from the data, where the wrong answer would be another model."""

import dataclasses

import numpy as np
import pytest
from pairwise import in_turn, pairwise

from hlwq_mlx.errors import RequestError
from hlwq_mlx.quant import codec
from hlwq_mlx.quant.packing import pack
from hlwq_mlx.quant.tables import CENTROIDS, centroids
from hlwq_mlx.source import detect
from hlwq_mlx.source.coded import CodedTensor

UP = "model.language_model.layers.0.mlp.up_proj.weight"
DOWN = "model.language_model.layers.0.mlp.down_proj.weight"
GATE = UP.replace("up_proj", "gate_proj")


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHT = draw(11, 96, 256)
STRANGER = draw(12, 96, 256)


def coded(bits, order="msb", weight=WEIGHT, table="clip4_100", name=UP, **changes):
    """A tensor whose key style says msb, whatever its bytes are."""
    codes, norms = codec.encode(weight, centroids(table, bits))
    tensor = CodedTensor(
        name=name,
        raw=pack(codes, bits, order),
        norms=norms,
        bits=bits,
        stored_bits=bits,
        in_features=weight.shape[1],
        key_order="msb",
        implied_table="clip4_100",
        own_table=None,
    )
    return dataclasses.replace(tensor, **changes)


def bytes_a_code(bits, table="clip4_100", weight=WEIGHT, name=UP):
    codes, _ = codec.encode(weight, centroids(table, bits))
    return coded(bits, weight=weight, table=table, name=name, raw=codes.reshape(-1), stored_bits=8)


def settle(*tensors, siblings=(), gates=None, order=None, table=None, stated=None):
    by_name = {tensor.name: tensor for tensor in tensors}
    return detect.settle(by_name, siblings, gates or {}, order, table, stated)


def decoded(tensor, reading):
    codes = tensor.rows(0, len(tensor.norms), reading.order)
    return codec.decode(codes, tensor.norms, reading.centroids)


def similarity(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("order", ["msb", "lsb"])
def test_a_histogram_shows_the_order(bits, order):
    tensor = coded(bits, order)
    reading = settle(tensor)[UP]
    assert (reading.order, reading.evidence.split(",")[0]) == (order, f"order {order} by histogram")
    assert similarity(decoded(tensor, reading), WEIGHT) > 0.98
    wrong = dataclasses.replace(reading, order="lsb" if order == "msb" else "msb")
    assert similarity(decoded(tensor, wrong), WEIGHT) < 0.5


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_histogram_says_nothing_where_orders_look_alike(bits):
    assert detect.order_by_histogram(coded(bits, "lsb")) is None


def test_a_histogram_of_few_or_no_codes_decides_nothing():
    assert detect.order_by_histogram(coded(5, "lsb", WEIGHT[:15])) is None
    assert detect.order_by_histogram(coded(5, "lsb", 0 * WEIGHT)) is None


def test_blocks_of_zeros_do_not_hide_the_order():
    weight = WEIGHT.copy()
    weight[:80] = 0
    assert detect.order_by_histogram(coded(5, "lsb", weight)) == "lsb"


@pytest.mark.parametrize(
    ("bits", "order", "sibling"),
    [
        tuple(case.values())
        for case in pairwise(
            bits=[1, 2, 4],
            order=["msb", "lsb"],
            sibling=[(3, "lsb"), (5, "msb"), (6, "lsb"), (8, "msb")],
        )
    ],
)
def test_another_width_shows_the_order(bits, order, sibling):
    tensor = coded(bits, order)
    reading = settle(tensor, siblings=[{UP: coded(*sibling)}])[UP]
    assert reading.order == order
    assert f"order {order} by another width of the same tensor" in reading.evidence
    assert similarity(decoded(tensor, reading), WEIGHT) > 0.75


def test_half_blocks_are_told_by_another_width():
    reading = settle(coded(4, "half"), siblings=[{UP: coded(5)}])[UP]
    assert reading.order == "half"


@pytest.mark.parametrize(
    "sibling",
    [
        coded(4, "lsb"),  # as ambiguous itself
        coded(5, weight=WEIGHT[:, :128]),
        coded(5, weight=STRANGER),
        coded(5, weight=np.vstack([0 * WEIGHT[:64], WEIGHT[64:]])),
        coded(5, weight=0 * WEIGHT),
    ],
    ids=["ambiguous", "of another shape", "of another model", "zero where looked at", "of zeros"],
)
def test_a_sibling_that_shows_nothing_leaves_the_key_style(sibling):
    reading = settle(coded(4, "lsb"), siblings=[{UP: sibling}])[UP]
    assert (reading.order, reading.evidence.split(",")[0]) == ("msb", "order msb by key style")


def test_tensors_of_one_width_share_a_verdict():
    """Only `down` is at hand in another width; `up` is packed by the same hand."""
    readings = settle(
        coded(4, "lsb"), coded(4, "lsb", name=DOWN), siblings=[{DOWN: coded(5, name=DOWN)}]
    )
    assert [reading.order for reading in readings.values()] == ["lsb", "lsb"]


def test_key_styles_and_widths_do_not_share_a_verdict():
    readings = settle(
        coded(5, "lsb"),
        coded(4, "lsb", name=DOWN, key_order="half"),
        coded(2, "lsb", name="a.weight"),
    )
    assert [readings[name].order for name in (UP, DOWN, "a.weight")] == ["lsb", "half", "msb"]


def correlated(rows=1024):
    """up and gate of one layer: independent rows, columns that vary together."""
    return draw(1, 2, rows, 8) @ draw(2, 8, 128) / 2 + draw(3, 2, rows, 128)


@pytest.mark.parametrize(
    ("bits", "order"),
    [(1, "msb"), (1, "lsb"), (2, "msb"), (2, "lsb"), (4, "msb"), (4, "lsb"), (4, "half")],
)
def test_gate_proj_shows_the_order(bits, order):
    up, gate = correlated()
    tensor = coded(bits, order, up)
    reading = settle(tensor, gates={GATE: lambda start, stop: gate[start:stop]})[UP]
    assert reading.order == order
    assert f"order {order} by comparison with gate_proj" in reading.evidence
    assert similarity(decoded(tensor, reading), up) > 0.75


def test_a_gate_that_shares_nothing_leaves_the_key_style():
    for other in (STRANGER, 0 * STRANGER):
        reading = settle(
            coded(4, "lsb"), gates={GATE: lambda start, stop, it=other: it[start:stop]}
        )[UP]
        assert "order msb by key style" in reading.evidence


def test_only_the_first_gates_are_compared():
    asked = []

    def gate(start, stop):
        asked.append(stop)
        return STRANGER

    names = [UP.replace("layers.0", f"layers.{i}") for i in range(9)]
    gates = {name.replace("up_proj", "gate_proj"): gate for name in names}
    settle(*(coded(4, "lsb", name=name) for name in names), gates=gates)
    assert len(asked) == 4


def test_an_order_that_is_asked_for_is_taken():
    up = coded(5, "lsb")
    whole = bytes_a_code(8, name=DOWN)
    readings = settle(up, whole, order="msb")
    assert (readings[UP].order, readings[UP].evidence.split(",")[0]) == (
        "msb",
        "order msb as asked",
    )
    assert "order msb a byte a code" in readings[DOWN].evidence


def test_an_order_that_cannot_be_is_refused():
    message = r"\[--bit-order\] needed msb or lsb for 2 bits a code, got half\. Leave"
    with pytest.raises(RequestError, match=message):
        settle(coded(2), order="half")


def weight_of(blocks):
    return draw(5, blocks // 4, 512)


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.parametrize("table", CENTROIDS)
def test_block_energy_shows_the_table(bits, table):
    tensor = coded(bits, "lsb" if bits < 8 else "msb", weight_of(4096), table)
    reading = settle(tensor)[UP]
    assert reading.table == table
    assert f"table {table} by block energy" in reading.evidence
    np.testing.assert_array_equal(reading.centroids, centroids(table, bits))


def test_block_energy_of_few_blocks_decides_nothing():
    for weight in (weight_of(2000), 0 * weight_of(4096)):
        reading = settle(coded(5, weight=weight, table="inf_100"))[UP]
        assert "table clip4_100 by key style" in reading.evidence


def test_blocks_are_gathered_from_several_tensors():
    weight = weight_of(1280)
    tensors = [coded(5, weight=weight, table="inf_100", name=f"{i}.weight") for i in range(3)]
    assert {reading.table for reading in settle(*tensors).values()} == {"inf_100"}


def test_below_five_bits_a_wider_tensor_of_the_file_decides():
    wide = coded(6, weight=weight_of(4096), table="inf_100")
    readings = settle(coded(2, name=DOWN), wide)
    assert readings[DOWN].table == "inf_100"
    assert "table inf_100 as the wider tensors of the file" in readings[DOWN].evidence


def test_below_five_bits_another_width_of_the_model_decides():
    sibling = coded(6, "lsb", weight_of(4096), "inf_100")
    readings = settle(coded(2, name=DOWN), siblings=[{UP: coded(3)}, {UP: sibling}])
    assert readings[DOWN].table == "inf_100"
    assert "table inf_100 as another width of the model" in readings[DOWN].evidence


def test_an_older_key_style_keeps_its_table():
    tensor = coded(5, weight=weight_of(4096), implied_table="inf_100")
    assert "table inf_100 by key style" in settle(tensor)[UP].evidence


def test_a_table_that_is_asked_for_is_taken_but_not_over_the_files_own():
    own = centroids("converged", 5)
    readings = settle(coded(5), coded(5, name=DOWN, own_table=own), table="inf_100")
    assert (readings[UP].table, readings[DOWN].table) == ("inf_100", "file")
    np.testing.assert_array_equal(readings[UP].centroids, centroids("inf_100", 5))
    np.testing.assert_array_equal(readings[DOWN].centroids, own)


def test_a_table_that_the_file_states_is_taken_but_not_over_what_is_asked_for():
    stated = settle(coded(5, weight=weight_of(4096)), stated="converged")[UP]
    assert stated.evidence.endswith("table converged as the file says")
    np.testing.assert_array_equal(stated.centroids, centroids("converged", 5))
    asked = settle(coded(5), table="inf_100", stated="converged")[UP]
    assert asked.evidence.endswith("table inf_100 as asked")


@pytest.mark.parametrize(("bits", "table"), in_turn(range(1, 9), list(CENTROIDS)))
def test_codes_of_weights_are_not_odd(bits, table):
    for weight in (WEIGHT, WEIGHT[:, :128], np.vstack([0 * WEIGHT, WEIGHT])):
        tensor = coded(bits, weight=weight, table=table)
        assert not detect.is_odd(tensor, settle(tensor, table=table)[UP])


def test_codes_read_wrongly_are_odd():
    swapped = coded(5, "lsb")
    wider = dataclasses.replace(bytes_a_code(4), bits=8)
    for tensor in (swapped, wider):
        assert detect.is_odd(tensor, settle(tensor, order="msb")[UP])


def test_codes_of_strong_means_are_odd_and_too_few_say_nothing():
    tensor = coded(5, weight=WEIGHT + 1)
    assert detect.is_odd(tensor, settle(tensor)[UP])
    few = coded(5, weight=WEIGHT[:15] + 1)
    assert not detect.is_odd(few, settle(few)[UP])
