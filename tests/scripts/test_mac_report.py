"""The first run on a Mac, as far as it can be tried without one."""

import gc
import getpass
import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import metal_host
import mlx.core as mx
import pytest

from hlwq_mlx.folder import published
from hlwq_mlx.quant import device as computer
from hlwq_mlx.quant import selftest
from hlwq_mlx.quant.packing import UNIT
from hlwq_mlx.source import model_card
from scripts.mac import kernel_times, mac_report, mac_steps, model_times, self_tests
from scripts.mac.sizes import FULL, QUICK, REHEARSAL

SCRIPT = Path(__file__).parents[2] / "scripts" / "first_mac_run"
NO_MODEL = list(mac_steps.steps(REHEARSAL, None, None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if reason := metal_host.missing():
        pytest.skip(reason)
    output = tmp_path_factory.mktemp("report")
    assert mac_report.main(["--rehearse", "--output", str(output)]) == 0
    return output


def test_a_rehearsal_takes_every_step(folder):
    report = json.loads((folder / "mac-report.json").read_text())
    assert list(report["steps"]) == [*NO_MODEL, mac_report.TABLE]
    for step in report["steps"].values():
        assert step["rows"]
        assert step["error"] == ""
    tests = report["steps"][mac_steps.SELF_TESTS]["rows"]
    assert {row["faults"] for row in tests} == {0}
    assert {row["path"]: row["variants"] for row in tests} == {
        **{"few_rows": 1, "few_geglu": 1, "many_rows": 1, "decoded": 1, "rows_of": 1},
        **{"residual_norm": 2, "gelu_mul": 1, "hadamard": 1},
    }
    *_, plain, drafted = report["steps"]["The demo model"]["rows"]
    assert [row["drafts"] for row in (plain, drafted)] == ["none", "lookup"]
    assert plain["answer"] == drafted["answer"] == "4"
    assert plain["answer, tokens/s"] > 0 and plain["tokens a pass"] == 1
    assert report["machine"]["versions"]["mlx"] == mx.__version__


def test_a_report_can_be_read_and_says_that_it_was_a_rehearsal(folder):
    text = (folder / "mac-report.md").read_text()
    assert "A rehearsal" in text
    assert all(f"## {name}" in text for name in NO_MODEL)
    assert "| 256 x 64 | 5 |" in text
    names = ["mac-report.json", "mac-report.md", "rehearsal-chips.json"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_report_names_no_one(folder):
    for path in folder.iterdir():
        text = path.read_text()
        for name in ({getpass.getuser(), socket.gethostname()} - mac_report.COMMON) | {
            str(Path.home()) + os.sep,
            str(SCRIPT.parent.parent),
            str(folder),
        }:
            assert name not in text


def test_nothing_of_a_rehearsal_stays():
    path = list(sys.path)
    with mac_report.rehearsing():
        assert computer.has_metal()
        assert list(self_tests.self_tests(REHEARSAL))
    assert not computer.has_metal()
    assert sys.path == path
    assert selftest.passes.cache_info().currsize == 0
    assert selftest.passes_on.cache_info().currsize == 0


def test_a_step_that_fails_keeps_its_rows_and_stops_no_other(tmp_path, monkeypatch):
    def failing():
        yield {"kernel": "qmv", "ms": 0.25}
        raise RuntimeError(f"cannot compile {tmp_path}/kernel.metal")

    steps = {"First": failing, "Second": lambda: iter([{"a|b": None}])}
    monkeypatch.setattr(mac_steps, "steps", lambda *arguments: steps)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    arguments = ["--output", str(tmp_path), "--model", str(tmp_path)]
    assert mac_report.main(arguments) == 1
    report = json.loads((tmp_path / "mac-report.json").read_text())
    assert report["steps"]["First"]["rows"] == [{"kernel": "qmv", "ms": 0.25}]
    assert "RuntimeError: cannot compile <path>" in report["steps"]["First"]["error"]
    assert "<path>/mac_report.py" in report["steps"]["First"]["error"]
    assert report["steps"]["Second"]["error"] == ""
    assert report["model"] == "a local folder, PQ5"
    assert str(tmp_path) not in (tmp_path / "mac-report.md").read_text()


def test_a_person_s_own_prompts_are_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(
        mac_steps,
        "steps",
        lambda sizes, *_: {"Asked": lambda: iter([{"prompts": " | ".join(sizes.prompts)}])},
    )
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    asked = {}
    for name, options in {"ours": [], "theirs": ["--prompt", "One", "--prompt", "Two"]}.items():
        assert mac_report.main(["--output", str(tmp_path), *options]) == 0
        report = json.loads((tmp_path / "mac-report.json").read_text())
        asked[name] = report["steps"]["Asked"]["rows"][0]["prompts"]
    assert asked == {"ours": " | ".join(FULL.prompts), "theirs": "One | Two"}


def test_what_came_before_a_crash_is_written(tmp_path, monkeypatch):
    def crashing():
        raise KeyboardInterrupt
        yield

    steps = {"First": lambda: iter([{"ms": 1.0}]), "Second": crashing}
    monkeypatch.setattr(mac_steps, "steps", lambda *arguments: steps)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        mac_report.main(["--output", str(tmp_path)])
    report = json.loads((tmp_path / "mac-report.json").read_text())
    assert list(report["steps"]) == ["First"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fell over in /Users/ada/models/x.bin: no", "fell over in <path>: no"),
        ('File "/opt/py/site/codec.py", line 3', 'File "<path>/codec.py", line 3'),
        ("ada's Mac is called mac-of-ada.local", "<name>'s Mac is called <name>"),
        ("/Users/Ada L/x/y", "<path>"),
        ("owner/name/PQ5 at 3 tokens/s, 1/2", "owner/name/PQ5 at 3 tokens/s, 1/2"),
        ("adaptive", "adaptive"),
    ],
)
def test_scrubbed(text, expected, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "mac-of-ada.local")
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/Ada L"))
    assert mac_report.scrubbed({"key": [text, 1.5]}) == {"key": [expected, 1.5]}


def test_without_metal_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert mac_report.main(["--output", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(mx.metal.is_available(), reason="would run everything")
def test_the_command_runs_from_anywhere(tmp_path):
    ran = subprocess.run(
        [SCRIPT],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HLWQ_PYTHON": sys.executable, "PYTHONPATH": str(SCRIPT.parent.parent)},
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: [first_mac_run] needed a Mac with Metal")


def test_with_a_model_there_is_one_more_step():
    names = list(mac_steps.steps(FULL, "owner/name", "PQ5"))
    assert names == [*NO_MODEL, "The model"]


def test_a_kernel_that_is_wrong_is_a_fault_at_every_shape(monkeypatch):
    # The host's kernel has to be back before the host is gone, or it stays for other tests.
    with mac_report.rehearsing(), monkeypatch.context() as patch:
        right = mx.fast.metal_kernel

        def wrong(*texts, **more):
            kernel = right(*texts, **more)
            return lambda **call: [1.1 * output for output in kernel(**call)]

        patch.setattr(mx.fast, "metal_kernel", wrong)
        rows = {row["path"]: row for row in self_tests.self_tests(REHEARSAL)}
    assert all(row["faults"] == row["variants"] for row in rows.values())
    assert rows["residual_norm"]["first fault"].startswith(
        "((2, 256), (2, 256), (256,), (1,), 1e-06, None)"
    )
    assert "needed gelu_mul on ((2, 256), (2, 256)) in mlx" in rows["gelu_mul"]["first fault"]
    assert rows["hadamard"]["bits"] is None


def test_the_full_run_tries_what_exists():
    sizes = FULL
    assert sizes.prompts[:-1] == model_card.PROMPTS
    assert set(sizes.timed_bits) >= kernel_times.TARGET_MS.keys()
    for tile in sizes.tiles:
        assert any(K // UNIT % tile.lanes == 0 for K, _ in sizes.shapes)
    variants = list(self_tests.coded_cases(sizes, 5))
    assert len(variants[0][2]) > 5
    assert {tile.lanes for tile in variants[0][2]} == {8, 16}


def test_the_full_run_tries_every_width_of_e4b():
    text = published.e4b_config()["text_config"]
    heads = text["num_attention_heads"]
    widths = {heads * text["head_dim"], heads * text["global_head_dim"]}
    widths |= {text["hidden_size"], text["intermediate_size"], text["hidden_size_per_layer_input"]}
    assert widths == set(FULL.widths)
    tried = {kernel.__name__: cases for kernel, _, cases in self_tests.plain_cases(FULL)}
    assert {case[0][1] for case in tried["gelu_mul"]} == widths
    assert {case[0][1] for case in tried["hadamard"]} == widths
    assert {case[-1] for case in tried["residual_norm"] if case[0][1] == text["hidden_size"]} == {
        None,
        (text["hidden_size"],),
    }


def test_a_quick_run_tries_less_of_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    tried = []
    monkeypatch.setattr(mac_steps, "steps", lambda sizes, *_: tried.append(sizes) or {})
    monkeypatch.setattr(mac_report, "rehearsing", nullcontext)
    for options in (["--rehearse", "--quick"], [], ["--quick"]):
        assert mac_report.main(["--output", str(tmp_path), *options]) == 0
    assert tried == [REHEARSAL, FULL, QUICK]
    full, quick = map(vars, tried[1:])
    assert quick["bits"] == full["bits"] and quick["prompts"] == full["prompts"]
    for name, chosen in quick.items():
        if isinstance(chosen, tuple):
            assert set(chosen) <= set(full[name]), name
        else:
            assert chosen < full[name]
    assert json.loads((tmp_path / "mac-report.json").read_text())["quick"]
    assert "no model, quick\n" in (tmp_path / "mac-report.md").read_text()


def test_a_step_that_takes_too_long_leaves_the_rest_out(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(mac_report.time, "perf_counter", lambda: next(clock))
    step = mac_report.run_step(lambda: ({"ms": n} for n in range(9)), limit=50)
    assert step["rows"] == [{"ms": n} for n in range(3)] + [{"left out": "the rest, after 50 s"}]
    assert step["error"] == ""


@pytest.mark.parametrize("sizes", [FULL, QUICK])
def test_steps_share_the_time_that_there_is_and_a_model_takes_its_own(sizes):
    names = list(mac_steps.steps(sizes, "owner/name", "PQ5"))
    limits = mac_steps.limits(names, sizes.seconds)
    assert set(names) - set(limits) == {mac_steps.MODEL}
    assert sum(limits.values()) == pytest.approx({FULL: 600, QUICK: 120}[sizes])


def test_tiles_that_do_not_work_are_not_timed(monkeypatch):
    if reason := metal_host.missing():
        pytest.skip(reason)
    bad = REHEARSAL.tiles[0]

    def fault(tile, trial):
        return "wrong" if tile == bad else ""

    monkeypatch.setattr(kernel_times, "fault", fault)
    with mac_report.rehearsing():
        (row,) = kernel_times.time_tiles(REHEARSAL)
    assert row["unsound"] == 1
    assert list(row["all"]) == [row["fastest"]]


def test_where_no_tile_works_the_next_matrix_is_tried(monkeypatch):
    monkeypatch.setattr(kernel_times, "fault", lambda tile, trial: "wrong")
    two = replace(REHEARSAL, tile_bits=(3, 5))
    with mac_report.rehearsing():
        rows = list(kernel_times.time_tiles(two))
    assert [(row["unsound"], row["ms"], row["its ms"]) for row in rows] == [(2, None, None)] * 2


def test_peak_memory_is_that_of_each_part_alone(monkeypatch):
    def take(floats, made):
        def taken(*arguments):
            mx.eval(mx.zeros(floats))
            return made

        return taken

    answered = SimpleNamespace(
        **{"prompt_tokens": 1, "prompt_tps": 1.0, "generation_tokens": 1, "generation_tps": 1.0},
        **{"text": "4", "passes": 1, "token": 4},
    )
    monkeypatch.setattr(model_times.library, "converted_folder", take(1 << 22, Path("converted")))
    monkeypatch.setattr(model_times.library, "load", take(1 << 20, (None, None)))
    monkeypatch.setattr(model_times.library, "stream_generate", lambda *_, **__: [answered])
    gc.collect()  # arrays of other tests would be let go between the two
    held = mx.get_active_memory() / 1e9
    rows = model_times.answers("model", "PQ5", REHEARSAL)
    converting, loading, *_ = (row["peak memory, GB"] - held for row in rows)
    assert converting > 0.016
    assert 0.004 < loading < 0.008


def test_a_drafted_answer_that_differs_tells_how_near_the_choice_was():
    def piece(token, scores):
        return SimpleNamespace(token=token, logprobs=mx.array(scores))

    plain = [piece(1, [-9.0, 0.0, -9.0]), piece(2, [-9.0, -0.75, -0.5])]
    other = [plain[0], piece(1, [-9.0, -0.5, -0.75])]
    assert model_times.difference(plain, plain) == "the same"
    assert model_times.difference(plain, other) == "other at token 2, by a margin of 0.25"
    assert model_times.difference(plain, plain[:1]) == "the same so far, but not as long"
