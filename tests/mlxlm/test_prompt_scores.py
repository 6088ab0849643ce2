"""The scores of a prompt, which mlx-lm asks for and drops, cost nothing until they are read."""

import demo
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

import hlwq_mlx  # noqa: F401 - mlx-lm loads our folders from here on
from hlwq_mlx.mlxlm import model as stock
from hlwq_mlx.quant.backends.native.library import Library, native_library


def test_a_long_prompt_is_scored_only_for_who_looks(monkeypatch):
    if native_library() is None:
        pytest.skip("needs the native library")
    model, _ = mlx_lm.load(str(demo.folder()))
    vocabulary = model.args.text_config.vocab_size
    rows = []
    multiply = Library.multiply

    def counted(self, weight, x, **options):
        if weight.rows == vocabulary:
            rows.append(len(x))
        return multiply(self, weight, x, **options)

    monkeypatch.setattr(Library, "multiply", counted)
    ids = mx.array([[*range(7, 7 + stock.MOST_LOOKED_AT + 9)]])
    cache = model.make_cache()
    scores = model(ids, cache=cache)
    mx.eval([entry.state for entry in cache])
    assert rows == []
    one_by_one = [model(ids[:, :end])[:, -1] for end in (1, 2, 20)]
    assert rows == [1, 2, 20]
    for end, own in zip((1, 2, 20), one_by_one, strict=True):
        assert np.abs(np.array(scores[:, end - 1] - own))[np.isfinite(own)].max() < 1e-4
