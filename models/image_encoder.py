"""Frozen image encoders for POI vectors: pictures in, one vector each out.

An encoder is named by `module:function`; the function takes nothing and returns an `ImageEncoder`. The default is a
classical descriptor without learned weights: histograms of edge directions, as in HOG (Dalal and Triggs, 2005), and the
colours of the quarters of a picture. An encoder with learned weights takes its place by the setting
`features.image_encoder`.
"""

import importlib
import io
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from conf.errors import MissingInputError

DEFAULT_ENCODER = "models.image_encoder:load_descriptor"
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
SIDE = 64
"""Pictures are scaled to this many pixels a side before they are described."""
NUM_DIRECTIONS = 8
"""Edge directions that a histogram tells apart, over 180 degrees."""
QUIET_EDGE = 0.02
"""Mean edge strength, brightness per pixel, at which shares sum to one half: a flat picture has no direction."""
_BRIGHTNESS = (0.299, 0.587, 0.114)


class TooManyPixelsError(ValueError):
    """A picture has more pixels than the settings allow."""


class ImageEncoder(Protocol):
    """An encoder of pictures; equal pictures get equal vectors in any batch.

    Attributes:
        name: name with version; stored in every row, since vectors of two encoders must not be mixed.
        dim: length of a vector.
    """

    name: str
    dim: int

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Returns vectors, (images, dim), of RGB pictures of any size."""
        ...


class EdgeColourDescriptor:
    """A classical descriptor: directions of edges and colours, of the picture and of its quarters.

    The vector holds 8 shares of edge directions of the whole, 8 for each quarter, and mean and spread of red, green and
    blue of each quarter: 64 values between 0 and 1.
    """

    name = f"edges-and-colours-{SIDE}"
    dim = 5 * NUM_DIRECTIONS + 4 * 6

    def encode(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Returns vectors, (images, 64)."""
        vectors = np.zeros((len(images), self.dim), np.float32)
        for row, image in enumerate(images):
            vectors[row] = _describe(image)
        return vectors


def load_descriptor() -> ImageEncoder:
    """Returns the default encoder."""
    return EdgeColourDescriptor()


def load_image_encoder(name: str = DEFAULT_ENCODER) -> ImageEncoder:
    """Returns the encoder that `module:function` names.

    Raises:
        MissingInputError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        encoder: ImageEncoder = getattr(importlib.import_module(module), function)()
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise MissingInputError(
            what=f"the image encoder {name}",
            where="settings features.image_encoder",
            needed_by="The job poi_image_vectors",
            remedy=f"Name it as module:function, for example {DEFAULT_ENCODER}; or `given`, if the catalogue brings "
            "vectors.",
        ) from error
    return encoder


def decode_image(content: bytes, *, max_pixels: int) -> Image.Image:
    """Decodes a picture: RGB, upright, transparent parts white; the first frame of a moving one.

    Args:
        content: bytes of a file in one of `FORMATS`.
        max_pixels: pictures with more are refused before they are decoded.

    Raises:
        TooManyPixelsError: there are too many pixels.
        Exception: the bytes are no such file, or not all of it; Pillow raises what its decoders happen to raise.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise TooManyPixelsError(f"{width} x {height} pixels, more than {max_pixels}")
        opened.draft(
            "RGB", (2 * SIDE, 2 * SIDE)
        )  # a JPEG is decoded at an eighth of its size where that will do
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I;16"):  # Pillow would clip its levels at 255
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        if upright.mode in ("RGB", "L", "CMYK", "YCbCr"):
            return upright.convert("RGB")
        layers = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _describe(image: Image.Image) -> NDArray[np.float64]:
    """Returns the vector of one picture, (64,)."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    down, across = np.gradient(pixels @ np.array(_BRIGHTNESS))
    # The direction of an edge, not which of its sides is brighter: angles are taken modulo 180 degrees.
    position = np.mod(np.arctan2(down, across), np.pi) / np.pi * NUM_DIRECTIONS
    lower, share = np.floor(position).astype(int) % NUM_DIRECTIONS, position % 1
    strength = np.hypot(down, across)
    halves = np.arange(SIDE) // (SIDE // 2)
    quarter = 2 * halves[:, None] + halves
    edges = np.zeros((4, NUM_DIRECTIONS))
    np.add.at(edges, (quarter, lower), strength * (1 - share))
    np.add.at(edges, (quarter, (lower + 1) % NUM_DIRECTIONS), strength * share)
    edges /= (SIDE // 2) ** 2
    histograms = np.concatenate([edges.mean(axis=0)[None], edges])
    shares = histograms / (histograms.sum(axis=1, keepdims=True) + QUIET_EDGE)
    colours = [pixels[quarter == number] for number in range(4)]
    spread = [np.concatenate([part.mean(axis=0), part.std(axis=0)]) for part in colours]
    return np.concatenate([shares.ravel(), *spread])
