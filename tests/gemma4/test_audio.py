"""The sound tower against transformers' features, every tensor of it, and its refusals."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from oracle import config
from tower_oracle import (
    FEATURES,
    TOWER_VARIANTS,
    array,
    clips,
    distance,
    disturbed,
    tower,
    tower_weights,
)

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.gemma4.towers.audio import bounded, sinusoids
from hlwq_mlx.gemma4.towers.config import AudioConfig


def encode(made, sounds):
    """Features [n, H] of clips that a tower and its embedder make."""
    encoder, embedder = made.model.audio_tower, made.model.embed_audio
    dtype = encoder.output_proj.bias.dtype
    return mx.concatenate([embedder(encoder(clip), dtype) for clip in sounds])


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
def test_features_match_the_reference_in_both_orders(variant):
    made = tower(variant, "audio")
    long, short = clips(variant)
    assert distance(encode(made, [long, short]), array(variant, "audio_features")) < FEATURES
    assert distance(encode(made, [short, long]), array(variant, "reverse_features")) < FEATURES


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
def test_every_tensor_counts(variant):
    """A tensor that the tower ignored would leave the reference's features as they are."""
    seen, wanted = clips(variant)[-1:], array(variant, "audio_features")
    ignored = []
    for name in tower_weights(variant, "audio"):
        got = encode(disturbed(variant, "audio", name), seen)
        if distance(got, wanted[-len(got) :]) <= 50 * FEATURES:
            ignored.append(name)
    assert ignored == []


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
def test_a_frame_does_not_depend_on_later_ones(variant):
    """Than its own four, that is."""
    encoder = tower(variant, "audio").model.audio_tower
    clip = clips(variant)[0]
    whole, part, short = encoder(clip), encoder(clip[:24]), encoder(clip[:23])
    assert distance(part, np.array(whole[:6])) < FEATURES
    assert distance(short[:5], np.array(whole[:5])) < FEATURES
    assert distance(short[5:], np.array(whole[5:6])) > 50 * FEATURES


@pytest.mark.parametrize("frames", range(1, 10))
def test_four_frames_make_a_feature(frames):
    made = tower("clipped", "audio").model.audio_tower(mx.ones((frames, 16)))
    assert made.shape == (-(-frames // 4), 24)


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float16, 0.05), (mx.bfloat16, 0.2)])
def test_16_bit_features_are_close(variant, dtype, tolerance):
    got = encode(tower(variant, "audio", dtype), clips(variant))
    assert got.dtype == dtype
    assert distance(got, array(variant, "audio_features")) < tolerance


def test_float16_stays_finite_where_a_layer_does_not_fit():
    made = tower("standard", "audio", mx.float16)
    for layer in made.model.audio_tower.layers:
        for wide in (layer.feed_forward1.ffw_layer_2.linear, layer.lconv1d.depthwise_conv1d):
            wide.weight = wide.weight * 30_000
    inner = made.model.audio_tower.layers[0].feed_forward1.ffw_layer_2
    assert not np.isfinite(np.array(inner(mx.full((1, 96), 8, mx.float16)))).all()
    assert np.isfinite(np.array(encode(made, clips("standard")))).all()


def test_bounded_stops_at_the_ends_of_the_dtype():
    x = mx.array([-mx.inf, 3.0, mx.inf])
    assert bounded(x, 1e10).tolist() == [-1e10, 3.0, 1e10]
    assert bounded(x.astype(mx.float16), 1e10).tolist() == [-65504.0, 3.0, 65504.0]
    assert bounded(x.astype(mx.float16), 2.0).tolist() == [-2.0, 2.0, 2.0]


def test_sinusoids_count_from_half_of_the_context():
    """As the reference's chunks do: at their published sizes the distance is the row's number."""
    published = dataclasses.replace(
        AudioConfig.from_dict(config("clipped")["audio_config"]),
        **{"attention_chunk_size": 12, "attention_context_left": 13},
    )
    table = np.array(sinusoids(published))
    assert table.shape == (12, 32)
    np.testing.assert_allclose(table[:, 0], np.sin(np.arange(12)), atol=1e-6)
    np.testing.assert_allclose(table[:, 16], np.cos(np.arange(12)), atol=1e-6)
    short = np.array(sinusoids(dataclasses.replace(published, attention_chunk_size=9)))
    np.testing.assert_array_equal(short[:2], 0)
    np.testing.assert_array_equal(short[2:], table[:-2])


@pytest.mark.parametrize("shape", [(5, 12), (5, 17), (5,), (0, 16), (1, 5, 16)])
def test_refuses_frames_of_another_shape(shape):
    encoder = tower("clipped", "audio").model.audio_tower
    with pytest.raises(ShapeError, match=r"^\[audio.mel\] needed \[frames, 13 to 16\], got \["):
        encoder(mx.zeros(shape))
