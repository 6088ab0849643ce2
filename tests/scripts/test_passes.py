"""The model of passes of several tokens: what it sums, and that the larger of two times counts."""

from collections import Counter

import pytest

from hlwq_mlx.source import rules
from scripts.benchmarks import launches, pass_tables, passes
from scripts.benchmarks.passes import Drafter, Model
from scripts.kernels.agx.chips import M1

BILLION = Model(Counter({2: 10**9}), (800, 900, 900, 900, 1000), 10**6, Counter())


def test_a_product_takes_the_larger_of_memory_and_arithmetic():
    one, five = (passes.cost(BILLION, M1, tokens) for tokens in (1, 5))
    memory = 1e9 * (2 / 8 + 2 / 128) / 57e9
    assert one.products == one.waited == pytest.approx(memory)
    assert five.waited == one.waited
    # 7.83 slots a weight, of 128 lanes of 8 cores at 1.278 GHz.
    assert five.products == pytest.approx(7.83e9 / (8 * 128 * 1.278e9), rel=1e-3)


def test_a_pass_is_the_sum_of_its_parts():
    found = passes.cost(BILLION, M1, 5, host_s=0.02)
    assert found.attention == pytest.approx(5 * 1e6 / 57e9)
    assert found.launches == pytest.approx(1000 * 1.65e-6)
    parts = (found.products, found.attention, found.launches, found.host)
    assert found.seconds == pytest.approx(sum(parts)) and found.host == 0.02


def test_every_token_reads_its_own_experts():
    mixture = BILLION._replace(chosen=Counter({3: 10**8}))
    read = 1e8 * (3 / 8 + 2 / 128)
    assert mixture.weight_bytes == pytest.approx(BILLION.weight_bytes + read)
    for tokens in (1, 2, 5):
        more = passes.cost(mixture, M1, tokens).products - passes.cost(BILLION, M1, tokens).products
        assert more == pytest.approx(tokens * read / 57e9)


def test_16_bits_wait_for_memory_alone():
    plain = BILLION._replace(weights=Counter({None: 10**9}))
    assert passes.cost(plain, M1, 5).products == pytest.approx(2e9 / 57e9)
    assert plain.weight_bytes == 2e9


def test_a_drafter_costs_its_bytes_its_launches_and_a_wait():
    drafter = Drafter(57e6, 100)
    assert drafter.seconds(M1, 0) == 0
    assert drafter.seconds(M1, 4) == pytest.approx(4 * (1e-3 + 165e-6) + passes.SYNC_S)
    alone = passes.cost(BILLION, M1, 1).seconds
    gained = [passes.breaks_even(BILLION, M1, 5, 0.0, each) for each in (None, drafter)]
    assert (gained[1] - gained[0]) * alone == pytest.approx(drafter.seconds(M1, 4))


def test_e4b_s_drafter_has_the_size_of_what_is_published():
    # Its text model has 78.5 million weights, of which 67 are rows that a draft does not read.
    read = passes.e4b_drafter(0).bytes / 2 - 4096 * 256
    assert read == pytest.approx(78.5e6 - 262144 * 256, rel=0.02)


def test_several_tokens_launch_more_attention_alone():
    one, two, three = launches.count_passes(rules.variant_rule("PQ2-Mixed")[1], 3)
    layers = 42
    assert one == launches.total(launches.count_ours(rules.variant_rule("PQ2-Mixed")[1]))
    # Of two tokens: attention once more, its results put together (2) and copied, in each layer.
    assert (two - one, three - two) == (4 * layers, layers)


def test_tables_have_a_line_for_every_variant_and_chip(monkeypatch, capsys):
    monkeypatch.setattr(launches, "count_passes", lambda rule, most: [800] * most)
    monkeypatch.setattr(launches, "count_larger_passes", lambda name, most: [1400] * most)
    found = pass_tables.print_tables(host_ms=5)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| PQ") for line in lines) == len(rules.VARIANTS)
    assert sum(line.startswith("| M") for line in lines) == len(found["chips"])
    assert {line.count("|") for line in lines if line.startswith("| PQ")} == {14}
    pq2 = next(row for row in found["variants"] if row["variant"] == "PQ2")
    assert pq2["arithmetic, ms"][0] == 0 < pq2["arithmetic, ms"][4]
    assert 1 / pq2["tokens/s, host waited for"] - 1 / pq2["tokens/s"] == pytest.approx(5e-3)
    mixed = found["mixtures"]
    assert sum(line.startswith(f"| {row['mixture']} |") for line in lines for row in mixed) == 11
    for row in mixed:
        told, modelled = row["one more row, as drafting counts"], row["one more row"]
        assert told == pytest.approx(modelled, abs=0.07)  # which counts launches too
