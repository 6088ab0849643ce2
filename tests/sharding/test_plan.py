"""The plan is a function of tensors, machines and link: no network, nothing loaded."""

from dataclasses import replace

import pytest

from hlwq_mlx import doctor
from hlwq_mlx.errors import DeviceError, RequestError
from hlwq_mlx.library import DEMO
from hlwq_mlx.memory import inventory
from hlwq_mlx.memory.need import Settings
from hlwq_mlx.sharding import plan
from hlwq_mlx.sharding.shares import WHOLE, Run
from hlwq_mlx.sharding.speed import CHIPS, Link, Mac, link_of, mac_of
from scripts.sharding import speed_table
from scripts.sharding.speed_table import MODELS

GB = 1e9
SETTINGS = Settings(8192)


@pytest.fixture(scope="module")
def e4b():
    return inventory.as_converted(inventory.of_variant("PQ5"), "auto")


def macs(*gb, chip="M1"):
    return [Mac(f"{chip}, {each} GB", each * GB, CHIPS[chip]) for each in gb]


def test_layers_are_cut_by_bytes_and_sharing_layers_stay_with_those_that_make_keys(e4b):
    made = plan.plan_layers(e4b, SETTINGS, macs(11, 11), link_of(10))
    text = e4b.args.text_config
    first, last = made.layers
    assert first.start == 0 and first.stop == last.start and last.stop == text.num_hidden_layers
    makers = {text.layer_types[i]: i for i in range(text.first_shared)}
    assert last.start <= min(makers.values())
    sizes = plan.sizes_of(e4b, SETTINGS)
    assert sum(made.held) == pytest.approx(sizes.whole + sizes.working)


def test_a_larger_machine_gets_more_layers(e4b):
    even = plan.plan_layers(e4b, SETTINGS, macs(11, 11), link_of(10))
    uneven = plan.plan_layers(e4b, SETTINGS, macs(6, 11), link_of(10))
    assert len(uneven.layers[0]) < len(even.layers[0])


def test_four_machines_have_all_layers_in_order(e4b):
    made = plan.plan_layers(e4b, SETTINGS, macs(4, 4, 4, 4), link_of(10))
    assert [run.start for run in made.layers[1:]] == [run.stop for run in made.layers[:-1]]
    assert made.layers[-1] == Run(made.layers[-1].start, 42)


def test_more_machines_than_the_layers_part_into_are_refused(e4b):
    with pytest.raises(RequestError, match=r"2 to 23 machines"):
        plan.plan_layers(e4b, SETTINGS, macs(*[11] * 24), link_of(10))


@pytest.mark.parametrize("size", [2, 4])
def test_a_share_is_an_nth_and_little_more(e4b, size):
    made = plan.plan_tensors(e4b, SETTINGS, macs(*[11] * size), link_of(10))
    whole = sum(plan.sizes_of(e4b, SETTINGS).read) + plan.sizes_of(e4b, SETTINGS).ends_read
    assert max(made.read) <= whole / size + 0.05 * whole


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("variant", ["PQ1", "PQ2", "PQ3", "PQ4", "PQ5", "PQ6", "PQ8", "PQ2-Mixed"])
def test_the_fullest_machine_holds_an_nth_of_e4b_and_five_in_a_hundred(variant, size):
    found = inventory.as_converted(inventory.of_variant(variant), "auto")
    assert 1 / size < speed_table.largest_share(found, size) <= 1 / size + 0.05


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("E4B")])
def test_the_fullest_machine_holds_as_much_of_the_larger_models(name, size):
    found = speed_table.inventory(*MODELS[name])
    assert 1 / size < speed_table.largest_share(found, size) <= 1 / size + 0.05


def test_what_every_machine_holds_whole_is_named():
    found = inventory.take(str(DEMO), "bf16")
    split, *_ = plan.splits_of(found, 2)
    whole = [e.name for e in plan.language_weights(found) if split.share(e.name) == WHOLE]
    small = ("norm.weight", "layer_scalar")
    per_layer = ("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection")
    assert {name.split(".")[-2] for name in whole if not name.endswith(small)} == {*per_layer}


def test_three_machines_are_refused_by_tensors(e4b):
    with pytest.raises(RequestError, match="2 or 4 machines"):
        plan.plan_tensors(e4b, SETTINGS, macs(11, 11, 11), link_of(10))


def test_a_slow_link_is_not_worth_it_and_says_so(e4b):
    slow, fast = Link(1, 1e-3), Link(100, 1e-6, 0.0)
    two = macs(11, 11)
    assert not plan.plan_tensors(e4b, SETTINGS, two, slow).is_worth_it
    made = plan.plan_tensors(e4b, SETTINGS, two, fast)
    assert made.is_worth_it and made.tokens_s > 1.8 * made.lone_tokens_s
    told = "\n".join(plan.describe(plan.plan_tensors(e4b, SETTINGS, two, slow), two, slow))
    assert "not worth it on this link" in told
    assert "modelled, not measured" in told


def test_what_one_machine_cannot_hold_is_worth_any_link(e4b):
    made = plan.plan_layers(e4b, SETTINGS, macs(4, 4), Link(1, 1e-3))
    assert not made.fits_alone and made.is_worth_it


def test_a_part_that_does_not_fit_is_refused_with_its_rank(e4b):
    made = plan.plan_layers(e4b, SETTINGS, macs(2, 2), link_of(10))
    with pytest.raises(DeviceError, match=r"\[rank 0\] needed"):
        made.require()
    replace(made, limits=(9 * GB, 9 * GB)).require()


@pytest.mark.parametrize("text", ["M1", "M9:16", "M1:0", "M1:much", ""])
def test_a_mac_that_is_not_known_is_refused(text):
    with pytest.raises(RequestError, match=r"\[--macs\] needed a chip of M1"):
        mac_of(text)


def test_a_link_has_a_bandwidth():
    with pytest.raises(RequestError, match=r"\[--link\]"):
        link_of(0)


def test_doctor_prints_both_plans_before_anything_runs(capsys):
    doctor.main([str(DEMO), "--variant", "PQ5", "--macs", "M1:16", "M1:8", "M1:8"])
    printed = capsys.readouterr().out.splitlines()
    assert [line[:14] for line in printed[:3]] == [f"layers: rank {at}" for at in range(3)]
    assert any(line.startswith("layers: not worth it on this link") for line in printed)
    assert printed[-1].startswith("tensors: [--split] needed 2 or 4 machines")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variant", "PQ5", "--macs", "M1:16"], r"\[--macs\] needed two Macs or more, got M1"),
        (["--macs", "M1:16", "M1:8"], r"\[--macs\] needed a model, got .*drafter"),
    ],
)
def test_one_mac_and_a_drafter_are_not_planned_for(arguments, said):
    model = DEMO if "--variant" in arguments else DEMO / "drafter"
    with pytest.raises(RequestError, match=said):
        doctor.main([str(model), *arguments])
