import io
import platform
import struct

import numpy as np
import pytest
from media_data import digest, inputs, references
from pairwise import in_turn
from PIL import Image, ImageCms

from hlwq_mlx.errors import RequestError
from hlwq_mlx.media.images import image_patches, read_image
from hlwq_mlx.media.pixels import decode, upright
from hlwq_mlx.media.processor import BUDGETS, ImageSettings


def grids(row):
    return ImageSettings(
        patch_size=row["patch_size"],
        pooling_kernel_size=row["pooling_kernel_size"],
        max_soft_tokens=row["max_soft_tokens"],
    )


ROWS = references("images")


@pytest.mark.parametrize("size", sorted({tuple(row["size"]) for row in ROWS}), ids=str)
def test_patches_equal_the_reference_to_the_bit(size):
    picture = inputs.picture(*size)
    for row in (row for row in ROWS if tuple(row["size"]) == size):
        found = image_patches(picture, grids(row))
        p = row["patch_size"]
        assert found.soft_tokens == row["soft_tokens"] <= row["max_soft_tokens"]
        assert found.patches.shape[1] == p * p * 3
        assert (found.patches.dtype, found.positions.dtype) == (np.float32, np.int32)
        assert digest(found.positions) == row["positions"]
        if platform.machine() == "x86_64":  # other machines may round a resized value otherwise
            assert digest(found.patches) == row["patches"]


def test_the_references_cover_every_budget():
    assert {row["max_soft_tokens"] for row in ROWS} >= set(BUDGETS)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def decoded(content):
    """Read a file in this process, which is the same and faster."""
    return upright(decode(io.BytesIO(content), "bytes"))


def colourful(mode="RGB", size=(40, 24)):
    return Image.fromarray(inputs.picture(size[1], size[0])).convert(mode)


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *((form, "RGB") for form in ("PNG", "BMP", "TIFF", "PPM", "TGA", "SGI", "PCX", "DIB")),
        *((form, "L") for form in ("PNG", "BMP", "TIFF", "PPM", "GIF")),
        *(("PNG", "1"), ("TIFF", "1"), ("PNG", "P"), ("GIF", "P"), ("TIFF", "CMYK")),
        *(("PNG", "LA"), ("PNG", "RGBA"), ("TIFF", "RGBA"), ("TGA", "RGBA")),
        *(("TIFF", "YCbCr"), ("WEBP", "RGB"), ("JPEG2000", "RGB"), ("QOI", "RGB")),
    ],
)
def test_lossless_formats_and_modes(form, mode):
    image = colourful(mode)
    options = {"lossless": True} if form == "WEBP" else {}
    options |= {"irreversible": False} if form == "JPEG2000" else {}
    assert np.array_equal(decoded(encoded(image, form, **options)), np.array(image.convert("RGB")))


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("AVIF", "RGB")],
)
def test_lossy_formats_come_close(form, mode):
    smooth = Image.linear_gradient("L").resize((40, 24)).convert(mode)
    found = decoded(encoded(smooth, form, quality=95)).astype(int)
    assert np.abs(found - np.array(smooth.convert("RGB"))).max() <= 6


def test_lab_is_converted():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    flat = Image.new("RGB", (8, 8), (200, 90, 30))
    lab = ImageCms.profileToProfile(flat, *profiles, outputMode="LAB")
    assert np.abs(decoded(encoded(lab, "TIFF")).astype(int) - (200, 90, 30)).max() <= 4


@pytest.mark.parametrize(
    ("orientation", "form"), in_turn(range(1, 9), ["JPEG", "PNG", "TIFF", "WEBP"])
)
def test_exif_orientation(orientation, form):
    # 3 = upside down, 6 = turn right to see it: what each leaves of a picture, by its definition.
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    halves = np.zeros((32, 48, 3), np.uint8)
    halves[:, 24:, 0] = halves[16:, :, 1] = 240
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(encoded(Image.fromarray(halves), form, exif=exif)).astype(int)
    expected = turn(halves)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 4


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_on_white(form):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = 255, 0, 0, 255
    pixels[0, 1] = 255, 0, 0, 0
    pixels[1, 0] = 0, 0, 0, 51
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    found = decoded(encoded(Image.fromarray(pixels), form, **options))
    assert found.tolist() == [[[255, 0, 0], [255] * 3], [[204] * 3, [255] * 3]]
    assert np.array_equal(read_image(pixels), found)


@pytest.mark.parametrize(("mode", "clear"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_colour_is_laid_on_white(mode, clear):
    image = Image.new(mode, (2, 1), clear)
    image.putpixel((1, 0), 0 if mode == "L" else (0, 0, 0))
    assert decoded(encoded(image, "PNG", transparency=clear)).tolist() == [[[255] * 3, [0] * 3]]


def test_deep_grey_is_scaled():
    deep = np.array([[0, 257, 65535, 32896]], np.uint16)
    assert decoded(encoded(Image.fromarray(deep), "PNG"))[0, :, 0].tolist() == [0, 1, 255, 128]
    unit = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert decoded(encoded(Image.fromarray(unit), "TIFF"))[0, :, 1].tolist() == [0, 128, 255]


def test_of_an_animation_the_first_picture_is_read():
    first, second = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    file = encoded(first, "GIF", save_all=True, append_images=[second])
    assert decoded(file)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (8000, 100), (1, 4000)])
def test_extreme_sizes(size):
    found = image_patches(decoded(encoded(colourful(size=size), "PNG")), ImageSettings())
    assert 0 < found.soft_tokens <= 280
    assert len(found.patches) == found.soft_tokens * 9


def test_arrays_and_pillow_images_pass():
    picture = inputs.picture(5, 7)
    assert np.array_equal(read_image(picture), picture)
    assert np.array_equal(read_image(picture / 255), picture)
    assert np.array_equal(read_image(Image.fromarray(picture)), picture)
    for grey in (picture[..., 0], picture[..., :1]):
        assert np.array_equal(read_image(grey), np.repeat(picture[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 4, 3), np.uint8), r"\[3, 4, 4, 3\]"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((0, 4), np.uint8), "4 x 0"),
        (np.full((2, 2), 7.0), "7.0"),
        (np.full((2, 2), np.nan), "nan"),
    ],
    ids=["rank", "type", "empty", "range", "nan"],
)
def test_arrays_that_are_no_image(array, message):
    with pytest.raises(RequestError, match=message):
        read_image(array)


def test_a_wrong_extension_does_not_matter(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(colourful(), "PNG"))
    assert np.array_equal(read_image(path), np.array(colourful()))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "AVIF"])
def test_truncated_files_give_one_clear_error(form):
    whole = encoded(colourful(size=(64, 48)), form)
    for tenths in range(1, 9):
        with pytest.raises(RequestError, match=r"\[bytes\] needed an image that Pillow reads"):
            decoded(whole[: len(whole) * tenths // 10])


@pytest.mark.parametrize("content", [b"\0", b"hello, I am text", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"picture\.png\] needed an image"):
        read_image(path)


def test_eps_is_never_run():
    with pytest.raises(RequestError, match="EPS, which is a program"):
        decoded(encoded(colourful(), "EPS"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9500, 13_500])
def test_a_decompression_bomb_is_refused_unopened(side):
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(RequestError, match=r"49,285,714 pixels|exceeds limit of 49285714 pixels"):
        read_image(bomb)


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_an_icon_is_as_large_as_the_picture_in_it():
    png = encoded(Image.new("1", (1, 65_536)), "PNG")
    entry = struct.pack("<4B2H2I", 16, 16, 0, 0, 1, 32, len(png), 22)
    with pytest.raises(RequestError, match="sides of at most 65,535, got 1 x 65536"):
        decoded(struct.pack("<3H", 0, 1, 1) + entry + png)


def test_a_jpeg_that_is_too_large_is_read_at_half_its_size():
    found = decoded(encoded(Image.linear_gradient("L").resize((8_000, 7_000)), "JPEG"))
    assert found.shape == (3_500, 4_000, 3)
    assert (int(found[0, 0, 0]), int(found[-1, 0, 0])) == (0, 255)


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
def test_a_stroke_is_refused_before_it_is_resized(size):
    stroke = Image.new("1", size)
    for origin in (encoded(stroke, "PNG"), stroke, np.zeros(size[::-1], np.uint8)):
        with pytest.raises(RequestError, match=f"sides of at most 65,535, got {size[0]} x"):
            read_image(origin)


def test_a_budget_is_one_of_the_five_or_the_files_own():
    picture = inputs.picture(60, 80)
    assert image_patches(picture, ImageSettings(), 70).soft_tokens <= 70
    tiny = ImageSettings(patch_size=4, pooling_kernel_size=2, max_soft_tokens=16)
    assert image_patches(picture, tiny, 16).soft_tokens <= 16
    with pytest.raises(RequestError, match="70, 140, 280, 560, 1120, got 16"):
        image_patches(picture, ImageSettings(), 16)
