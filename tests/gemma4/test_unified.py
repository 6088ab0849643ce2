"""12B: its text model against transformers' own classes for it, and its config in our form."""

import mlx.core as mx
import numpy as np
import pytest
from oracle import TOLERANCE, array, config, fresh_model

from hlwq_mlx.errors import ConfigError
from hlwq_mlx.gemma4.config import Gemma4Config
from hlwq_mlx.gemma4.unified import as_gemma4, is_unserved

VISION_EMBEDDER = "model.vision_embedder.patch_dense.weight"


@pytest.mark.parametrize("cuts", [[], [13, 18], [5, 6], list(range(1, 22))])
def test_its_text_model_is_the_references(cuts):
    model = fresh_model("unshared", config("unified"))
    cache = model.make_cache()
    chunks = mx.split(mx.array(array("text_ids")), cuts, axis=1)
    logits = mx.concatenate([model(chunk, cache) for chunk in chunks], 1)
    np.testing.assert_allclose(
        np.array(logits), array("unified_text_logits"), rtol=0, atol=TOLERANCE
    )


def test_its_config_is_that_of_a_text_model_without_towers():
    args = Gemma4Config.from_dict(config("unified"))
    assert args.text_config == Gemma4Config.from_dict(config("unshared")).text_config
    assert args.towers == () and args.soft_token_ids == ()
    # Its tokens for media are still no answer's.
    assert set(args.media_token_ids) == set(range(300, 307))
    once = as_gemma4(config("unified"))
    assert as_gemma4(once) is once


def test_what_is_not_its_own_is_refused_or_left():
    settings = config("unified")
    settings["text_config"]["model_type"] = "gemma4_text"
    with pytest.raises(ConfigError, match=r"needed 'gemma4_unified_text' in a config of gemma4_un"):
        Gemma4Config.from_dict(settings)
    del settings["text_config"]
    with pytest.raises(ConfigError, match=r"needed key text_config, got none"):
        Gemma4Config.from_dict(settings)
    assert is_unserved(config("unified"), VISION_EMBEDDER)
    assert is_unserved(as_gemma4(config("unified")), VISION_EMBEDDER)
    assert not is_unserved(config("unshared"), VISION_EMBEDDER)
    assert not is_unserved(config("unified"), "model.language_model.norm.weight")
    assert np.abs(array("unified_text_logits")).max() > 1
