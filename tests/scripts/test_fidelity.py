"""What the table of variants is computed from, on answers and scores made up here."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_demo_senses_exam import make_data

from hlwq_mlx.quant.codec import BEST_NORM
from hlwq_mlx.write.quantize import Encoder
from scripts.benchmarks import fidelity

README = Path(__file__).parents[2] / "scripts" / "README.md"


def test_media_that_are_fewer_than_asked_for_are_counted_as_they_are():
    subject = SimpleNamespace(
        answerer=lambda asked, limit: ["7"] * len(asked),
        media_answerer=lambda asked, limit: ["7"] * len(asked),
    )
    exact = fidelity.Exams(20, make_data()).sit(subject)
    assert exact["digits"] == exact["spoken"] == "1/10"
    assert exact["stories"] == "0/20"
    assert list(exact) == fidelity.Exams(20, make_data()).names()


def test_scores_equal_to_the_reference_diverge_by_nothing():
    texts = [[3, 1, 2], [0, 3]]
    even = [np.full((len(ids), 4), np.log(0.25), np.float32) for ids in texts]
    subject = SimpleNamespace(scores=lambda ids: even[texts.index(ids)])
    assert fidelity.compare(subject, texts, even) == pytest.approx((4, 0))


def test_divergence_is_from_the_reference_and_perplexity_of_the_next_token():
    scores = np.log(np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], np.float32))
    wanted = np.log(np.array([[0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]], np.float32))
    subject = SimpleNamespace(scores=lambda ids: scores)
    perplexity, divergence = fidelity.compare(subject, [[1, 0]], [wanted])
    assert perplexity == pytest.approx(2)
    assert divergence == pytest.approx(0.25 * np.log(0.5) + 0.5 * np.log(2))


def test_a_table_of_variants_says_how_they_are_coded(capsys):
    fidelity.print_table(iter(()), [], Encoder("converged", BEST_NORM))
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "Coded by the table converged, each block with a norm that fits its codes."


def test_what_the_card_says_stands_beside_what_was_found(capsys):
    found = {"bf16": 1.0, "PQ1": 0.7995, "PQ2-Mixed": 0.95, "PQ5, auto": 0.99}
    fidelity.print_beside_card(
        [fidelity.Row(name, cos_sim, 0, 1, 0, {}, 56, 100) for name, cos_sim in found.items()]
    )
    assert capsys.readouterr().out.splitlines()[3:5] == [
        "| PQ1 | 0.7995 | 0.7884 | +0.0111 | 56/100 | 0/3 |",
        "| PQ2-Mixed | 0.9500 | – | – | 56/100 | 1/3 |",
    ]


def test_the_table_beside_the_card_follows_from_the_table_of_variants(capsys):
    text = README.read_text()
    table = re.search(r"^\| variant \| .*\| digits \|(?s:.*?)\n\n", text, re.MULTILINE)[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:] if line]
    fidelity.print_beside_card(
        [
            fidelity.Row(
                name, float(cos_sim), 0, 1, 0, {}, *map(int, equal.removesuffix(" |").split("/"))
            )
            for name, cos_sim, *_, equal in lines
        ]
    )
    printed = capsys.readouterr().out.strip()
    assert len(printed.splitlines()) == 2 + len(lines) - 1 + 2  # bf16 is not in the card
    assert printed in text
