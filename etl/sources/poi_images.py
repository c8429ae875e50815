"""Pictures in a catalogue file: columns `image`, `image_uri` and `image_vector` beside those of the POI.

`image` holds bytes, or a struct with a field `bytes`, as collections of pictures are often written. They go to a table
of their own, so that jobs that read the catalogue do not carry them along.
"""

from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from conf.errors import SchemaError
from etl.sources import schema_drift as drift
from etl.sources import values
from etl.sources.files import FilePart
from etl.sources.frames import Opened
from etl.tables.poi_images import CONTENT, keep_with_content, with_digest

SPARK_TYPES = {"image": "binary", "image_uri": "string", "image_vector": "array<float>"}
EXPECTED = {
    "image": "binary: the bytes of the file; a path or an address belongs in image_uri",
    "image_uri": "string: where the picture is, below features.image_root",
    "image_vector": "array<float>: a ready vector",
}


def split_images(opened: Opened, table: str) -> tuple[Opened, DataFrame | None]:
    """Splits a catalogue into its POIs and their pictures.

    Args:
        opened: files of the catalogue; a POI's id is in column `poi_id`.
        table: name of the file in errors.

    Returns:
        The files without the columns of pictures, and the rows of `raw_poi_images` without `day`; None if no file has
        such a column.

    Raises:
        SchemaError: a column of pictures has another type than it must have.
    """
    parts, frames = [], []
    for part in opened.parts:
        names = drift.match_columns(part.frame.columns, table, {"poi_id": "id", **SPARK_TYPES})
        found = {name: names[name] for name in CONTENT if name in names}
        if not found:
            parts.append(part)
            continue
        if "poi_id" in names:
            frames.append(_read_part(part, names, table))
        parts.append(FilePart(part.frame.drop(*found.values()), part.nanoseconds, part.unknown))
    images = reduce(DataFrame.unionByName, frames) if frames else None
    return Opened(parts, opened.warnings), images


def _read_part(part: FilePart, names: dict[str, str], table: str) -> DataFrame:
    schema = part.frame.schema
    columns = {
        name: _convert(names[name], schema[names[name]].dataType, name, table)
        if name in names
        else F.lit(None).cast(SPARK_TYPES[name])
        for name in CONTENT
    }
    poi_id = values.convert(F.col(f"`{names['poi_id']}`"), schema[names["poi_id"]].dataType, "id")
    rows = part.frame.select(
        poi_id.alias("poi_id"),
        *(column.alias(name) for name, column in columns.items()),
        F.lit(False).alias("is_simulated"),
    )
    return with_digest(keep_with_content(rows))


def _convert(actual: str, dtype: T.DataType, name: str, table: str) -> Column:
    column = F.col(f"`{actual}`")
    if name == "image" and isinstance(dtype, T.StructType) and "bytes" in dtype.fieldNames():
        column, dtype = column["bytes"], dtype["bytes"].dataType
    fits = {
        "image": isinstance(dtype, T.BinaryType),
        "image_uri": isinstance(dtype, T.StringType),
        "image_vector": isinstance(dtype, T.ArrayType) and isinstance(dtype.elementType, T.NumericType),
    }[name]
    if not fits and not isinstance(dtype, T.NullType):
        raise SchemaError(
            table=table,
            column=actual,
            expected=EXPECTED[name],
            found=dtype.simpleString(),
            remedy="Convert the column, or rename it if it holds something else.",
        )
    return column.cast(SPARK_TYPES[name])
