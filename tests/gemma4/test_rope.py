"""Rotary embedding against its formula in float64, for both layer types."""

import mlx.core as mx
import numpy as np
import pytest

from hlwq_mlx.gemma4.config import RopeConfig
from hlwq_mlx.gemma4.rope import rotate, wavelengths

SLIDING = RopeConfig(rope_theta=1e4, partial_rotary_factor=1.0)
FULL = RopeConfig(rope_theta=1e6, partial_rotary_factor=0.25)


def rotated(x, theta, angles, positions):
    """The half-split rotation of x [.., L, D] whose first `angles` frequencies turn, in float64."""
    D = x.shape[-1]
    frequency = np.concatenate([theta ** (-2 * np.arange(angles) / D), np.zeros(D // 2 - angles)])
    angle = np.asarray(positions)[:, None] * frequency
    first, second = x[..., : D // 2].astype(np.float64), x[..., D // 2 :].astype(np.float64)
    return np.concatenate(
        [
            first * np.cos(angle) - second * np.sin(angle),
            second * np.cos(angle) + first * np.sin(angle),
        ],
        -1,
    )


@pytest.mark.parametrize(
    ("rope", "D", "angles"),
    [(SLIDING, 16, 8), (SLIDING, 256, 128), (FULL, 32, 4), (FULL, 512, 64)],
)
@pytest.mark.parametrize("offset", [0, 1, 511])
def test_rotate_follows_the_formula(rope, D, angles, offset):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, D)).astype(np.float32)
    wanted = rotated(x, rope.rope_theta, angles, np.arange(offset, offset + 5))
    got = rotate(mx.array(x), wavelengths(rope, D), offset)
    # Half a float32 ulp of the angle, then of the result.
    np.testing.assert_allclose(np.array(got), wanted, rtol=0, atol=1e-6 + 4 * offset * 2**-24)


@pytest.mark.parametrize(("rope", "D", "angles"), [(SLIDING, 256, 128), (FULL, 512, 64)])
def test_rotate_holds_at_the_end_of_the_context(rope, D, angles):
    x = np.random.default_rng(1).normal(size=(1, 1, 2, D)).astype(np.float32)
    wanted = rotated(x, rope.rope_theta, angles, [131070, 131071])
    got = rotate(mx.array(x), wavelengths(rope, D), 131070)
    # An angle of 131071 has an ulp of 2**-7 in float32, as it has in the reference.
    np.testing.assert_allclose(np.array(got), wanted, rtol=0, atol=4 * 2**-7)


def test_full_layers_turn_the_first_quarter_of_each_half_only():
    x = mx.random.normal((1, 1, 1, 512), key=mx.random.key(0))
    changed = np.array(rotate(x, wavelengths(FULL, 512), 7) != x)[0, 0, 0]
    assert set(np.flatnonzero(changed)) == {*range(64), *range(256, 320)}


def test_wavelengths_are_powers_over_the_whole_head_then_infinite():
    waves = np.array(wavelengths(FULL, 512))
    assert waves.shape == (256,)
    np.testing.assert_array_equal(waves[:64], (1e6 ** (np.arange(64) / 256)).astype(np.float32))
    assert np.isinf(waves[64:]).all()


def test_sequences_rotate_by_their_own_offsets():
    x = mx.random.normal((2, 3, 4, 32), key=mx.random.key(0))
    waves = wavelengths(FULL, 32)
    together = rotate(x, waves, mx.array([3, 9]))
    alone = mx.concatenate([rotate(x[:1], waves, 3), rotate(x[1:], waves, 9)])
    np.testing.assert_array_equal(np.array(together), np.array(alone))


def test_scores_depend_on_distance_alone():
    q, k = mx.random.normal((2, 1, 1, 1, 256), key=mx.random.key(2))
    waves = wavelengths(SLIDING, 256)
    near = (rotate(q, waves, 11) * rotate(k, waves, 4)).sum().item()
    far = (rotate(q, waves, 111) * rotate(k, waves, 104)).sum().item()
    assert abs(near - far) < 2e-4
