"""The bits that `quantize --fit` chooses, against every other choice."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx import cli, library, quantize
from hlwq_mlx.disk.jsonfile import read_json
from hlwq_mlx.errors import DeviceError
from hlwq_mlx.folder.names import TEXT
from hlwq_mlx.memory.inventory import as_quantized, take
from hlwq_mlx.memory.machine import OLDEST, Machine, mac
from hlwq_mlx.memory.mixture import Choice, choose, loss_of, propose, total
from hlwq_mlx.memory.need import Settings, need
from hlwq_mlx.quant.tables import centroids, error_energy
from hlwq_mlx.source.repository import Source
from hlwq_mlx.source.rules import Unit, class_rule, unit_of, unit_rule
from hlwq_mlx.write import leftovers, loss
from hlwq_mlx.write.quantize import Encoder
from scripts.benchmarks import fit_table

EXPERTS = Unit("experts", 0, "down")


def choices(step_bytes, tensors=(1, 2, 5)):
    """Units of a few tensors, normal weights, from 2 to 6 bits of so many bytes each."""
    energies = {bits: error_energy(centroids("clip4_100", bits)) for bits in range(2, 7)}
    return {
        Unit("mlp", layer): Choice(
            {bits: count * energy for bits, energy in energies.items()},
            {bits: bits * size for bits in energies},
        )
        for layer, (count, size) in enumerate(zip(tensors, step_bytes, strict=True))
    }


def every(made):
    units = list(made)
    for widths in itertools.product(*(made[unit].sizes for unit in units)):
        yield dict(zip(units, widths, strict=True))


@pytest.mark.parametrize("budget", range(60, 190, 10))
def test_no_mixture_within_the_budget_loses_less(budget):
    made = choices((10, 10, 10))
    fitting = [widths for widths in every(made) if total(made, widths) <= budget]
    best = min(loss_of(made, widths) for widths in fitting)
    assert loss_of(made, choose(made, budget)) == best


def test_no_mixture_of_its_size_loses_less():
    """Of every size that is reached bit by bit, best one first."""
    made = choices((3, 7, 19))
    step_bytes = {unit: choice.sizes[3] - choice.sizes[2] for unit, choice in made.items()}
    steps = [
        ((choice.losses[bits] - choice.losses[bits + 1]) / step_bytes[unit], unit)
        for unit, choice in made.items()
        for bits in range(2, 6)
    ]
    reached = dict.fromkeys(made, 2)
    for _, unit in sorted(steps, reverse=True):
        reached[unit] += 1
        size = total(made, reached)
        assert choose(made, size) == reached
        least = min(loss_of(made, each) for each in every(made) if total(made, each) <= size)
        assert loss_of(made, reached) == least


def test_a_budget_below_the_fewest_bits_has_no_mixture():
    made = choices((10, 10, 10))
    assert choose(made, 59) is None
    assert set(choose(made, 60).values()) == {2}
    assert set(choose(made, 10**6).values()) == {6}


def test_units_are_layers_and_stacks():
    named = {
        "layers.3.self_attn.q_proj.weight": ((4, 4), Unit("attention", 3)),
        "layers.11.experts.gate_up_proj.weight": ((2, 4, 4), Unit("experts", 11, "gate_up")),
        "layers.11.experts.down_proj": ((2, 4, 4), Unit("experts", 11, "down")),
        "embed_tokens.weight": ((4, 4), Unit("embedding")),
        "per_layer_model_projection.weight": ((4, 4), Unit("ple")),
        "layers.3.self_attn.q_norm.weight": ((4,), None),
    }
    for name, (shape, unit) in named.items():
        assert unit_of(TEXT + name, shape) == unit
    tower = "model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight"
    assert unit_of(tower, (4, 4)) is None
    rule = unit_rule({EXPERTS: 3})
    assert rule(f"{TEXT}layers.0.experts.down_proj", (2, 4, 4)) == 3
    assert rule(f"{TEXT}layers.1.experts.down_proj", (2, 4, 4)) is None


@pytest.mark.parametrize("table", ["clip4_100", "converged"])
def test_losses_of_normal_weights_are_those_of_the_table(table, tmp_path):
    rng = np.random.default_rng(0)
    shapes = {
        f"{TEXT}layers.0.experts.down_proj": (8, 640, 256),  # more than a sample
        f"{TEXT}layers.0.mlp.up_proj.weight": (512, 256),
        f"{TEXT}layers.0.mlp.down_proj.weight": (256, 512),
        "model.vision_tower.layers.0.mlp.up_proj.linear.weight": (256, 256),
    }
    weights = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), {name: mx.array(w) for name, w in weights.items()}
    )
    measured = loss.measure(Source(tmp_path).plain, Encoder(table))
    computed = loss.by_table(shapes, table)
    assert measured.keys() == computed.keys() == {EXPERTS, Unit("mlp", 0)}
    for unit, lost in computed.items():
        for bits in range(1, 9):
            assert measured[unit][bits] == pytest.approx(lost[bits], rel=0.1)


def test_a_sample_is_of_all_parts_of_a_tensor(tmp_path):
    rows = np.arange(4096, dtype=np.float32).repeat(256).reshape(4096, 256)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"w": mx.array(rows)})
    taken = loss.sample(Source(tmp_path).plain["w"])[:, 0]
    assert len(taken) == 1024 and len(np.unique(taken)) == 1024
    assert (taken.min(), taken.max()) == (0, 4095)
    assert np.abs(np.histogram(taken, 8, (0, 4096))[0] - 128).max() == 0


@pytest.mark.parametrize("ram", [16, 24, 32])
def test_26b_a4b_fills_the_mac_that_it_is_chosen_for(ram):
    found = fit_table.plain("26B-A4B")
    losses = loss.by_table({each.name: each.shape for each in found.live}, "clip4_100")
    settings, machine = Settings(8192, has_towers=True), mac(ram, OLDEST)
    mixture = propose(found, losses, settings, machine)
    assert mixture.needed == need(mixture.inventory, settings, machine)
    assert 0 <= machine.limit_bytes - mixture.needed.total < 40e6  # a bit of one layer's experts
    routers = {bits for unit, bits in mixture.widths.items() if unit.kind == "router"}
    assert routers == {8}
    uniform = fit_table.by_class(mixture.choices, dict.fromkeys(fit_table.KINDS, 2))
    assert loss_of(mixture.choices, mixture.widths) < loss_of(mixture.choices, uniform) / 5


def test_what_fits_at_no_width_is_refused():
    found = fit_table.plain("31B")
    losses = loss.by_table({each.name: each.shape for each in found.live}, "clip4_100")
    with pytest.raises(
        DeviceError, match=r"\[fit\] needed 7\.\d\d GB at the fewest bits .* Choose"
    ):
        propose(found, losses, Settings(8192), mac(8, OLDEST))


def test_a_folder_is_coded_as_it_was_proposed(tmp_path, monkeypatch, capsys):
    """Of the demo, for a machine so small that not every unit gets the same bits."""
    found = take(str(library.DEMO), "bf16")
    losses = loss.measure(Source(library.DEMO).plain, Encoder(quantize.TABLES[quantize.MLX]))
    settings = Settings(512, has_towers=True)
    eight = class_rule(dict.fromkeys(("attention", "embedding", "mlp", "ple"), 8))
    everything = need(as_quantized(found, eight, leftovers.AUTO), settings, mac(16, 15))
    kept = Machine("", 1 << 34, (everything.total - everything.spare - 700_000), has_metal=True)
    limit = (kept.limit_bytes + kept.in_flight_bytes) * 20 // 19  # of which a 20th is kept
    small = Machine("a small Mac", 1 << 34, limit, has_metal=True)
    monkeypatch.setattr("hlwq_mlx.memory.machine.mac", lambda ram, release: small)
    arguments = ["--model", str(library.DEMO), "--fit", "16GB", "--context", "512"]
    assert cli.run(quantize.main, arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["tensors", "bytes", "loss", "bits"]
    assert printed[-1].endswith("on a small Mac")
    output = tmp_path / "out"
    assert cli.run(quantize.main, [*arguments, "--output", str(output)]) == 0
    mixture = propose(found, losses, settings, small)
    assert len(set(mixture.widths.values())) > 2
    manifest = read_json(output / "config.json")["quantization_config"]
    coded = {
        name: entry["bits"]
        for name, entry in manifest["tensors"].items()
        if not name.startswith(("model.vision", "model.audio"))
    }
    rule = unit_rule(mixture.widths)
    assert coded == {
        each.name: rule(each.name, each.shape)
        for each in found.live
        if unit_of(each.name, each.shape)
    }
    made = need(take(str(output)), settings, small)
    assert made.text == mixture.needed.text
    model, tokenizer = library.load(output)
    assert library.generate(model, tokenizer, [{"role": "user", "content": "Hello!"}])


def test_what_cannot_be_chosen_for_ends_in_one_line(tmp_path, capsys):
    coded = ["--model", str(library.DEMO / "PQ5"), "--fit", "16GB"]
    assert cli.run(quantize.main, coded) == 2
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        quantize.main(["--model", str(library.DEMO), "--variant", "PQ5"])
    assert "required: --output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        quantize.main(["--model", str(library.DEMO), "--fit", "much"])
    assert "argument --fit" in capsys.readouterr().err


def test_the_head_counts_as_much_as_all_layers():
    units = [Unit("attention", 0)] * 4 + [Unit("mlp", 0)] * 3 + [EXPERTS, Unit("embedding")]
    weights = loss.weights_of(units)
    assert weights[Unit("attention", 0)] == loss.ATTENTION_WEIGHT
    assert weights[Unit("mlp", 0)] == weights[EXPERTS] == 1
    assert weights[Unit("embedding")] == 4 * loss.ATTENTION_WEIGHT + 4
