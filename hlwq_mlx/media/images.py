"""Convert images to patches, bit for bit as transformers' PIL image processor does.

Pillow decodes, converts colours and resizes. The vision tower is in gemma4, and the number of ids
for a placeholder in dialog. Letters: h, w = height and width in pixels, p = patch_size,
k = pooling_kernel_size, P = patches.
Source: transformers 5.23.0, models/gemma4/image_processing_pil_gemma4.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import RequestError
from . import child, pixels
from .origin import LOCAL, Access, Origin, name_of, open_origin
from .pixels import Picture, Pixels, check_pixels
from .plain import is_plain_image
from .processor import ImageSettings


@dataclass(frozen=True)
class Patches:
    """One image as the vision tower reads it.

    Shapes: patches float32 [P, p*p*3] in 0..1 (rows, columns, colours), row after row of the
    image; positions int32 [P, 2] as (x, y) in patches; soft_tokens = P / k^2.
    """

    patches: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int32]
    soft_tokens: int


def read_image(origin: Origin | npt.NDArray[Any] | Image.Image, access: Access = LOCAL) -> Pixels:
    """Decode an image to RGB as a person sees it: turned by its EXIF orientation, on white.

    Arrays are [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], uint8 or floating point in 0..1. An
    animation gives its first picture. Transparent pixels are put on white, as in the reference's
    processor. Grey images of more than 8 bits are scaled to 8, where the reference saturates.
    Shapes: -> uint8 [h, w, 3].
    Raises: RequestError when it is no image, broken, larger than MAX_PIXELS or MAX_SIDE, or not
    allowed; SourceError when a file or server cannot be read.
    """
    if isinstance(origin, np.ndarray):
        return _from_array(origin)
    if isinstance(origin, Image.Image):
        check_pixels(origin.height, origin.width, "image")
        return pixels.upright(pixels.of_image(origin))
    where = name_of(origin)
    with open_origin(origin, access) as file:
        if is_plain_image(file):
            return pixels.upright(pixels.decode(file, where))
        arrays = child.read("image", file, where)
        h, w, orientation = next(arrays).tolist()
        return pixels.upright(Picture(h, w, orientation, arrays))


def image_patches(
    image: Pixels, settings: ImageSettings, max_soft_tokens: int | None = None
) -> Patches:
    """Fit an image to its budget of soft tokens and cut it into patches.

    Shapes: image uint8 [h, w, 3] -> Patches.
    Raises: RequestError when max_soft_tokens is no budget of the model.
    """
    return cut_patches(resize_to_budget(image, settings, max_soft_tokens), settings)


def fitted_size(h: int, w: int, settings: ImageSettings, max_soft_tokens: int) -> tuple[int, int]:
    """Return the (height, width) in whole soft tokens that fills the budget, keeping the aspect."""
    p, k = settings.patch_size, settings.pooling_kernel_size
    side = p * k
    # The reference's own order of operations: another one rounds differently.
    factor = math.sqrt(max_soft_tokens * k**2 * p**2 / (h * w))
    height = math.floor(factor * h / side) * side
    width = math.floor(factor * w / side) * side
    if height == 0:
        return side, max(1, min(w // h, max_soft_tokens)) * side
    if width == 0:
        return min(h // w, max_soft_tokens) * side, side
    return height, width


def resize_to_budget(
    image: Pixels, settings: ImageSettings, max_soft_tokens: int | None = None
) -> Pixels:
    """Resize an image (bicubic, antialiased) to the whole patches that its budget allows."""
    h, w = image.shape[:2]
    height, width = fitted_size(h, w, settings, settings.budget(max_soft_tokens))
    if (height, width) == (h, w):
        return image
    # One colour at a time: Pillow holds one byte of it for a pixel, but four for RGB.
    fitted = np.empty((height, width, 3), np.uint8)
    for colour in range(3):
        whole = Image.fromarray(image[..., colour])
        resized = whole.resize((width, height), Image.Resampling.BICUBIC)
        fitted[..., colour] = np.asarray(resized)
    return fitted


def cut_patches(image: Pixels, settings: ImageSettings) -> Patches:
    """Cut a fitted image into patches; h and w are multiples of p * k."""
    p = settings.patch_size
    # Patches go row by row; within one, colours are innermost, as the tower's weights expect.
    rows, columns = image.shape[0] // p, image.shape[1] // p
    # A table of all 256 values, rescaled in float64 and rounded once, as the reference does per
    # pixel.
    scaled = (np.arange(256) * settings.rescale_factor).astype(np.float32)
    blocks = image.reshape(rows, p, columns, p, 3).transpose(0, 2, 1, 3, 4)
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int32), np.int32(columns))
    return Patches(
        patches=scaled[blocks.reshape(rows * columns, p * p * 3)],
        positions=np.stack([x, y], axis=1),
        soft_tokens=rows * columns // settings.pooling_kernel_size**2,
    )


def _from_array(array: npt.NDArray[Any]) -> Pixels:
    image = array[..., None] if array.ndim == 2 else array
    is_unit = np.issubdtype(array.dtype, np.floating)
    if (
        image.ndim != 3
        or image.shape[2] not in (1, 3, 4)
        or not (is_unit or array.dtype == np.uint8)
    ):
        raise RequestError(
            "[image] needed an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] of uint8 or "
            f"floating point, got {array.dtype} {list(array.shape)}. Convert it first."
        )
    h, w = image.shape[:2]
    check_pixels(h, w, "image")
    if is_unit and not (image.min() >= 0 and image.max() <= 1):
        raise RequestError(
            f"[image] needed floating point values in 0..1, got {image.min()} to "
            f"{image.max()}. Divide them by their full scale, or hand over uint8."
        )
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.ascontiguousarray(image)
    return pixels.upright(Picture(h, w, 1, _strips(image)))


def _strips(image: npt.NDArray[Any]) -> Iterator[Pixels]:
    n = max(1, pixels.STRIP_PIXELS // image.shape[1])
    for y in range(0, len(image), n):
        strip = image[y : y + n]
        if strip.dtype != np.uint8:
            strip = np.round(strip * 255).astype(np.uint8)
        yield pixels.rgb(Image.fromarray(strip)) if strip.shape[2] == 4 else strip
