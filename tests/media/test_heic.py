import io

import numpy as np
import pytest
from heic_files import Heic, mirrored, turned
from media_data import FOLDER
from PIL import Image

from hlwq_mlx.errors import RequestError
from hlwq_mlx.media.images import read_image
from hlwq_mlx.media.pixels import decode, upright


def decoded(content):
    """Read a file in this process, which is the same and faster."""
    return upright(decode(io.BytesIO(content), "bytes"))


def smooth(h=160, w=240):
    """A picture that looks different from every side."""
    y, x = np.mgrid[:h, :w]
    return np.stack([x * 255 // w, y * 255 // h, np.full_like(x, 90)], -1).astype(np.uint8)


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def close(found, expected):
    return found.shape == expected.shape and np.abs(found - expected.astype(int)).mean() < 3


@pytest.mark.parametrize("size", [(128, 192), (150, 230)], ids=["whole tiles", "cut tiles"])
def test_tiles_are_joined(size):
    heic = Heic()
    picture = smooth(*size)
    assert close(decoded(heic.file(heic.add_grid(picture, 64))), picture)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        ((), lambda a: a),
        ((turned(1),), lambda a: np.rot90(a, 1)),
        ((turned(3),), lambda a: np.rot90(a, 3)),
        ((mirrored(1),), lambda a: a[:, ::-1]),
        ((turned(2), mirrored(0)), lambda a: np.rot90(a, 2)[::-1]),
    ],
    ids=["straight", "left", "right", "mirror", "both"],
)
def test_a_turn_is_made_once_whatever_its_exif_says(turns, shown, orientation):
    """Phones write the turn as a property, and again into Exif."""
    heic = Heic()
    picture = smooth(128, 192)
    item = heic.add_grid(picture, 64, *turns)
    heic.add_exif(exif(orientation), item)
    assert close(decoded(heic.file(item)), shown(picture))


@pytest.mark.parametrize("primary", [0, 1, 2])
def test_of_several_images_the_primary_one_is_read(primary):
    heic = Heic()
    shades = [np.full((64, 64, 3), shade, np.uint8) for shade in (40, 120, 200)]
    items = heic.add_pictures(shades)
    assert close(decoded(heic.file(items[primary])), shades[primary])


def test_a_photo_is_read_in_its_own_process():
    found = read_image(FOLDER / "photo.heic")
    assert found.shape == (480, 640, 3)
    assert len(np.unique(found.reshape(-1, 3), axis=0)) > 100


def test_too_many_pixels_are_refused_undecoded():
    heic = Heic()
    tiles = heic.add_pictures([smooth(64, 64)] * 4)
    grid = heic.join(tiles, 2, 2, 9_000, 9_000)
    with pytest.raises(RequestError, match=r"needed 1 to 49,285,714 pixels .* got 9000 x 9000"):
        decoded(heic.file(grid))


@pytest.mark.parametrize("tenths", range(1, 10, 2))
def test_truncated_files_give_one_clear_error(tenths):
    heic = Heic()
    whole = heic.file(heic.add_grid(smooth(), 64))
    with pytest.raises(RequestError, match=r"\[bytes\] needed an image that Pillow reads"):
        decoded(whole[: len(whole) * tenths // 10])
