"""What the server's benchmark and its stress run count."""

import pytest

from scripts.benchmarks import serve, stress_cases


def test_a_rate_is_that_of_the_time_when_all_streams_decode():
    early = serve.Heard(0.0, [1.0, 2.0, 3.0, 4.0], "")
    late = serve.Heard(0.0, [2.5, 3.5, 4.5, 5.5], "")
    assert serve.rate_of([early, late]) == pytest.approx(3 / 1.5)  # from 2.5 s to 4 s
    with pytest.raises(SystemExit, match="did not decode together"):
        serve.rate_of([early, serve.Heard(0.0, [9.0, 9.5], "")])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n', "a"),
        (b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n', ""),
        (b'data: {"choices": [], "usage": {}}\n', ""),
        (b": keepalive 1/2\n", ""),
        (b"data: [DONE]\n", ""),
    ],
)
def test_content_of_a_line(line, text):
    assert serve.content(line) == text


def heard(score=-1.0, **changed):
    return stress_cases.Heard(
        200, **{"text": "a", "count": 1, "end": "stop", **changed}, scores=[("a", score)]
    )


def test_answers_are_alike_but_for_rounding():
    assert heard().is_like(heard(-1.00005), 1e-4)
    assert not heard().is_like(heard(-1.001), 1e-4)
    for changed in ({"text": "b"}, {"count": 2}, {"end": "length"}):
        assert not heard().is_like(heard(**changed), 1e-4)
    shorter = stress_cases.Heard(200, "a", [], 1, "stop")
    assert not heard().is_like(shorter, 1e-4)
