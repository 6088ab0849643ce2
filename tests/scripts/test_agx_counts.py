"""What is read from the compiler's output, on a listing of our own, and what is made of it."""

import json

import metal_host
import pytest

from hlwq_mlx.quant.bodies import BODIES
from scripts.kernels.agx import compiler, counts, goals, listing, programs
from scripts.kernels.agx.chips import CHIPS, M1
from scripts.kernels.agx.listing import Counts

# A preamble; then a program that fills a table in one loop and multiplies two weights in another.
LISTING = """block0 {
   u0 = uniform_store r0
   stop
}

block0 {
   r0 = mov_imm #0
}
 -> block1
block1 {
   local_store r0, r1
   r1 = iadd r1, r2
   while_icmp r1, r3
} -> block1 block2 from block0 block1

block2 {
   r4 = mov_imm #0
} -> block3 from block1

block3 {
   r5, r6 = device_load u0, r4, i32, xy
   wait #0
   r7 = bfeil r5, r6, #4, #5
   r8h = local_load r7, i16, x
   r9 = ffma.sat r8h, r5, r9
   r9 = ffma r8h, r6, r9
   r4 = iadd r4, r2
   while_icmp r4, r3
} -> block3 block4 from block2 block3

block4 {
   device_store r9, u2
   stop
} from block3

""".replace("}\n ->", "} ->")
STATS = (
    "COMPUTE shader: 17 inst, 20 alu, 11 fscib, 4 ic, 122 bytes, 100 regs, "
    "6 uniforms, 832 threads, 2 loops, 3:4 spills:fills"
)


def counted(cost, simdgroups=30, spills=0, name="ffma"):
    """Counts of so many instructions a weight, with registers for so many simdgroups."""
    registers = 208 * 1024 // 64 // simdgroups
    return Counts(9, 99, registers, spills, 1, {name: cost})


def test_a_listing_is_read():
    found = listing.read(LISTING, STATS, 2, is_loop=True)
    assert (found.instructions, found.bytes, found.registers, found.spills) == (17, 122, 100, 7)
    assert found.mix == {
        **{"device_load": 1, "wait": 1, "bfeil": 1, "local_load": 1},
        **{"ffma": 2, "iadd": 1, "while_icmp": 1},
    }
    assert (found.slots, found.complex_cycles, found.simdgroups) == (4.0, 2.0, 33)


def test_a_program_without_a_loop_over_weights_is_counted_whole():
    found = listing.read(LISTING, STATS, 0, is_loop=False)
    assert found.slots == sum(found.mix.values()) == 15
    assert found.complex_cycles == 4
    assert "uniform_store" not in found.mix


@pytest.mark.parametrize(("text", "stats"), [("", STATS), (LISTING, "error: no such shader")])
def test_output_of_another_form_is_refused(text, stats):
    with pytest.raises(ValueError, match=r"\[agx\] needed a listing"):
        listing.read(text, stats, 2, is_loop=True)


def test_a_budget_is_what_lanes_issue_while_memory_delivers():
    # 8 cores of 128 lanes at 1.278 GHz; 57 GB/s are 88.98 billion weights of 5.125 bits a second.
    assert M1.budget(5) == pytest.approx(8 * 128 * 1.278 / 88.98, rel=1e-4)
    assert CHIPS[0].budget(5) == pytest.approx(M1.budget(5) * 7 / 8)


def test_every_tile_of_the_chooser_is_counted_and_every_kernel():
    asked = counts.all_programs()
    names = [program.name for program in asked]
    assert len(set(names)) == len(names)
    assert {p.kernel for p in asked if not p.is_mlx} == BODIES.keys()
    for bits in programs.WIDTHS:
        for tokens in range(1, 6):
            assert programs.usual_tile(bits, tokens) in programs.chosen_tiles(bits)
    assert {program.group for program in asked if program.kernel == "qmv"} == {(32, 4)}


def test_a_program_is_the_text_of_the_kernel_and_an_entry():
    if reason := metal_host.missing():
        pytest.skip(reason)
    ours = programs.qmv(5, programs.usual_tile(5, 2)).text()
    assert "METAL_FUNC" not in ours
    assert "__local vec<E, 2> tables[SIMDGROUPS * hlwq::table_size(B)];" in ours
    assert "constexpr int B = 5;" in ours and "constexpr int TOKENS = 2;" in ours
    theirs = programs.affine(5).text()
    assert "void qmv_fast_impl(" in theirs and "qmv_fast_impl<half, 64, 5>" in theirs
    assert "simdgroup_matrix" not in theirs


def test_what_is_kept_is_read_again(tmp_path):
    before = {"a": counted(3), "b": counted(4)}
    counts.save(tmp_path / "counts.json", before)
    assert counts.load(tmp_path / "counts.json") == before
    assert json.loads((tmp_path / "counts.json").read_text())["a"]["mix"] == {"ffma": 3}


def test_the_counts_that_are_kept_are_of_today_s_programs_and_hold_every_goal():
    kept = counts.load()
    assert list(kept) == [program.name for program in counts.all_programs()]
    assert [goal for goal, _, holds in goals.findings(kept) if not holds] == []


def test_a_comparison_shows_what_changed(capsys):
    counts.print_comparison({"a": counted(3), "gone": counted(1)}, {"a": counted(4)})
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "| a | 9 | 99 | 110 | 30 | 0 | 3.00 → 4.00 | 0.00 |"


def test_goals_fail_one_by_one():
    ours, theirs = counted(1), counted(9, name="bfeil")
    fine = {p.name: theirs if p.is_mlx else ours for p in counts.all_programs()}
    assert all(holds for *_, holds in goals.findings(fine))
    one = programs.qmv(5, programs.usual_tile(5, 1)).name
    most = programs.qmv(5, programs.usual_tile(5, 5)).name
    for name, worse, goal in [
        (one, counted(10), "5-bit, slots: below MLX's"),
        (most, counted(13), "5-bit, 5 tokens: at most 85% of the budget"),
        (most, counted(1, spills=1), "5-bit: no spill at any tile"),
        (most, counted(1, simdgroups=23), "5-bit: 24 simdgroups a core at any tile"),
    ]:
        failed = [text for text, _, holds in goals.findings(fine | {name: worse}) if not holds]
        assert failed == [goal]


def test_without_a_compiler_one_line_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["counts.py", "--folder", str(tmp_path)])
    assert counts.main() == 0
    assert capsys.readouterr().out == f"counts: skipped, {compiler.missing(tmp_path)}\n"
    assert "setup_compiler" in compiler.missing(tmp_path)
