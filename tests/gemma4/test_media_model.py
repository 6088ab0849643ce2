"""Prompts with images, sounds and videos against transformers' logits, and how features are placed.

The variant `standard` stands before a text model in which image tokens see each other.
"""

from functools import cache
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from oracle import config, fresh_model
from tower_oracle import TOWER_VARIANTS, array, distance, features, media_model, tower

from hlwq_mlx.errors import CheckpointError, RequestError, ShapeError
from hlwq_mlx.gemma4.model import Model, ModelArgs

# Of logits up to 13.4, behind features that differ by 1.2e-5.
LOGITS = 5e-4
PROMPTS = {
    "image": ("images",),
    "audio": ("sounds",),
    "reverse": ("sounds",),
    "video": ("videos",),
    "all": ("images", "sounds", "videos"),
}


@cache
def ready(variant, dtype=mx.float32):
    """A model and what it makes of all inputs, made once for tests that change neither."""
    model = media_model(variant, dtype)
    return model, features(model, variant)


def prompt(variant, name, dtype=mx.float32):
    """A model, the ids [1, L] of a prompt, and its embeddings."""
    model, made = ready(variant, dtype)
    ids = mx.array(array(variant, f"{name}_ids"))[None]
    given = {kind: made[kind] for kind in PROMPTS[name]}
    if name in ("reverse", "all"):
        given["sounds"] = given["sounds"][::-1]
    return model, ids, model.embed_media(ids, **given)


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
@pytest.mark.parametrize("name", PROMPTS)
def test_logits_match_the_reference(variant, name):
    model, ids, embeddings = prompt(variant, name)
    logits = model(ids, input_embeddings=embeddings)
    assert distance(logits[0, -8:], array(variant, f"{name}_logits")) < LOGITS


def test_the_order_of_clips_shows():
    model, ids, _ = prompt("clipped", "audio")
    sounds = ready("clipped")[1]["sounds"][::-1]
    logits = model(ids, input_embeddings=model.embed_media(ids, sounds=sounds))
    assert distance(logits[0, -8:], array("clipped", "audio_logits")) > 1.0


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
def test_chunks_score_as_one_call_does(variant):
    """The cuts stand behind the first image, inside the text, and behind a clip."""
    model, ids, embeddings = prompt(variant, "all")
    cache = model.make_cache()
    cuts = [0, 10, 12, 34]
    for start, stop in pairwise(cuts):
        model.fill_cache(ids[:, start:stop], cache, embeddings[:, start:stop])
    logits = model.prefill(ids[:, cuts[-1] :], cache, embeddings[:, cuts[-1] :])
    assert distance(logits[0], array(variant, "all_logits")[-1:]) < LOGITS


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("variant", TOWER_VARIANTS)
def test_16_bit_logits_are_finite(variant, dtype):
    model, ids, embeddings = prompt(variant, "all", dtype)
    assert embeddings.dtype == dtype
    assert np.isfinite(np.array(model(ids, input_embeddings=embeddings))).all()


def test_features_are_placed_as_they_are_and_the_rest_is_text():
    model, _ = ready("clipped")
    ids = mx.array([[2, 300, 301, 9, 302, 300]])
    rows = {"image": mx.full((2, 64), 2.0), "audio": mx.ones((1, 64))}
    made = model.embed_media(
        ids,
        images=[rows["image"][:1], 3 * rows["image"][:1]],
        sounds=[rows["audio"]],
        videos=[7 * rows["audio"]],
    )
    plain = model.embed(ids)
    assert made[0, mx.array([1, 5, 2, 4]), 0].tolist() == [2.0, 6.0, 1.0, 7.0]
    text = mx.array([0, 3])
    assert mx.array_equal(made[:, text], plain[:, text])


def test_a_prompt_without_media_is_text():
    model, _ = ready("clipped")
    ids = mx.array([[2, 7, 9]])
    assert mx.array_equal(model.embed_media(ids), model.embed(ids))


@pytest.mark.parametrize(
    ("kind", "token", "argument"),
    [("image", 300, "images"), ("audio", 301, "sounds"), ("video", 302, "videos")],
)
@pytest.mark.parametrize(("needed", "got"), [(3, 2), (0, 2), (3, 0), (1, 2)])
def test_a_count_mismatch_is_refused(kind, token, argument, needed, got):
    model, _ = ready("clipped")
    ids = mx.array([[2, *[token] * needed, 9]])
    given = {argument: [mx.zeros((got, 64))]} if got else {}
    message = rf"^\[model.{kind}\] needed features for {needed} {kind} tokens .*, got {got}\."
    with pytest.raises(RequestError, match=message):
        model.embed_media(ids, **given)


@pytest.mark.parametrize("shape", [(1, 63), (64,), (1, 1, 64)])
def test_features_of_another_width_are_refused(shape):
    model, _ = ready("clipped")
    with pytest.raises(ShapeError, match=r"^\[model.image\] needed features \[n, 64\], got \["):
        model.embed_media(mx.array([[300]]), images=[mx.zeros(shape)])


def test_a_batch_is_refused():
    with pytest.raises(ShapeError, match=r"^\[model.inputs\] needed one prompt \[1, L\], got \[2"):
        ready("clipped")[0].embed_media(mx.array([[2], [2]]))


def test_a_tower_is_loaded_once_and_for_its_own_kind_alone():
    asked = []
    model = fresh_model(
        "clipped", load_tower=lambda kind: (asked.append(kind), tower("clipped", kind))[1]
    )
    model.embed_media(mx.array([[2]]))
    assert asked == []
    for _ in range(2):
        features(model, "clipped")
    assert asked == ["vision", "audio"]


def test_a_model_without_a_loader_says_so():
    bare = Model(ModelArgs.from_dict(config("clipped")))
    with pytest.raises(
        CheckpointError, match=r"^\[model.load_tower\] needed a loader of the audio"
    ):
        bare.audio_features(mx.zeros((4, 16)))


def test_a_model_without_towers_refuses_media():
    settings = config("clipped") | {"vision_config": None, "audio_config": None}
    bare = Model(ModelArgs.from_dict(settings))
    message = r"^\[model.audio_tower\] .* got none: this checkpoint has no audio tower\."
    with pytest.raises(RequestError, match=message):
        bare.audio_features(mx.zeros((4, 16)))
    with pytest.raises(RequestError, match=r"this checkpoint has no vision tower\."):
        bare.image_features(mx.zeros((9, 48)), mx.zeros((9, 2), mx.int32))
