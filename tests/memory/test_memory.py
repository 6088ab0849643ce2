"""The arithmetic of memory, held against what MLX allocates and what the spec says of E4B."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import tiny
from mlx.utils import tree_flatten

from hlwq_mlx import cli
from hlwq_mlx.engine.request import PREFILL_STEP
from hlwq_mlx.errors import DeviceError
from hlwq_mlx.folder import loading
from hlwq_mlx.gemma4.caches import WHOLE, Caching
from hlwq_mlx.gemma4.towers.audio import AudioTower
from hlwq_mlx.gemma4.towers.vision import VisionTower
from hlwq_mlx.generate import make_parser
from hlwq_mlx.memory import verdict
from hlwq_mlx.memory.inventory import as_converted, of_variant, take
from hlwq_mlx.memory.machine import (
    CACHE_BYTES,
    GIB,
    IN_FLIGHT,
    RELEASES,
    Machine,
    describe,
    mac,
    many_in_flight,
    ram_bytes,
    this_machine,
)
from hlwq_mlx.memory.need import (
    KV_STEP,
    Settings,
    activation_bytes,
    audio_bytes,
    kv_bytes,
    need,
    tower_bytes,
    vision_bytes,
)
from hlwq_mlx.memory.verdict import (
    check_before_download,
    judge,
    longest_context,
    with_long_chunk,
)
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write import convert, leftovers

MAC = mac(16, 15)
SETTINGS = Settings(8192)
LONG = Settings(131072)


@pytest.fixture(scope="module")
def pq5():
    return of_variant("PQ5")


def test_macs_give_the_gpu_the_reported_share():
    assert round(mac(16, 15).limit_bytes / 1e6, 2) == 11453.25
    assert round(mac(8, 15).limit_bytes / 2**30, 2) == 5.33
    assert mac(16, 26).limit_bytes == 12_713_115_648


def test_weights_of_e4b(pq5):
    """The text model of spec gemma4_architecture §4.2: coded as PQ5, its rest in 16 bits."""
    needed = need(pq5, replace(SETTINGS, has_towers=True), MAC)
    coded = 3_303_014_400 * 2 // 3 + 587_202_560
    plain = 3_303_014_400 // 3 + 671_088_640 + 55_050_240 + 27_525_120 + 565_546
    dead_norms = sum(512 if i % 6 == 5 else 256 for i in range(24, 42))
    assert needed.text == coded * 5 // 8 + coded // 64 + 2 * (plain - dead_norms)
    assert needed.rows_on_disk == 2 * 2_818_572_288
    vision = 2 * (167_365_056 + 5_898_240)
    assert vision < needed.towers < vision + 2 * 304_825_088


def test_keys_and_values_of_e4b(pq5):
    text = pq5.args.text_config
    window = 20 * 2 * (512 + 511) * 512 * 2
    growing = 1 / 8  # one of the four layers' two arrays
    assert kv_bytes(text, LONG, 2) == 131072 * 16384 * (1 + growing) + window
    coded = kv_bytes(text, replace(LONG, caching=Caching(8)), 2)
    assert coded == 131072 * 8192 * (1 + 4 / 64) * (1 + 2 * growing) + window
    bounded = kv_bytes(text, replace(LONG, caching=Caching(max_kv_size=4096)), 2)
    assert bounded == (4096 + 511) * 16384 * (1 + growing) + window


def test_every_variant_fits_a_16_gb_mac_with_towers(pq5):
    """Every variant on a 16 GB Mac, with the towers and 8192 tokens."""
    for variant in ("PQ1", "PQ5", "PQ8", "PQ2-Mixed"):
        settings = replace(SETTINGS, has_towers=True)
        assert judge(of_variant(variant), settings, MAC).is_fit
    assert not judge(of_variant("PQ8"), SETTINGS, mac(8, 15)).is_fit


@pytest.mark.parametrize("release", RELEASES)
def test_the_longest_context_is_the_longest(pq5, release):
    machine = mac(8, release)
    found = of_variant("PQ3")
    longest = longest_context(found, SETTINGS, machine)
    assert 8192 < longest < 131072
    for context, fits in ((longest, True), (longest + KV_STEP, False)):
        needed = need(found, replace(SETTINGS, context=context), machine).total
        assert (needed <= machine.limit_bytes) is fits


@pytest.mark.parametrize(
    ("limit_gb", "ram_gb", "advice"),
    [
        (7.1, 16, ""),
        (7.0, 16, "--kv-bits 8 makes it fit"),
        (6.75, 16, "--kv-bits 4 makes it fit"),
        (6.5, 16, "--max-kv-size "),
        (3.5, 16, "`sudo sysctl iogpu.wired_limit_mb="),
        (3.5, 9, "choose a variant of fewer bits"),
    ],
)
def test_advice_is_the_mildest_setting_that_helps(pq5, limit_gb, ram_gb, advice):
    settings = replace(SETTINGS, context=32768)
    machine = Machine("a Mac", ram_gb * GIB, int(limit_gb * 1e9), has_metal=True)
    verdict = judge(pq5, settings, machine)
    assert verdict.is_fit is (not advice)
    if advice:
        assert verdict.advice.startswith(advice)


def test_no_advice_that_cannot_be_followed(pq5):
    """Coded keys and values cannot be bounded too."""
    coded = Settings(131072, caching=Caching(8))
    machine = Machine("a Mac", 16 * GIB, int(7.1e9), has_metal=True)
    assert judge(pq5, coded, machine).advice == "a shorter conversation fits"


def test_a_refusal_has_the_numbers(pq5):
    machine = replace(mac(8, 15), ram_bytes=6 * GIB)
    with pytest.raises(DeviceError) as refused:
        judge(pq5, SETTINGS, machine).require()
    text = str(refused.value)
    assert text.startswith("[memory] needed 6.19")
    assert "for a context of 8192 (text weights 5.50 GB, keys and values 192.90 MB, " in text
    assert (
        "got 5.73 GB on 8 GB, macOS 15. Choose a variant of fewer bits, or convert it with" in text
    )


def test_auto_codes_leftovers_at_8_bits(pq5):
    """gate_proj, the head and per-layer matrices go from 16 bits to 8 and a norm a block."""
    made = as_converted(pq5, leftovers.AUTO)
    plain, coded = (need(found, SETTINGS, MAC).text for found in (pq5, made))
    weights = 3_303_014_400 // 3 + 671_088_640 + 55_050_240 + 27_525_120
    assert plain - coded == weights * 2 - weights * (128 + 2) // 128
    assert as_converted(made, leftovers.SMALL) == made
    assert as_converted(pq5, leftovers.KEEP).entries == pq5.live
    small = as_converted(pq5, leftovers.SMALL)
    assert need(small, SETTINGS, MAC).text < coded
    assert need(small, SETTINGS, MAC).rows_on_disk * 32 == 2_818_572_288 * 34


def test_8k_tokens_fit_the_target_macs():
    """PQ5 with towers in 7 GB; PQ2-Mixed and PQ3, text, on an 8 GB Mac."""
    pq5 = as_converted(of_variant("PQ5"), leftovers.AUTO)
    settings = replace(SETTINGS, has_towers=True)
    assert need(pq5, settings, MAC).total < 7e9
    for variant in ("PQ2-Mixed", "PQ3"):
        made = as_converted(of_variant(variant), leftovers.AUTO)
        assert judge(made, SETTINGS, mac(8, 15)).is_fit


def test_nothing_is_fetched_for_a_model_at_hand(tmp_path, monkeypatch):
    root = tiny.write_root(tmp_path / "source", tiny.config())
    weights = tiny.make_weights(tiny.config(), has_towers=False)
    tiny.publish(root / "PQ5", weights, tiny.pure(5))
    monkeypatch.setattr(verdict, "take", None)
    check_before_download(str(root), "PQ5", SETTINGS)


def test_bytes_of_a_model_that_the_library_reads(tmp_path):
    """Codes as they lie on disk, nothing beside them, and plain matrices in 16 bits."""
    root = tiny.write_root(tmp_path / "source", tiny.config())
    weights = tiny.make_weights(tiny.config(), has_towers=False)
    tiny.publish(root / "PQ5", weights, tiny.pure(5))
    convert.convert(Source(root / "PQ5", "PQ5"), tmp_path / "out")
    cpu = Machine("a CPU", 1 << 34, 1 << 33, has_metal=False, has_library=True)
    needed = need(take(str(tmp_path / "out")), Settings(64), cpu)
    parameters = tree_flatten(loading.load(tmp_path / "out").parameters())
    assert any(array.dtype == mx.bfloat16 for _, array in parameters)
    assert needed.text == sum(array.nbytes for name, array in parameters if "centroids" not in name)


def test_the_library_reads_plain_matrices_as_they_are_stored():
    cpu = Machine("a CPU", 1 << 34, 1 << 33, has_metal=False, has_library=True)
    found = of_variant("PQ5")
    [plain] = [each for each in found.live if each.name.endswith("layers.0.mlp.gate_proj.weight")]
    assert plain.bits is None
    wider = replace(plain, stored_bytes=2 * plain.stored_bytes)  # in float32
    entries = tuple(wider if each is plain else each for each in found.entries)
    more = (
        need(replace(found, entries=entries), SETTINGS, cpu).text - need(found, SETTINGS, cpu).text
    )
    assert more == plain.stored_bytes == 2 * plain.weights


@pytest.mark.usefixtures("by_stock")
def test_bytes_of_a_loaded_model(tmp_path):
    """By stock MLX on a CPU: float32, and small coded weights decoded beside their codes."""
    root = tiny.write_root(tmp_path / "source", tiny.config())
    weights = tiny.make_weights(tiny.config(), has_towers=False)
    tiny.publish(root / "PQ5", weights, tiny.pure(5))
    convert.convert(Source(root / "PQ5", "PQ5"), tmp_path / "out")
    cpu = Machine("a CPU", 1 << 34, 1 << 33, has_metal=False)
    needed = need(take(str(tmp_path / "out")), Settings(64), cpu)
    model = loading.load(tmp_path / "out")
    loaded = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    centroids = sum(
        array.nbytes for name, array in tree_flatten(model.parameters()) if "centroids" in name
    )
    decoded = 4 * sum(weights[name].size for name in model.args.quantization_config["tensors"])
    assert needed.text == loaded - centroids + decoded
    cache = model.make_cache()
    ids = mx.array(np.arange(2, 66))[None]
    for start in range(0, 64, 16):
        model.fill_cache(ids[:, start : start + 16], cache)
    held = sum(entry.nbytes for entry in cache)
    one = kv_bytes(model.args.text_config, Settings(64, prefill_step=16), 4)
    assert held <= one <= 1.6 * held


def peak_of(tower, *inputs):
    """What running a tower takes beside its weights."""
    mx.eval(tower.parameters(), *inputs)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(tower(*inputs))
    return mx.get_peak_memory() - before


@pytest.mark.slow
def test_activations_of_towers_as_wide_as_e4b(pq5):
    """Bounds that hold and are not twice too large; more layers keep no more alive."""
    side, frames = 12, 160
    vision = replace(pq5.args.vision_config, num_hidden_layers=2)
    grid = mx.array([(column, row) for row in range(side) for column in range(side)])
    patches = mx.random.uniform(shape=(side**2, 3 * vision.patch_size**2))
    seen = peak_of(VisionTower(vision), patches, grid)
    assert seen <= vision_bytes(vision, side**2, 4) <= 1.5 * seen
    audio = replace(pq5.args.audio_config, num_hidden_layers=1)
    heard = peak_of(AudioTower(audio), mx.random.uniform(shape=(frames, 128)))
    assert heard <= audio_bytes(audio, frames) <= 1.5 * heard


def test_towers_are_through_before_a_prefill_begins(pq5):
    text, towers = (need(pq5, replace(LONG, has_towers=t), MAC) for t in (False, True))
    assert towers.activations == max(text.activations, tower_bytes(pq5.args, 2))
    assert towers.activations > text.activations


def test_media_ask_for_the_towers_too():
    parser = make_parser()
    for options, has_towers in (([], False), (["--image", "a.png"], True)):
        arguments = parser.parse_args(["--prompt", "hello", *options])
        assert cli.settings_for(arguments, 100).has_towers is has_towers


def test_mlx_keeps_its_own_settings_afterwards(monkeypatch):
    first, second = IN_FLIGHT
    monkeypatch.delenv(first, raising=False)
    monkeypatch.setenv(second, "77")
    with many_in_flight(has_metal=True, ram=16 * GIB):
        assert os.environ[first] == str(IN_FLIGHT[first])
        assert os.environ[second] == "77"  # a person's own
    assert first not in os.environ and os.environ[second] == "77"
    for has_metal, ram in ((False, 16), (True, 8)):
        with many_in_flight(has_metal=has_metal, ram=ram * GIB):
            assert first not in os.environ
    with pytest.raises(ValueError), many_in_flight(has_metal=True, ram=16 * GIB):
        raise ValueError
    assert first not in os.environ


def test_a_small_machine_keeps_less_in_hand():
    assert mac(8, 15).cache_bytes < mac(16, 15).cache_bytes == CACHE_BYTES
    assert mac(8, 15).in_flight_bytes < mac(16, 15).in_flight_bytes
    assert replace(MAC, has_metal=False).in_flight_bytes == 0


def test_this_machine():
    machine = this_machine(Path("no/such/folder"))
    assert machine.ram_bytes == ram_bytes()
    assert resource.getpagesize() < machine.limit_bytes < machine.ram_bytes
    assert machine.free_disk_bytes > 0
    assert not machine.has_metal and machine.wired_limit_mb == 0
    assert next(describe(machine)).startswith(f"{machine.name}: ")


def test_one_default_for_a_chunk():
    assert cli.LEFTOVERS == leftovers.CHOICES
    assert cli.PREFILL_STEP == PREFILL_STEP == Settings(1).prefill_step


def test_a_long_chunk_costs_no_context(pq5):
    """Of E4B in 16 GB there is memory for one, in 8 GB none; and a CPU gains nothing by it."""
    assert with_long_chunk(pq5, SETTINGS, MAC).prefill_step == 2048
    small, found = mac(8, 15), of_variant("PQ3")
    assert judge(found, SETTINGS, small).is_fit
    assert with_long_chunk(found, SETTINGS, small) == SETTINGS
    assert with_long_chunk(pq5, SETTINGS, replace(MAC, has_metal=False)) == SETTINGS
    # Where the longest context of all fits beside a long chunk, and where it does not.
    for step, spare, chosen in ((2048, 1e6, 2048), (2048, -1e8, 1024), (1024, -1e8, 512)):
        whole = need(pq5, replace(LONG, prefill_step=step), MAC).total
        tight = replace(MAC, limit_bytes=int(whole + spare))
        assert with_long_chunk(pq5, LONG, tight).prefill_step == chosen


def test_settings_of_a_short_context():
    """A chunk is not longer than the context it belongs to."""
    text = of_variant("PQ5").args.text_config
    short = Settings(16, caching=WHOLE)
    assert activation_bytes(text, short, 2) < activation_bytes(text, SETTINGS, 2) / 8
