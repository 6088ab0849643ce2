"""What kernel_matrix.py would run: that it knows what to damage, and does nothing twice."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import test_kernels

from hlwq_mlx.quant.bodies import BODIES
from scripts.kernels import kernel_matrix, kernel_mutants

MUTANTS = kernel_mutants.mutants()


def after(file, rule):
    return {
        mutant.after.strip() for mutant in MUTANTS if (mutant.file, mutant.rule) == (file, rule)
    }


def test_mutants_are_the_same_every_time_and_all_different():
    assert kernel_mutants.mutants() == MUTANTS
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.change) for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.before != mutant.after for mutant in MUTANTS)


def test_every_barrier_is_dropped():
    count = sum(
        path.read_text("ascii").count("_barrier(mem_flags")
        for path in kernel_mutants.METAL.glob("*.metal")
    )
    dropped = [mutant for mutant in MUTANTS if mutant.rule == "barrier"]
    assert len(dropped) == count > 0
    assert not any(mutant.after for mutant in dropped)


def test_every_condition_is_removed_and_inverted():
    for path in kernel_mutants.METAL.glob("*.metal"):
        for condition in re.findall(r"\bif \((.+)\) \{", path.read_text("ascii")):
            inverted = f"if (!({condition})) {{"
            assert any(inverted in line for line in after(path.name, "mask")), condition


def test_masks_and_bounds_of_stores_are_damaged_one_by_one():
    assert after("qmm.metal", "mask") >= {
        "if (true) {",
        "if (row < N) {",
        "if (token < M) {",
        "if (!(token < M && row < N)) {",
    }
    assert after("qmm.metal", "bound") >= {
        "if (token <= M && row < N) {",
        "if (token < M && row <= N) {",
        "for (uint block = 0; block < blocks - 1; block++) {",
    }
    assert after("hadamard.metal", "bound") >= {
        "const uint at = min(block, blocks) * 128u + lane * 4u;",
        "const uint at = min(block, blocks - 2u) * 128u + lane * 4u;",
    }
    assert "table[i + 1] = vec<E, 2>(E(centroids[first]), E(centroids[second]));" in after(
        "codes.metal", "index"
    )


@pytest.mark.parametrize(
    ("line", "condition"),
    [
        ("values = block < blocks ? a : b;", "block < blocks"),
        ("x * (BACK ? 1.0f : 2.0f);", "BACK"),
        ("v = (lane & uint(h)) != 0u ? a : b;", "(lane & uint(h)) != 0u"),
        ("words[word + 1 < B ? a : b]", "word + 1 < B"),
    ],
)
def test_the_condition_of_a_choice_is_found(line, condition):
    end = line.index(" ? ")
    assert line[kernel_mutants.start_of_choice(line, end) : end] == condition


def test_every_file_has_cases_that_are_tests():
    for path in kernel_mutants.METAL.glob("*.metal"):
        assert all(
            callable(getattr(test_kernels, f"test_{name}"))
            for name, _ in kernel_mutants.cases_for(path.name)
        )


def test_the_product_holds_every_kernel_and_can_be_run():
    cases = kernel_matrix.all_cases()
    names = [kernel_matrix.case_name(case) for case in cases]
    assert len(set(names)) == len(names)
    assert {kernel for kernel, _ in cases} == BODIES.keys() | {"geglu"}
    assert kernel_matrix.run_case(cases[-1])["fault"] == ""


def test_layers_are_of_every_width_when_asked():
    sample, full = (kernel_matrix.all_layers(is_full=is_full) for is_full in (False, True))
    assert set(sample) < set(full)
    assert len(full) == 8 * len(sample)


def run(items, path, ran, digest="a", limit=None):
    def once(item):
        ran.append(item)
        return {"name": item, "fault": ""}

    with ThreadPoolExecutor(1) as pool:
        return kernel_matrix.run_new(items, str, once, path, lambda _: digest, pool, limit)


def test_what_is_done_is_not_run_again(tmp_path):
    path, ran = tmp_path / "new" / "found.jsonl", []
    run(["one", "two"], path, ran)
    with path.open("a") as file:
        file.write('{"name": "thr')
    found = run(["one", "three", "two"], path, ran)
    assert ran == ["one", "two", "three"]
    assert [record["name"] for record in found] == ["one", "three", "two"]
    assert run(["three"], path, ran) == [found[1]]
    assert run(["four", "one"], path, ran, limit=0) == [found[0]]
    run(["one"], path, ran, digest="b")
    assert ran == ["one", "two", "three", "one"]


def test_survivors_have_to_be_explained():
    mutant, other = MUTANTS[:2]
    killed = {"name": mutant.name, "verdict": "killed", "by": "finding: RACE_THREADGROUP"}
    table, unexplained = kernel_matrix.kill_table([mutant, other], [killed])
    assert "| (removed) | finding: RACE_THREADGROUP |" in table
    assert "| (removed) | not run |" in table
    assert not unexplained
    survived = {"name": mutant.name, "verdict": "survived", "by": ""}
    _, unexplained = kernel_matrix.kill_table([mutant], [survived])
    assert unexplained == [f"{mutant.file}:{mutant.line}: {mutant.change}"]


def test_explanations_are_of_mutants_that_there_are():
    changes = {(mutant.file, mutant.change) for mutant in MUTANTS}
    assert kernel_matrix.explanations().keys() <= changes
