"""Pictures of the synthetic city's POIs: small bitmaps whose pattern is the only sign of a POI's look.

A picture is a BMP file of 32 x 32 pixels, made by expressions. Its two colours, the width and the place of its stripes
and its noise differ from POI to POI and say nothing; the direction of the stripes is the look.
"""

import math
import struct

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.settings import CitySettings
from etl.city.geography import FIRST_LEAF, KIND_NAMES, LOOKS, look_of_poi, poi_id, uniform
from etl.spark.session import compute_once
from etl.tables.poi_images import with_digest

SIDE = 32
"""Pixels a side; a row of 96 bytes needs no padding."""
FEWEST_STRIPES, MOST_STRIPES = 3.0, 6.0
CONTRAST, NOISE = 60.0, 25.0
"""Levels, of 255, between the middle of a picture and its stripes, and the width of its noise."""
FIRST_PICTURED_KIND = KIND_NAMES.index("coffee")
"""Kinds from this one on have pictures: what one goes to for pleasure."""


def build_pictures(pois: DataFrame, *, city: CitySettings) -> DataFrame:
    """Builds the pictures of POIs.

    Args:
        pois: `poi_no` and `leaf_no`.
        city: settings.

    Returns:
        Rows of `raw_poi_images` without `day`.
    """
    pictured = pois.where(F.col("leaf_no") >= FIRST_LEAF[FIRST_PICTURED_KIND])
    # Cut off here, the traits of a POI are computed once; else Spark would compute them again for every pixel.
    traits = compute_once(pictured.select("poi_no", *_traits(F.col("poi_no"), city)))
    return with_digest(
        traits.select(
            poi_id(F.col("poi_no")).alias("poi_id"),
            _draw(city).alias("image"),
            F.lit(None).cast("string").alias("image_uri"),
            F.lit(None).cast("array<float>").alias("image_vector"),
            F.lit(True).alias("is_simulated"),
        )
    )


def _traits(number: Column, city: CitySettings) -> list[Column]:
    """Returns what the pixels of a picture share: look, wave and phase of its stripes, colour and tint."""
    seed = city.seed
    stripes = uniform(seed, "stripes", number) * (MOST_STRIPES - FEWEST_STRIPES) + FEWEST_STRIPES
    return [
        look_of_poi(number, city=city).alias("look_no"),
        (stripes * (2 * math.pi / SIDE)).alias("wave"),
        (uniform(seed, "stripe place", number) * (2 * math.pi)).alias("phase"),
        *((uniform(seed, f"colour {name}", number) * 110.0 + 70.0).alias(f"colour_{name}") for name in "bgr"),
        *((uniform(seed, f"tint {name}", number) * 0.8 + 0.2).alias(f"tint_{name}") for name in "bgr"),
    ]


def _draw(city: CitySettings) -> Column:
    """Returns the bitmap of a row of `_traits`."""

    def pixel(at: Column) -> Column:
        """Returns blue, green and red of a pixel, as six hexadecimal digits."""
        value = _pattern(F.pmod(at, F.lit(SIDE)), F.floor(at / SIDE)) * CONTRAST
        grain = (uniform(city.seed, "grain", F.col("poi_no"), at) - 0.5) * (2 * NOISE)
        levels = (F.col(f"colour_{name}") + value * F.col(f"tint_{name}") + grain for name in "bgr")
        whole = (F.greatest(F.lit(0), F.least(F.lit(255), F.round(level).cast("int"))) for level in levels)
        return F.concat(*(F.lpad(F.hex(level), 2, "0") for level in whole))

    pixels = F.transform(F.sequence(F.lit(0), F.lit(SIDE * SIDE - 1)), pixel)
    return F.unhex(F.concat(F.lit(_header().hex()), F.array_join(pixels, "")))


def _pattern(x: Column, y: Column) -> Column:
    """Returns the value of a pixel, -1 to 1, by the look of the row."""
    wave, phase = F.col("wave"), F.col("phase")
    slanted = wave / math.sqrt(2)
    values = (
        F.sin(wave * y + phase),
        F.sin(wave * x + phase),
        F.sin(slanted * (x - y) + phase),
        F.sin(slanted * (x + y) + phase),
        F.sin(wave * x + phase) * F.sin(wave * y + phase),
        F.lit(0.0),
    )
    chosen = F.lit(0.0)
    for number, value in zip(range(len(LOOKS)), values, strict=True):
        chosen = F.when(F.col("look_no") == number, value).otherwise(chosen)
    return chosen


def _header() -> bytes:
    """Returns the 54 bytes before the pixels: file header and BITMAPINFOHEADER, 24 bits a pixel."""
    size = 3 * SIDE * SIDE
    file = struct.pack("<2sIHHI", b"BM", 54 + size, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, size, 2835, 2835, 0, 0)
    return file + info
