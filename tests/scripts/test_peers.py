"""The benchmark against peers: what it compares, and a rehearsal with real processes."""

import json
from types import SimpleNamespace

import pytest

from scripts.benchmarks import peer_files, peers


def measured(label, decode, prefill, engine="avx512"):
    rates = {"decode": decode, "prefill": prefill}
    return peers.Measured(peers.Contender(label, "ours", "4", {}), 1.0, engine, rates=rates)


def test_a_rehearsal_without_llama_cpp(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "has_ggml", lambda: False)
    output = tmp_path / "out.json"
    arguments = ["--work", str(tmp_path / "work"), "--rehearse", "--only", "PQ4, exact", "Q4_K_M"]
    sizes = ["--rounds", "1", "--long-rounds", "1", "--tokens", "2", "--prompt", "4"]
    peers.main([*arguments, *sizes, "--output", str(output)])
    printed = capsys.readouterr()
    assert "llama.cpp is not installed, so it is left out" in printed.err
    head, row = (printed.out.splitlines()[at] for at in (2, 4))
    assert head.startswith(
        "| tokens a second | decode behind 4 | middle half | decode behind 2,048"
    )
    assert row.startswith("| hlwq_mlx PQ4, exact |") and "–" not in row
    (found,) = json.loads(output.read_text())["rows"]
    assert {kind: len(rates) for kind, rates in found["tokens_per_s"].items()} == {
        "prefill": 1,
        "decode": 2,
        "long": 2,
    }
    assert found["peak_bytes"] > 1e7
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["ours-4-2x512"]


def test_our_instructions_are_those_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "has_ggml", lambda: False)
    arguments = ["--work", str(tmp_path), "--rehearse", "--only", "PQ4, exact"]
    sizes = ["--rounds", "1", "--long-rounds", "0", "--tokens", "1", "--prompt", "4"]
    peers.main([*arguments, *sizes, "--instructions", "portable"])
    assert "ours: portable." in capsys.readouterr().out


def test_goals_compare_medians_at_equal_bits():
    rows = [
        measured("hlwq_mlx PQ4, exact", [10, 12, 99], [80, 90, 100]),
        measured("hlwq_mlx PQ5, exact", [1], [1]),
        measured("llama.cpp Q4_K_M", [11, 12, 13], [99, 100, 101]),
        measured("mlx-lm float32", [0.5, 0.5], [1.0]),
    ]
    found = {goal.what: (goal.ratio, goal.is_met) for goal in peers.goals(rows)}
    assert found == {
        "decode: hlwq_mlx PQ4, exact / llama.cpp Q4_K_M": (1.0, True),
        "prefill: hlwq_mlx PQ4, exact / llama.cpp Q4_K_M": (0.9, True),
        "decode: hlwq_mlx PQ4, exact / mlx-lm float32": (24.0, True),
        "prefill: hlwq_mlx PQ4, exact / mlx-lm float32": (90.0, True),
    }


def test_a_shorter_prompt_is_told_where_it_was_read(capsys):
    rows = [measured(label, [1], [9]) for label in ("hlwq_mlx PQ4, exact", "mlx-lm float32")]
    rows[1].contender = rows[1].contender._replace(runtime="mlx-lm")
    peers.print_table(rows, SimpleNamespace(prompt=128))
    assert ["(of 16)" in line for line in capsys.readouterr().out.splitlines()[2:]] == [False, True]


def test_prefill_has_a_goal_where_the_processor_has_one():
    rows = [measured("hlwq_mlx PQ8, exact", [1], [8], "avx2"), measured("llama.cpp Q8_0", [2], [9])]
    assert [goal.least for goal in peers.goals(rows)] == [1.0, 0.75]
    rows[0].engine = "neon"
    assert [(goal.what[:6], goal.is_met) for goal in peers.goals(rows)] == [("decode", False)]


def test_an_unknown_contender_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no contender's label contains PQ7"):
        peers.main(["--work", str(tmp_path), "--only", "PQ7"])


def test_the_shape_is_e4b_s_but_for_its_depth():
    text = peer_files.config(6, 262144, is_small=False)["text_config"]
    assert text["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"]
    assert (text["hidden_size"], text["intermediate_size"]) == (2560, 10240)
    assert peer_files._shapes(text, 256)["attn_v"] == (512, 2560)
