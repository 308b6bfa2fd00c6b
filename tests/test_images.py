"""`read_image`: files and images in memory, valid if unusual, and what is wrong told in one line."""

from pathlib import Path

import numpy as np
import pytest
from chats import data_uri, draw_image, one_line
from clips import shade
from odd_files import animation, saved, unreadable_files
from PIL import Image

from avis.images import read_image

pytestmark = pytest.mark.unit


def test_exif_orientation_is_followed(tmp_path):
    """Guards against: telephone images seen lying on their side."""
    image = Image.new("RGB", (64, 32), (0, 0, 200))
    image.paste((220, 0, 0), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = read_image(saved(tmp_path / "turned.jpg", image, exif=exif, quality=95))
    assert turned.size == (32, 64)
    top, bottom = turned.getpixel((16, 8)), turned.getpixel((16, 56))
    assert top[0] > 180 and bottom[2] > 160, (top, bottom)


def test_other_colour_modes_are_read(tmp_path):
    """Guards against: palette indices or inks taken for colours, and greys that come out inverted."""
    colour = (200, 120, 40)
    solid = Image.new("RGB", (32, 32), colour)
    files = {"c.tiff": solid.convert("CMYK"), "y.tiff": solid.convert("YCbCr"), "p.png": solid.quantize()}
    files["r.bmp"] = solid
    assert {image.mode for image in files.values()} == {"CMYK", "YCbCr", "P", "RGB"}
    for name, image in files.items():
        # Pillow 12.3 cannot read the YCbCr TIFFs that it writes without compression.
        options = {"compression": "tiff_lzw"} if name == "y.tiff" else {}
        got = read_image(saved(tmp_path / name, image, **options))
        assert got.mode == "RGB"
        assert np.abs(np.array(got.getpixel((5, 5))) - colour).max() <= 4, name
    assert read_image(saved(tmp_path / "l.png", Image.new("L", (8, 8), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert read_image(saved(tmp_path / "1.png", Image.new("1", (8, 8), 1))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff"])
def test_sixteen_bit_greys_are_scaled(tmp_path, name):
    """Guards against: sixteen-bit images (scans, depth maps) clipped to white above 1/256 of their range."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = saved(tmp_path / name, Image.fromarray(ramp))
    got = np.asarray(read_image(path)).astype(int)
    assert (got[..., 0] == got[..., 1]).all() and (got[..., 0] == got[..., 2]).all()
    assert np.abs(got[..., 0] - ramp.astype(int) / 257).max() <= 1.5


def test_transparency_is_laid_on_white(tmp_path):
    """Guards against: the hidden colours under transparent pixels, or black where a page would be white."""
    glass = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    glass.paste((0, 0, 255, 255), (0, 0, 8, 16))
    glass.putpixel((15, 15), (0, 0, 0, 128))
    got = read_image(saved(tmp_path / "glass.png", glass))
    assert (got.getpixel((2, 2)), got.getpixel((12, 2))) == ((0, 0, 255), (255, 255, 255))
    assert all(abs(value - 127) <= 1 for value in got.getpixel((15, 15)))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (0, 0, 8, 16))
    got = read_image(saved(tmp_path / "palette.png", palette, transparency=0))
    assert (got.getpixel((2, 2)), got.getpixel((12, 2))) == ((0, 255, 0), (255, 255, 255))
    assert read_image(Image.new("LA", (4, 4), (9, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_arrays_and_data_uris_are_images():
    """Guards against: channels or axes swapped, floats that are cut to 0 and 1, alpha taken for a colour, and a data
    URI that is read otherwise than its file."""
    image = draw_image(30, 20)
    array = np.asarray(image)
    for source in (array, array / 255, (array / 255).astype(np.float32), data_uri(image)):
        got = read_image(source)
        assert (got.mode, got.size, got.tobytes()) == ("RGB", (30, 20), image.tobytes())
    assert read_image(array[::-1]).tobytes() == image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert [read_image(grey).getpixel((x, 2)) for x in range(4)] == [(8 + x,) * 3 for x in range(4)]
    glass = np.zeros((2, 2, 4), np.uint8)
    glass[0] = (9, 99, 199, 255)
    assert [read_image(glass).getpixel((0, y)) for y in (0, 1)] == [(9, 99, 199), (255, 255, 255)]
    assert read_image(data_uri(image, "gif")).size == (30, 20)


WRONG_IMAGES = {
    "one axis": np.zeros(9, np.uint8),
    "five channels": np.zeros((4, 4, 5), np.uint8),
    "channels first": np.zeros((3, 8, 8), np.uint8),
    "a batch": np.zeros((1, 8, 8, 3), np.uint8),
    "no pixels": np.zeros((0, 4, 3), np.uint8),
    "whole numbers": np.zeros((4, 4, 3), np.int64),
    "complex numbers": np.zeros((4, 4), complex),
    "floats to 255": np.full((4, 4, 3), 255.0),
    "negative floats": np.full((4, 4, 3), -0.1),
    "not a number": np.full((4, 4), np.nan),
    "a number": 3,
    "nothing": None,
    "text as data": "data:text/plain;base64,QUJD",
    "not base64": "data:image/png;base64,@@@@",
    "not ASCII": "data:image/png;base64,\u00e4\u00e4",
    "no image": "data:image/png;base64,QUJD",
    "SVG": "data:image/svg+xml;base64,PHN2Zy8+",
    "no data": "data:image/png;base64,",
    "a path of data": Path(data_uri(Image.new("RGB", (2, 2)))),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_wrong_images_in_memory_are_refused(name):
    """Guards against: a traceback, an image of noise, or the whole data URI on the screen."""
    with pytest.raises(ValueError) as error:
        read_image(WRONG_IMAGES[name])
    assert len(one_line(error)) < 400


@pytest.mark.parametrize("name", ["text.jpg", "empty.jpg", "cut.jpg", "none.png", "folder"])
def test_unreadable_images_are_named(tmp_path, name):
    """Guards against: tracebacks, half an image read as a whole one, and messages that do not say which file."""
    path = unreadable_files(tmp_path)[name]
    with pytest.raises(ValueError) as error:
        read_image(path)
    assert str(path) in one_line(error)


def test_slim_images_are_shown_whole():
    """Guards against: a slim image stretched out of shape, or put where the white hides a part of it."""
    got = read_image(Image.new("RGB", (5, 4000), (9, 99, 9)))
    assert got.size == (20, 4000)
    assert [got.getpixel((x, 2000)) for x in (0, 6, 7, 11, 12, 19)] == [
        *[(255, 255, 255)] * 2,
        *[(9, 99, 9)] * 2,
        *[(255, 255, 255)] * 2,
    ]
    assert read_image(Image.new("RGB", (10, 2000))).size == (10, 2000)


def test_animations_show_their_first_frame(tmp_path):
    """Guards against: another frame than the one that is seen first, or all of them."""
    assert read_image(animation(tmp_path / "a.gif")).getpixel((9, 9)) == shade(2)
