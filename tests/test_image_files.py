"""Images of every mode and type: what an array gives is what PIL's image of it gives, and nothing is washed out."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from avis.images import read_image

pytestmark = pytest.mark.unit
RAMP = np.linspace(0, 1, 12, dtype=np.float64).reshape(3, 4)


@pytest.mark.parametrize(
    "array",
    [
        RAMP > 0.5,
        (RAMP * 255).astype(np.uint8),
        (RAMP * 65535).astype(np.uint16),
        (RAMP * 65535).astype(np.int32),
        (RAMP * 255).astype(np.int32),
        RAMP.astype(np.float32),
        RAMP,
        np.dstack([(RAMP * 255).astype(np.uint8)] * 2),
        np.dstack([(RAMP * 255).astype(np.uint8)] * 3),
        np.dstack([(RAMP * 255).astype(np.uint8)] * 4),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_array_and_its_image_are_read_alike(array):
    """Guards against: an array that is refused, and its PIL image that is all white."""
    found = np.asarray(read_image(array))
    assert (found == np.asarray(read_image(Image.fromarray(array)))).all()
    assert found.min() <= 5 and found.max() == 255 or array.shape[-1] in (2, 4)
    assert (np.diff(found[..., 0].ravel().astype(int)) >= 0).all() or array.shape[-1] in (2, 4)


@pytest.mark.parametrize("mode, scale", [("I", 65535), ("I", 255), ("F", 1.0), ("I;16", 65535)])
def test_tiff_of_wide_pixels_is_scaled(tmp_path, mode, scale):
    """Guards against: a TIFF of int32 or float32 that is read all white or all black."""
    kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
    path = tmp_path / "a.tif"
    Image.fromarray((RAMP * scale).astype(kind)).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    found = np.asarray(read_image(path))[..., 0]
    assert np.abs(found.astype(int) - RAMP * 255).max() <= 1


@pytest.mark.parametrize(
    "array",
    [
        (RAMP * 3000).astype(np.float32),
        (RAMP * 1e6).astype(np.int32),
        (RAMP * 100).astype(np.int32) - 50,
        np.full((2, 2), np.nan, np.float32),
        RAMP.astype(complex),
        np.zeros((2, 2, 2, 2), np.uint8),
        np.zeros((2, 2, 3), np.uint16),
        np.zeros((0, 2), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_what_has_no_scale_is_refused_in_one_line(array):
    with pytest.raises(ValueError) as error:
        read_image(array)
    assert "\n" not in str(error.value)
    if array.dtype in (np.int32, np.float32):
        with pytest.raises(ValueError):
            read_image(Image.fromarray(array))


@given(arrays(np.int32, (2, 3), elements=st.integers(-10, 70000)))
def test_integers_are_scaled_or_refused(array):
    """Guards against: values beyond a range that wrap around or are cut off."""
    try:
        found = np.asarray(read_image(array))[..., 0]
    except ValueError:
        assert array.min() < 0 or array.max() > 65535
    else:
        assert (found == (array >> 8 if array.max() > 255 else array)).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_is_called_damage(tmp_path, format):
    """Guards against: a damaged file that is "not a format that is read here"."""
    data = io.BytesIO()
    Image.fromarray(np.dstack([(RAMP * 255).astype(np.uint8)] * 3)).resize((64, 64)).save(data, format)
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(data.getvalue()[:16] + bytes(20))
    with pytest.raises(ValueError, match="damaged|cut off|truncated|broken|cannot read .* as an image: [^n]"):
        read_image(path)


def test_damaged_chunk_of_a_png(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(data, "PNG")
    damaged = bytearray(data.getvalue())
    damaged[20] ^= 0xFF  # in the header chunk, whose checksum then is wrong
    path = tmp_path / "a.png"
    path.write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match="damaged"):
        read_image(path)


def test_other_files_are_no_damaged_images(tmp_path):
    for name, data in (("a.txt", b"hello there, this is a text file"), ("a.zip", b"PK" + bytes(40)), ("b", bytes(64))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="not a format that is read here"):
            read_image(tmp_path / name)
