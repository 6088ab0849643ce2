"""Convert image files to rows of RGB in strips, so that there is one whole copy of the picture.

Pillow decodes and converts colours; libheif does so for HEIC. Arrays, and which process decodes,
are in images.py. Letters: h, w = height and width in pixels, n = rows of a strip.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import RequestError

Pixels = npt.NDArray[np.uint8]

MAX_SIDE = 65_535  # JPEG's; resizing a long stroke of few pixels would take gigabytes
STRIP_PIXELS = 1 << 19
# What a picture may take in all: its decoder's bytes, and the 3 of each pixel that are handed on.
PICTURE_BYTES = 345_000_000
# Bytes that a format's decoder holds of each pixel, measured; most hold Pillow's picture alone.
DECODER_BYTES = {"WEBP": 17, "JPEG2000": 20, "AVIF": 10, "TIFF": 8}
PILLOW_BYTES = 4
COEFFICIENT_BYTES = 2
JPEG_BYTES = 290_000_000  # of a progressive one, while it is decoded
# What Pillow and libheif raise for broken files, depending on the format.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError),
    *(AttributeError, RuntimeError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
# For each EXIF orientation, the view of an upright picture whose rows are the file's.
AS_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda whole: whole,
    2: lambda whole: whole[:, ::-1],
    3: lambda whole: whole[::-1, ::-1],
    4: lambda whole: whole[::-1],
    5: lambda whole: whole.swapaxes(0, 1),
    6: lambda whole: whole.swapaxes(0, 1)[::-1],
    7: lambda whole: whole.swapaxes(0, 1)[::-1, ::-1],
    8: lambda whole: whole.swapaxes(0, 1)[:, ::-1],
}


class Picture(NamedTuple):
    """A decoded image as it lies in its file: strips uint8 [n, w, 3] from the top, h rows in all.

    `orientation` is EXIF's: how the rows have to be turned for a person.
    """

    h: int
    w: int
    orientation: int
    strips: Iterable[Pixels]


def check_pixels(h: int, w: int, where: str, form: str | None = None) -> None:
    """Raise RequestError for a picture that would fill the memory, or has no pixels.

    `form` is the format that it is decoded from, as Pillow calls it.
    """
    most = most_pixels(form)
    if not 0 < h * w <= most or max(h, w) > MAX_SIDE:
        raise RequestError(
            f"[{where}] needed 1 to {most:,} pixels and sides of at most {MAX_SIDE:,}, got "
            f"{w} x {h}. Send a smaller image."
        )


def most_pixels(form: str | None) -> int:
    """Return how many pixels a picture of a format may have."""
    return PICTURE_BYTES // (DECODER_BYTES.get(form or "", PILLOW_BYTES) + 3)


def limit_opening(file: BinaryIO) -> None:
    """Bound what Pillow's plugins allocate while they open a file, for this process."""
    start = file.read(4)
    file.seek(0)
    is_jpeg = start.startswith(b"\xff\xd8")  # which is decoded at a smaller size
    most = most_pixels("WEBP" if start == b"RIFF" else None)
    Image.MAX_IMAGE_PIXELS = None if is_jpeg else most // 2  # Pillow refuses twice as many


def decode(file: BinaryIO, where: str) -> Picture:
    """Decode the image that a person sees first: an animation's first, a HEIC file's primary one.

    A JPEG that is too large is decoded at a half, a quarter or an eighth of its size.
    Raises: RequestError, here or when the strips are taken, when it is no image, broken, or larger
    than `most_pixels` or MAX_SIDE.
    """
    with _wrapped(where):
        file.seek(0)
        picture = _heic(file, where) if _is_heic(file) else _pillow(file, where)
    return picture._replace(strips=_guarded(picture.strips, where))


def of_image(image: Image.Image) -> Picture:
    """Return a picture that Pillow has decoded, put on white; deep grey is scaled to 8 bits."""
    turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    strips = _grey(image) if image.mode[0] in "IF" else map(rgb, _parts(image))
    return Picture(image.height, image.width, turn if turn in AS_STORED else 1, strips)


def upright(picture: Picture) -> Pixels:
    """Return the whole picture as a person sees it: uint8 [rows, columns, 3]."""
    h, w, orientation, strips = picture
    whole = np.empty((h, w, 3) if orientation < 5 else (w, h, 3), np.uint8)
    rows = AS_STORED[orientation](whole)
    top = 0
    for strip in strips:
        rows[top : top + len(strip)] = strip
        top += len(strip)
    return whole


def rgb(image: Image.Image) -> Pixels:
    """Convert a picture of 8 bits to RGB; transparent pixels are put on white."""
    if not {"A", "a"}.isdisjoint(image.getbands()) or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"))


@contextmanager
def _wrapped(where: str) -> Iterator[None]:
    try:
        yield
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        got = str(error).partition(", could")[0]
        raise RequestError(
            f"[{where}] needed a picture of fewer pixels, got: {got}. Send a smaller image."
        ) from error
    except BROKEN as error:
        is_unknown = isinstance(error, UnidentifiedImageError)
        raise RequestError(
            f"[{where}] needed an image that Pillow reads, got: "
            f"{'a format that it does not know' if is_unknown else str(error).rstrip('.')}. "
            "Check that it is an image and whole."
        ) from error


def _guarded(strips: Iterable[Pixels], where: str) -> Iterator[Pixels]:
    with _wrapped(where):
        yield from strips


def _is_heic(file: BinaryIO) -> bool:
    size, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
    brands = file.read(min(size, 256) - 8) if kind == b"ftyp" and size > 8 else b""
    file.seek(0)
    return not HEIC_BRANDS.isdisjoint(brands[at : at + 4] for at in range(0, len(brands), 4))


def _heic(file: BinaryIO, where: str) -> Picture:
    """Decode HEIC; libheif joins tiles and turns the picture, so Exif must not turn it again."""
    import pi_heif  # late, since other formats need no second codec library in memory

    _check_boxes(file)
    images = pi_heif.open_heif(file)
    image = images[images.primary_index]
    w, h = image.size
    check_pixels(h, w, where)
    image.load()
    w, h = image.size  # what was decoded
    check_pixels(h, w, where)
    return Picture(h, w, 1, _heic_strips(image))


def _check_boxes(file: BinaryIO) -> None:
    """Raise EOFError for a file that is cut off: libheif would leave out the missing tiles."""
    end, start = file.seek(0, io.SEEK_END), 0
    while start < end:
        file.seek(start)
        size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        size = large if size == 1 else size or end - start
        start += max(size, 8)
    if start > end:
        raise EOFError(f"the file ends within its box {kind!r}")
    file.seek(0)


def _heic_strips(image: Any) -> Iterator[Pixels]:
    w, h = image.size
    n = max(1, STRIP_PIXELS // w)
    for y in range(0, h, n):
        size = (w, min(n, h - y))
        rows = image.data[y * image.stride : (y + size[1]) * image.stride]
        yield rgb(Image.frombytes(image.mode, size, rows, "raw", image.mode, image.stride))


def _pillow(file: BinaryIO, where: str) -> Picture:
    image = Image.open(file)
    if image.format in ("JPEG", "MPO"):
        _shrink(image)
    check_pixels(image.height, image.width, where, image.format)
    if image.format == "EPS":
        raise RequestError(
            f"[{where}] needed a picture made of pixels, got EPS, which is a program. "
            "Convert it first."
        )
    image.load()
    check_pixels(image.height, image.width, where)  # an icon may hold more than it says
    return of_image(image)


def _shrink(image: Any) -> None:
    """Choose the largest size at which a JPEG fits into memory: the whole, 1/2, 1/4 or 1/8.

    The decoder of a progressive JPEG also holds all coefficients, at any size.
    """
    w, h = image.size
    factors = [(across, down) for _, across, down, _ in image.layer]
    largest = max(across for across, _ in factors) * max(down for _, down in factors)
    per_pixel = COEFFICIENT_BYTES * sum(across * down for across, down in factors) / largest
    held = w * h * per_pixel if "progressive" in image.info else 0
    for scale in (1, 2, 4, 8):
        pixels = w * h / scale**2
        if pixels <= most_pixels("JPEG") and held + pixels * PILLOW_BYTES <= JPEG_BYTES:
            image.draft(None, (w // scale, h // scale))
            return


def _parts(image: Image.Image) -> Iterator[Image.Image]:
    n = max(1, STRIP_PIXELS // image.width)
    for y in range(0, image.height, n):
        yield image.crop((0, y, image.width, min(y + n, image.height)))


def _grey(image: Image.Image) -> Iterator[Pixels]:
    """Scale deep grey values to 8 bits, guessing their full scale from the largest."""
    largest = max(float(_positive(part).max()) for part in _parts(image))
    scale = next((full for full in (1, 255, 65535) if largest <= full), largest)
    for part in _parts(image):
        grey = np.round(_positive(part) / scale * 255).astype(np.uint8)
        yield np.repeat(grey[..., None], 3, axis=2)


def _positive(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.maximum(np.nan_to_num(np.asarray(image).astype(np.float64)), 0)
