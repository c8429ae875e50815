"""Rows of `raw_poi_images`: one picture of a POI each, with a digest that tells whether the delivery has changed.

In: pictures as a source reads them, and the table as other days left it. Out: the rows that are new. The pictures
themselves are looked at later, by the job `poi_image_vectors` (`udfs/vectors`).
"""

from datetime import date

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.columns.refusal import trimmed

CONTENT = ("image", "image_uri", "image_vector")
"""Columns of which at least one holds something."""


def with_digest(images: DataFrame) -> DataFrame:
    """Adds `content_sha256` over picture, URI and vector. A new picture under an old URI is not noticed."""
    vector = F.to_json(F.struct("image_vector"))
    parts = (F.sha2(part, 256) for part in (F.col("image"), F.col("image_uri"), vector))
    return images.withColumn(
        "content_sha256", F.sha2(F.concat_ws("|", *(F.coalesce(part, F.lit("")) for part in parts)), 256)
    )


def keep_with_content(images: DataFrame) -> DataFrame:
    """Keeps rows with a picture, a URI or a vector: most POIs of a catalogue may have none, which is no fault."""
    has_bytes = F.coalesce(F.length("image"), F.lit(0)) > 0
    has_uri = F.coalesce(trimmed("image_uri"), F.lit("")) != ""
    has_vector = F.coalesce(F.size("image_vector"), F.lit(0)) > 0
    return images.where(has_bytes | has_uri | has_vector)


def keep_changed(images: DataFrame, delivered: DataFrame | None, *, day: date) -> DataFrame:
    """Keeps the pictures that differ from the last one delivered for the same POI before the day.

    Args:
        images: rows with `content_sha256`.
        delivered: `raw_poi_images`; None if there is none yet.
        day: the day of the delivery.
    """
    if delivered is None:
        return images
    earlier = delivered.where(F.col("day") < F.lit(day)).select(
        trimmed("poi_id").alias("_id"), "day", "content_sha256"
    )
    # All rows of the last day count: a catalogue may name a POI twice.
    last = earlier.groupBy("_id").agg(F.max("day").alias("day")).join(earlier, ["_id", "day"])
    known = last.select("_id", F.col("content_sha256").alias("_sha256"))
    is_known = trimmed("poi_id").eqNullSafe(F.col("_id")) & (F.col("content_sha256") == F.col("_sha256"))
    return images.join(known, is_known, "left_anti")
