"""What the table of variants is computed from, on answers and scores made up here."""

from types import SimpleNamespace

import fidelity
import numpy as np
import pytest
from test_demo_senses_exam import make_data


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
