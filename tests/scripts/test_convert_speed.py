"""The speed of conversion and loading: what a row of its table says, and of what."""

from scripts.benchmarks import convert_speed
from scripts.benchmarks.convert_speed import Measured


def test_a_row_compares_what_took_turns(capsys):
    taken = {"cp": Measured(2.0, 0.5), "ours": Measured(8.0, 12.0)}
    row = convert_speed.row("codes repacked", 600_000_000, taken)
    convert_speed.print_table([row])
    *_, line = capsys.readouterr().out.splitlines()
    assert line == "| codes repacked | 600 | cp | 300 | 75 | 0.25 | 1.50 | 50 |"


def test_contenders_take_turns_and_count_by_their_medians(monkeypatch):
    order = []
    times = iter([1.0, 10.0, 3.0, 20.0, 2.0, 90.0])

    def clocked(work):
        work()
        return Measured(next(times), 0.0)

    monkeypatch.setattr(convert_speed, "clocked", clocked)
    contenders = {name: lambda name=name: order.append(name) for name in ("cp", "ours")}
    taken = convert_speed.in_turns(contenders, 3)
    assert order == ["cp", "ours"] * 3
    assert taken == {"cp": Measured(2.0, 0.0), "ours": Measured(20.0, 0.0)}


def test_the_two_sources_are_coded_as_they_say():
    large, small = (2560, 10240), (64, 64)
    up = "model.language_model.layers.0.mlp.up_proj.weight"
    rows = "model.language_model.embed_tokens_per_layer.weight"
    assert [convert_speed.code_all(up, shape) for shape in (large, small)] == [5, None]
    assert convert_speed.code_all(rows, (32768, 512)) is None
    assert convert_speed.code_one(up, large) == 5
    assert convert_speed.code_one(up.replace("up_proj", "gate_proj"), large) is None
