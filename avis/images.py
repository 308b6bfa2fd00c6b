"""Images from files or memory, as RGB images; no URLs, and no torch::

    image = read_image("photo.jpg")

Anything wrong with a file is reported in one line. A file that is valid but unusual is read.
"""

import base64
import binascii
import io
import math
import re
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from avis.files import check_file

MAX_RATIO = 200  # of an image's sides: Qwen2.5-VL's processors refuse slimmer ones
WHITE = (255, 255, 255)
ImageInput: TypeAlias = str | Path | Image.Image | np.ndarray  # what `read_image` takes
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")
# Pillow's readers of these formats run another program on the file, or call the system's own drawing routines.
_REFUSED_FORMATS = ("EPS", "WMF")


def read_image(source: ImageInput) -> Image.Image:
    """Return an image from a file or from memory as RGB, turned as its EXIF says, with transparency laid on white.

    The first frame of an animation is read. An image more than 200 times as long as wide is centred on white that is
    just wide enough.

    Args:
        source: a path; a PIL image; an array `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, RGB with or without alpha, uint8 or
            floats in [0, 1]; or, as a string, a data URI `data:image/png;base64,..`.

    Raises:
        ValueError: not an image, a URL, or it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images and of damaged metadata, which are read all the same
        if isinstance(source, np.ndarray):
            image = _from_array(source)
        elif not isinstance(source, Image.Image):
            image = _open(source)
        else:
            image = source
        return pad_slim_image(_to_rgb(_transpose_by_exif(image)))


def _open(source: str | Path) -> Image.Image:
    name: str | Path
    file: Path | io.BytesIO
    if isinstance(source, str) and _DATA_URI.match(source):
        name, file = "the data URI", io.BytesIO(_decode_data_uri(source))
    elif isinstance(source, (str, Path)):
        name = file = check_file(source)
    else:
        raise ValueError(f"an image is a path, a PIL image, an array or a data URI, got {type(source).__name__}")
    try:
        image = Image.open(file)
        if image.format in _REFUSED_FORMATS:
            raise UnidentifiedImageError
        image.load()
    except UnidentifiedImageError:
        raise ValueError(f"cannot read {name} as an image: not a format that is read here") from None
    except Exception as error:  # plug-ins fail in kinds of their own
        raise ValueError(f"cannot read {name} as an image: {error}") from None
    return image


def _decode_data_uri(uri: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ValueError("cannot read the data URI as an image: it is not base64") from None


def _from_array(array: np.ndarray) -> Image.Image:
    has_image_shape = array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)
    if not has_image_shape or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        raise ValueError(
            f"an array is an image as (H, W), (H, W, 3) or (H, W, 4) of uint8 or of floats, got {array.shape} of "
            f"{array.dtype}"
        )
    if not array.size:
        raise ValueError("an image without pixels")
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 1):  # nor NaN
            raise ValueError(f"an image of floats is in [0, 1], got {array.min():.4g} to {array.max():.4g}")
        array = (array * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def _transpose_by_exif(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the image
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # convert() would clip at 255
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image)
    return image.convert("RGB")


def pad_slim_image(image: Image.Image) -> Image.Image:
    """Return the image, centred on white when it is slimmer than Qwen2.5-VL's processors take.

    Raises:
        ValueError: an image without pixels.
    """
    width, height = image.size
    if not width or not height:
        raise ValueError("an image without pixels")
    least = math.ceil(max(width, height) / MAX_RATIO)
    if min(width, height) >= least:
        return image
    canvas = Image.new("RGB", (max(width, least), max(height, least)), WHITE)
    canvas.paste(image, ((canvas.width - width) // 2, (canvas.height - height) // 2))
    return canvas
