"""The image tower against transformers' features, every tensor of it, and its refusals."""

import mlx.core as mx
import numpy as np
import pytest
from oracle import config
from tower_oracle import (
    FEATURES,
    TOWER_VARIANTS,
    array,
    distance,
    disturbed,
    frames,
    images,
    tower,
    tower_weights,
)

from hlwq_mlx.errors import ShapeError
from hlwq_mlx.gemma4.towers.config import VisionConfig
from hlwq_mlx.gemma4.towers.vision import VisionTower, pool


def encode(made, pictures):
    """Features [n, H] of pictures that a tower and its embedder make."""
    encoder, embedder = made.model.vision_tower, made.model.embed_vision
    dtype = encoder.patch_embedder.position_embedding_table.dtype
    return mx.concatenate([embedder(encoder(*picture), dtype) for picture in pictures])


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
def test_features_match_the_reference(variant):
    made = tower(variant, "vision")
    assert distance(encode(made, images(variant)), array(variant, "image_features")) < FEATURES
    assert distance(encode(made, frames(variant)), array(variant, "video_features")) < FEATURES


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
def test_every_tensor_counts(variant):
    """A tensor that the tower ignored would leave the reference's features as they are."""
    seen, wanted = images(variant)[-1:], array(variant, "image_features")
    ignored = []
    for name in tower_weights(variant, "vision"):
        got = encode(disturbed(variant, "vision", name), seen)
        if distance(got, wanted[-len(got) :]) <= 50 * FEATURES:
            ignored.append(name)
    assert ignored == []


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
def test_the_order_of_patches_does_not_matter(variant):
    patches, positions = images(variant)[1]
    shuffled = mx.array(np.random.default_rng(0).permutation(len(patches)))
    encoder = tower(variant, "vision").model.vision_tower
    got = encoder(patches[shuffled], positions[shuffled])
    wanted = np.array(encoder(patches, positions))
    np.testing.assert_allclose(np.array(got), wanted, rtol=1e-5, atol=FEATURES)


def test_columns_are_not_rows():
    (patches, positions), _ = images("clipped")
    made = tower("clipped", "vision")
    got = encode(made, [(patches, positions[:, ::-1])])
    assert distance(got, array("clipped", "image_features")[:6]) > 0.1


@pytest.mark.parametrize("variant", TOWER_VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float16, 0.05), (mx.bfloat16, 0.2)])
def test_16_bit_features_are_close(variant, dtype, tolerance):
    got = encode(tower(variant, "vision", dtype), images(variant))
    assert got.dtype == dtype
    assert distance(got, array(variant, "image_features")) < tolerance


def test_float16_stays_finite_where_pooled_features_do_not_fit():
    made = tower("clipped", "vision", mx.float16)
    encoder = made.model.vision_tower
    encoder.encoder.layers = []
    encoder.patch_embedder.position_embedding_table = mx.full((2, 24, 48), 5000, mx.float16)
    pooled = encoder(*images("clipped")[0])
    assert pooled.dtype == mx.float32 and float(pooled.min()) > 65504
    assert np.isfinite(np.array(encode(made, images("clipped")))).all()


def test_pool_averages_cells_row_by_row():
    grid = np.array([(x, y) for y in range(2) for x in range(4)])
    values = mx.arange(8, dtype=mx.float16)[:, None]
    pooled = pool(values, grid, 2)
    assert pooled.dtype == mx.float32
    np.testing.assert_array_equal(np.array(pooled), [[2.5], [4.5]])


def test_e4b_widths_and_names():
    """The released shapes, which is all that can be told without the weights."""
    section = dict(config("clipped")["vision_config"])
    section |= {"patch_size": 16, "hidden_size": 768, "position_embedding_size": 10240}
    encoder = VisionTower(VisionConfig.from_dict(section))
    assert encoder.patch_embedder.input_proj.weight.shape == (768, 768)
    assert encoder.patch_embedder.position_embedding_table.shape == (2, 10240, 768)
    assert "std_bias" not in encoder


@pytest.mark.parametrize(
    ("shape", "got"), [((54, 47), r"\[54, 47\]"), ((48,), r"\[48\]"), ((0, 48), r"\[0, 48\]")]
)
def test_refuses_patches_of_another_shape(shape, got):
    encoder = tower("clipped", "vision").model.vision_tower
    with pytest.raises(
        ShapeError, match=rf"^\[vision.patches\] needed \[patches, 48\], got {got}\."
    ):
        encoder(mx.zeros(shape), images("clipped")[0][1])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p[:-1], r"needed integers \[54, 2\], got int64 \[53, 2\]"),
        (lambda p: p.astype(np.float32), r"needed integers \[54, 2\], got float32"),
        (lambda p: p + 1, r"got 54 patches on 10 x 7\."),
        (lambda p: np.where(p == 0, 1, p), r"needed each place once .* of 3 and at most 24, got"),
        (lambda p: np.where(np.arange(54)[:, None] < 53, p, -1), r"leave padding out"),
        (lambda p: np.stack([np.arange(54), np.zeros(54, int)], 1), r"got 54 patches on 54 x 1"),
        (lambda p: np.stack([np.arange(54) // 3, np.arange(54) % 3], 1) * 2, r"54 .* on 35 x 5"),
    ],
)
def test_refuses_positions_that_are_no_grid(edit, message):
    patches, positions = images("clipped")[0]
    encoder = tower("clipped", "vision").model.vision_tower
    with pytest.raises(ShapeError, match=rf"^\[vision.positions\] .*{message}"):
        encoder(patches, mx.array(edit(np.array(positions))))
