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
    """A picture from a file or from memory, turned as its EXIF says, RGB; transparency is laid on white.

    Of an animation the first frame. A picture more than 200 times as long as wide is laid on white as well, in the
    middle, just wide enough.

    Args:
        source: a path; a PIL picture; an array `(H, W)`, `(H, W, 3)` or `(H, W, 4)`, RGB with or without alpha, uint8
            or floats in [0, 1]; or, as a string, a data URI `data:image/png;base64,..`.

    Raises:
        ValueError: not a picture, or a URL, or it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures and of damaged metadata, which are read all the same
        if isinstance(source, np.ndarray):
            picture = _from_array(source)
        elif not isinstance(source, Image.Image):
            picture = _opened(source)
        else:
            picture = source
        return pad_slim_image(_rgb(_turned(picture)))


def _opened(source: str | Path) -> Image.Image:
    name: str | Path
    file: Path | io.BytesIO
    if isinstance(source, str) and _DATA_URI.match(source):
        name, file = "the data URI", io.BytesIO(_decoded_uri(source))
    elif isinstance(source, (str, Path)):
        name = file = check_file(source)
    else:
        raise ValueError(f"a picture is a path, a PIL picture, an array or a data URI, got {type(source).__name__}")
    try:
        picture = Image.open(file)
        if picture.format in _REFUSED_FORMATS:
            raise UnidentifiedImageError
        picture.load()
    except UnidentifiedImageError:
        raise ValueError(f"cannot read {name} as a picture: not a format that is read here") from None
    except Exception as error:  # plug-ins fail in kinds of their own
        raise ValueError(f"cannot read {name} as a picture: {error}") from None
    return picture


def _decoded_uri(uri: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ValueError("cannot read the data URI as a picture: it is not base64") from None


def _from_array(array: np.ndarray) -> Image.Image:
    is_picture = array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)
    if not is_picture or not (array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)):
        raise ValueError(
            f"an array is a picture as (H, W), (H, W, 3) or (H, W, 4) of uint8 or of floats, got {array.shape} of "
            f"{array.dtype}"
        )
    if not array.size:
        raise ValueError("a picture without pixels")
    if array.dtype != np.uint8:
        if not (array.min() >= 0 and array.max() <= 1):  # nor NaN
            raise ValueError(f"a picture of floats is in [0, 1], got {array.min():.4g} to {array.max():.4g}")
        array = (array * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def _turned(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF says nothing about the picture
        return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))  # convert() would clip at 255
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*WHITE, 255)), picture)
    return picture.convert("RGB")


def pad_slim_image(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    if not width or not height:
        raise ValueError("a picture without pixels")
    least = math.ceil(max(width, height) / MAX_RATIO)
    if min(width, height) >= least:
        return picture
    canvas = Image.new("RGB", (max(width, least), max(height, least)), WHITE)
    canvas.paste(picture, ((canvas.width - width) // 2, (canvas.height - height) // 2))
    return canvas
