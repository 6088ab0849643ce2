"""Pictures and sounds that the references were computed from, made the same way on any machine."""

import numpy as np

# (height, width)
IMAGE_SIZES = (
    *((1, 1), (1, 2), (3, 1), (2, 500), (777, 1), (20, 20), (33, 47), (48, 48), (80, 100)),
    *((480, 640), (672, 912), (1080, 1920), (3000, 200), (100, 8000), (8000, 100), (1, 3000)),
)
# What a tiny model's processor file may hold: (patch_size, pooling_kernel_size, max_soft_tokens)
SMALL_GRIDS = ((4, 2, 16), (4, 3, 9), (8, 2, 25), (2, 1, 7))
SMALL_SIZES = ((1, 1), (1, 90), (28, 28), (32, 32), (64, 64), (72, 40), (99, 30), (200, 300))
SOUND_LENGTHS = (
    *(161, 162, 319, 320, 321, 480, 481, 800, 801, 1000, 5000, 9000, 16_000, 16_001),
    *(16_159, 16_160, 16_161, 31_999, 100_000, 479_999, 480_000, 480_001),
)
# (frames in the file, num_frames, frames per second)
VIDEO_LENGTHS = (
    *((32, 32, 24.0), (33, 32, 30.0), (100, 32, 25.0), (240, 32, 23.976), (7201, 32, 29.97)),
    *((200_000, 32, 30.0), (50, 4, 10.0), (4, 4, 2.0), (7, 3, 1.0)),
)
# Films: (height, width, patch_size, pooling_kernel_size, max_soft_tokens); the third fits as it is.
CLIPS = (
    *((90, 160, 16, 3, 70), (480, 640, 16, 3, 70), (336, 480, 16, 3, 70), (720, 1280, 16, 3, 70)),
    *((33, 47, 16, 3, 140), (28, 28, 4, 2, 16), (200, 300, 4, 3, 9)),
)


def noise(count, seed):
    """Return `count` integers in 0..255 from a linear congruence, the same for every numpy."""
    state = np.arange(seed, seed + count, dtype=np.uint64)
    for _ in range(3):
        state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        state ^= state >> np.uint64(33)
    return (state >> np.uint64(24)) & np.uint64(255)


def picture(height, width):
    """A gradient with noise and hard edges: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), x ^ y], -1) % 256
    speckle = noise(height * width * 3, height * 10_000 + width).reshape(height, width, 3)
    return ((3 * ramp + speckle.astype(np.int64)) // 4).astype(np.uint8)


def film(height, width):
    """A picture, and the same moved to the side: uint8 [2, height, width, 3]."""
    first = picture(height, width)
    return np.stack([first, np.roll(first, 5, axis=1)])


def samples(length):
    """Noise that swells and falls silent: float32 [length] in -1..1."""
    time = np.arange(length)
    loudness = np.where((time // 4000) % 3 == 2, 0.0, (time % 8000) / 8000)
    return ((noise(length, 7).astype(np.float64) / 127.5 - 1) * loudness).astype(np.float32)
