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
        source: a path; a PIL image; an array `(H, W)`, `(H, W, 2)`, `(H, W, 3)` or `(H, W, 4)`, grey or RGB, with or
            without alpha, bool, uint8, or floats in [0, 1]; `(H, W)` of larger integers, see `_eight_bits`; or, as a
            string, a data URI `data:image/png;base64,..`. An array gives the same image as PIL's image of it.

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
        reason = "not a format that is read here"
        if _has_known_signature(file):
            reason = "it is damaged, or of a kind that is not read here"
        raise ValueError(f"cannot read {name} as an image: {reason}") from None
    except Exception as error:  # plug-ins fail in kinds of their own
        raise ValueError(f"cannot read {name} as an image: {error}") from None
    return image


def _decode_data_uri(uri: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise ValueError("cannot read the data URI as an image: it is not base64") from None


def _has_known_signature(file: Path | io.BytesIO) -> bool:
    """Return whether a file begins as an image does: Pillow reports a damaged file as one of an unknown format."""
    if isinstance(file, io.BytesIO):
        prefix = file.getvalue()[:16]
    else:
        with file.open("rb") as opened:
            prefix = opened.read(16)
    for name, (_, is_accepted) in Image.OPEN.items():
        try:
            # Formats without a signature (accepting nothing in particular) say nothing about the file.
            if name not in _REFUSED_FORMATS and is_accepted and is_accepted(prefix) is True:
                return True
        except Exception:  # a check that reads beyond a short prefix
            continue
    return False


def _from_array(array: np.ndarray) -> Image.Image:
    has_image_shape = array.ndim == 2 or array.ndim == 3 and array.shape[2] in (2, 3, 4)
    if not has_image_shape or not (array.ndim == 2 or array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ValueError(
            "an array is an image as (H, W), or as (H, W, 2), (H, W, 3) or (H, W, 4) of uint8 or of floats, got "
            f"{array.shape} of {array.dtype}"
        )
    if not array.size:
        raise ValueError("an image without pixels")
    return Image.fromarray(_eight_bits(array))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Return pixels of any type as uint8.

    Floats are in [0, 1]. Unsigned 16-bit integers take the whole of their range. Other integers do not say what white
    is: up to 255 they are taken for 8 bits, up to 65535 for 16.

    Raises:
        ValueError: values outside these ranges, which would all be white or black.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of {array.dtype} is no image")
    least, most = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (least >= 0 and most <= 1):  # nor NaN
            raise ValueError(f"an image of floats must be in [0, 1], got {least:.4g} to {most:.4g}")
        return (array * 255).round().astype(np.uint8)
    if least < 0 or most > 65535:
        raise ValueError(f"an image of integers must be in [0, 65535], got {least} to {most}")
    is_wide = most > 255 or (array.dtype.kind == "u" and array.dtype.itemsize == 2)
    return (array >> 8 if is_wide else array).astype(np.uint8)


def _transpose_by_exif(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the image
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image)))  # convert() would clip at 255
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
