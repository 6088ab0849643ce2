"""The drafter against transformers' drafts, and what its config may not be."""

from copy import deepcopy

import drafters
import mlx.core as mx
import numpy as np
import pytest
from drafters import HEADS, reference, settings
from oracle import TOLERANCE, array, model

from hlwq_mlx.engine.draft import Seen
from hlwq_mlx.engine.mtp import ModelDrafter
from hlwq_mlx.errors import CheckpointError, ConfigError
from hlwq_mlx.gemma4.attention import SharedKV
from hlwq_mlx.gemma4.config import FULL, SLIDING
from hlwq_mlx.gemma4.drafter_config import DrafterConfig, require_fit

IDS = array("text_ids")[0]
WINDOW, DRAFTS = 6, 4
SEEN_BY_REFERENCE = WINDOW + 1  # keys of a prompt that transformers shows a sliding layer
HOSTILE = (0, -1, 10**30, 1.5, float("nan"), True, "7", [], {})


def behind(length):
    """The model's caches, its last state and the token it chooses behind a prompt."""
    target = model()
    caches = target.make_cache()
    begun = target.run(target.start(mx.array(IDS[None, :length]), caches))
    text = target.model.language_model
    state = text.run_shared_layers(begun.x, begun.per_layer, begun.shared)[:, -1:]
    return begun.shared, caches, state, int(mx.argmax(text.logits(state)))


def in_vocabulary(scores, vocab_size):
    """Scores as transformers returns them: 1 below the least where there is none."""
    values = np.array(scores.values)[0, 0]
    if scores.ids is None:
        return values
    whole = np.full(vocab_size, values.min() - 1)
    whole[np.array(scores.ids)[0, 0]] = values
    return whole


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("seen", ["window", "all"])
@pytest.mark.parametrize("length", [4, 22])
def test_drafts_match_the_reference(head, seen, length):
    shared, _, state, token = behind(length)
    drafter, text = drafters.drafter(head), model().model.language_model
    wanted = {k: reference()[f"{head}_{length}_{seen}_{k}"] for k in ("tokens", "logits", "states")}
    kept = {SLIDING: WINDOW - 1 if seen == "window" else SEEN_BY_REFERENCE, FULL: length}
    shared = {
        kind: SharedKV(
            kv.keys[:, :, -kept[kind] :], kv.values[:, :, -kept[kind] :], None, length, None
        )
        for kind, kv in shared.items()
    }
    for step in range(DRAFTS):
        scores, made = drafter(text.embed(mx.array([[token]])), state, shared)
        token = int(scores.likeliest())
        got = in_vocabulary(scores, len(wanted["logits"][step]))
        np.testing.assert_allclose(got, wanted["logits"][step], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(
            np.array(made)[0, 0], wanted["states"][step], rtol=0, atol=TOLERANCE
        )
        assert token == wanted["tokens"][step]
        state = mx.array(wanted["states"][step][None, None])  # or rounding would add up


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("length", [4, 22])
def test_a_model_drafter_reads_the_caches(head, length):
    _, caches, state, token = behind(length)
    made = ModelDrafter(model(), drafters.drafter(head))
    seen = Seen(np.array([*IDS[:length], token]), caches, state)
    drafts = made.draft(seen, DRAFTS)
    assert np.array(drafts).tolist() == reference()[f"{head}_{length}_window_tokens"].tolist()
    assert np.array(made.draft(seen, 2)).tolist() == np.array(drafts)[:2].tolist()
    assert len(made.draft(seen._replace(hidden=None), DRAFTS)) == 0


def changed(key, value):
    """The drafter's config.json with a key of it, or of its text section, changed."""
    found = deepcopy(settings())
    section = found if key in found else found["text_config"]
    section[key] = value
    return found


NUMBERS = [
    *("backbone_hidden_size", "num_centroids", "centroid_intermediate_top_k"),
    *("hidden_size", "vocab_size", "num_hidden_layers", "num_kv_shared_layers"),
]


@pytest.mark.parametrize("key", NUMBERS)
def test_hostile_numbers_are_refused_by_name(key):
    taken = []
    for value in HOSTILE:
        try:
            taken.append(DrafterConfig.from_dict(changed(key, value)))
        except ConfigError as refusal:
            assert key in str(refusal) or "layer_types" in str(refusal), refusal
            assert len(str(refusal).splitlines()) == 1
    # 0 is what transformers takes for "all of them".
    assert len(taken) == (1 if key == "num_kv_shared_layers" else 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gemma4"),
        ("use_ordered_embeddings", 1),
        ("num_centroids", 17),
        ("centroid_intermediate_top_k", 17),
        ("num_kv_shared_layers", 3),
        ("hidden_size_per_layer_input", 8),
        ("use_double_wide_mlp", True),
        ("text_config", None),
        ("attention_bias", True),
    ],
)
def test_what_no_drafter_has_is_refused(key, value):
    found = changed(key, value)
    if key == "hidden_size_per_layer_input":
        found["text_config"]["vocab_size_per_layer_input"] = 320
    with pytest.raises(ConfigError, match=key):
        DrafterConfig.from_dict(found)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("backbone_hidden_size", 128, "backbone_hidden_size"),
        ("vocab_size", 640, "vocab_size"),
        ("sliding_window", 5, "sliding_window"),
        ("head_dim", 8, "head_dim"),
        ("num_attention_heads", 3, "num_attention_heads"),
    ],
)
def test_a_drafter_of_another_model_is_refused(key, value, fault):
    found = changed(key, value)
    found["text_config"]["num_key_value_heads"] = 1
    with pytest.raises(CheckpointError, match=fault):
        require_fit(DrafterConfig.from_dict(found), model().args.text_config)
