"""Pictures in: what the default descriptor sees, and which files are decoded."""

import io

import numpy as np
import pytest
from PIL import Image

from conf.errors import MissingInputError
from models.image_encoder import (
    FORMATS,
    NUM_DIRECTIONS,
    EdgeColourDescriptor,
    TooManyPixelsError,
    decode_image,
    load_image_encoder,
)

WHOLE = slice(0, NUM_DIRECTIONS)
"""Shares of edge directions of the whole picture."""
MEGAPIXEL = 10**6


def stripes(angle: float, *, side: int = 64, colour: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Returns waves whose brightness changes along an angle, in degrees, of a colour."""
    down, across = np.mgrid[:side, :side] * (64 / side)
    along = np.cos(np.radians(angle)) * across + np.sin(np.radians(angle)) * down
    value = (np.sin(along / 64 * 2 * np.pi * 5) + 1) / 2
    return Image.fromarray((value[..., None] * np.array(colour)).astype(np.uint8))


def describe(*images: Image.Image) -> np.ndarray:
    return EdgeColourDescriptor().encode(images)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("angle", "direction"), [(0, 0), (45, 2), (90, 4), (135, 6)])
def test_edges_are_counted_under_their_direction(angle, direction):
    found = describe(stripes(angle))[0]

    assert found[WHOLE].argmax() == direction
    assert found[WHOLE][direction] > 0.6


def test_a_flat_picture_has_no_direction_and_its_colour():
    found = describe(Image.new("RGB", (10, 20), (255, 0, 51)))[0]

    assert np.abs(found[: 5 * NUM_DIRECTIONS]).max() < 1e-6
    assert found[5 * NUM_DIRECTIONS :].reshape(4, 2, 3)[:, 0].tolist() == pytest.approx(
        np.tile([1.0, 0.0, 0.2], (4, 1))
    )
    assert np.abs(found[5 * NUM_DIRECTIONS :].reshape(4, 2, 3)[:, 1]).max() < 1e-6


def test_a_quarter_tells_where_something_is():
    image = Image.new("RGB", (64, 64), "black")
    image.paste((255, 255, 255), (32, 0, 64, 32))  # top right

    means = describe(image)[0][5 * NUM_DIRECTIONS :].reshape(4, 2, 3)[:, 0, 0]

    assert means.argmax() == 1


def test_the_direction_does_not_depend_on_colour_size_or_the_other_pictures():
    alone = describe(stripes(45))
    together = describe(stripes(0), stripes(45), Image.new("RGB", (7, 3)))
    assert np.array_equal(alone[0], together[1])

    other = describe(stripes(45, side=200, colour=(40, 200, 40)))[0]
    assert other[WHOLE].argmax() == alone[0][WHOLE].argmax()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_decoded(kind):
    image = Image.new("RGB", (40, 30), (200, 30, 60))

    found = decode_image(encoded(image, kind), max_pixels=MEGAPIXEL)

    assert (found.mode, found.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(found).astype(int) - [200, 30, 60]).max() <= 40  # GIF and JPEG lose some


def test_transparent_parts_are_white_and_rotated_photos_upright():
    glass = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(decode_image(encoded(glass, "PNG"), max_pixels=MEGAPIXEL)).min() == 255

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo = encoded(Image.new("RGB", (80, 20)), "JPEG", exif=exif)
    assert decode_image(photo, max_pixels=MEGAPIXEL).size == (20, 80)


@pytest.mark.parametrize(
    ("image", "grey"),
    [
        (Image.new("L", (4, 4), 100), 100),
        (Image.new("LA", (4, 4), (100, 255)), 100),
        (Image.fromarray(np.full((4, 4), 100 << 8, np.uint16)), 100),
        (Image.new("1", (4, 4), 1), 255),
        (Image.new("P", (4, 4), 0), 0),
    ],
)
def test_pictures_of_other_depths_keep_their_brightness(image, grey):
    found = np.asarray(decode_image(encoded(image, "PNG"), max_pixels=MEGAPIXEL))

    assert found.shape == (4, 4, 3)
    assert (found == grey).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_an_error_and_not_half_a_picture(kind):
    rng = np.random.default_rng(0)
    content = encoded(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)

    with pytest.raises(Exception):  # noqa: B017, PT011 - each of Pillow's decoders has its own
        decode_image(content[: len(content) // 2], max_pixels=MEGAPIXEL)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"%PDF-1.7", b"BM"])
def test_what_is_no_picture_is_an_error(content):
    with pytest.raises(Exception):  # noqa: B017, PT011
        decode_image(content, max_pixels=MEGAPIXEL)


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    content = encoded(Image.new("1", (4000, 4000)), "PNG")
    assert len(content) < 10_000  # a bomb: small as a file
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))

    with pytest.raises(TooManyPixelsError, match="4000 x 4000"):
        decode_image(content, max_pixels=MEGAPIXEL)


@pytest.mark.parametrize("name", ["nothing.here:load", "models.image_encoder:nothing", "nonsense", ""])
def test_a_wrong_name_says_how_to_name_an_encoder(name):
    with pytest.raises(MissingInputError, match="module:function"):
        load_image_encoder(name)
