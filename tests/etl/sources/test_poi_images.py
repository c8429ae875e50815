"""A catalogue with pictures: they go to their own table, once, and no job of the catalogue carries them along."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import Row

from conf.errors import SchemaError
from conf.tables import RAW_POI_IMAGES
from etl.delta.contracts import spark_schema
from etl.sources import frames
from etl.sources.poi_images import split_images
from etl.spark.session import local_frame
from etl.tables.poi_images import keep_changed
from tests.etl.checkin_folder import FIRST, SECOND, deliver, of_day, write_folder

RED, BLUE = b"\x89PNG red", b"\x89PNG blue"
POIS = pa.array(["p1", "p2", "p3", "p4"])
DAYS = [date(2026, 3, number) for number in (1, 2, 3)]


def split(spark, folder: Path, **columns: pa.Array | list[object]) -> tuple[list[str], list[Row]]:
    """Splits a catalogue of four POIs; returns the columns that are left and the pictures, None if there are none."""
    arrays = {
        name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in columns.items()
    }
    pq.write_table(pa.table({"poi_id": POIS, "name": POIS, **arrays}), folder / "pois.parquet")
    opened = frames.open_parquet(spark, str(folder / "pois.parquet"), needed_by="a test", remedy="")
    left, images = split_images(opened, "pois.parquet")
    return left.names, images if images is None else images.orderBy("poi_id").collect()


def test_bytes_uris_and_vectors_are_split_from_their_pois_and_pois_without_are_left_out(spark, tmp_path):
    left, images = split(
        spark,
        tmp_path,
        image=[RED, None, b"", None],
        Image_URI=[None, "a/b.png", " ", None],
        image_vector=pa.array([None, None, [], [1, 2]], pa.list_(pa.int16())),
    )

    assert left == ["poi_id", "name"]
    found = {row["poi_id"]: (row["image"], row["image_uri"], row["image_vector"]) for row in images}
    assert found == {"p1": (RED, None, None), "p2": (None, "a/b.png", None), "p4": (None, None, [1.0, 2.0])}
    assert len({row["content_sha256"] for row in images}) == 3


def test_a_struct_with_bytes_is_read(spark, tmp_path):
    structs = [{"bytes": RED, "path": "x.png"}, None, {"bytes": None, "path": "y.png"}, None]

    _, images = split(spark, tmp_path, image=structs)

    assert [(row["poi_id"], bytes(row["image"])) for row in images] == [("p1", RED)]


def test_a_catalogue_without_pictures_stays_as_it_is(spark, tmp_path):
    assert split(spark, tmp_path) == (["poi_id", "name"], None)


@pytest.mark.parametrize(
    ("column", "values", "advice"),
    [
        ("image", ["a.png"] * 4, "image_uri"),
        ("image_uri", [1] * 4, "string"),
        ("image_vector", ["1,2"] * 4, "array<float>"),
    ],
)
def test_a_column_of_another_type_is_an_error_that_says_what_it_should_be(
    spark, tmp_path, column, values, advice
):
    with pytest.raises(SchemaError, match=advice):
        split(spark, tmp_path, **{column: values})


def changed(spark, images: dict[str, str], delivered: list[tuple[date, str, str]], day: date) -> set[str]:
    schema = spark_schema(RAW_POI_IMAGES)

    def frame(rows):
        return local_frame(spark, [tuple({**row}.get(name) for name in schema.names) for row in rows], schema)

    new = frame(
        {"poi_id": poi, "content_sha256": sha, "is_simulated": False, "day": day}
        for poi, sha in images.items()
    )
    old = frame(
        {"day": on, "poi_id": poi, "content_sha256": sha, "is_simulated": False} for on, poi, sha in delivered
    )
    return {row["poi_id"] for row in keep_changed(new, old, day=day).collect()}


def test_a_picture_is_new_unless_it_is_the_last_one_delivered_before_the_day(spark):
    delivered = [
        (DAYS[0], "same", "a"),
        (DAYS[0], "changed", "a"),
        (DAYS[0], "back", "a"),
        (DAYS[1], "back", "b"),
        (DAYS[0], " blanks ", "a"),
        (DAYS[0], "twice", "a"),
        (DAYS[0], "twice", "b"),
        (DAYS[2], "later", "a"),
    ]
    images = {
        "same": "a",
        "changed": "b",
        "back": "a",
        "blanks": "a",
        "twice": "a",
        "later": "a",
        "unknown": "a",
    }

    assert changed(spark, images, delivered, DAYS[2]) == {"changed", "back", "later", "unknown"}


def test_pictures_are_delivered_once_and_a_changed_one_again_and_no_record_holds_them(spark, made, tmp_path):
    def write(*images: bytes | None) -> None:
        write_folder(tmp_path)
        table = pq.read_table(tmp_path / "pois.parquet")
        pq.write_table(table.append_column("image", pa.array(images, pa.binary())), tmp_path / "pois.parquet")

    write(RED, RED, None, RED)
    assert deliver(spark, made, tmp_path, FIRST)["warnings"] == []
    write(RED, BLUE, BLUE, None)
    deliver(spark, made, tmp_path, SECOND)

    found = {row["poi_id"]: bytes(row["image"]) for row in of_day(spark, made, "raw_poi_images", SECOND)}
    assert found == {"p2": BLUE, "p3": BLUE}
    assert len(of_day(spark, made, "raw_poi_images", FIRST)) == 3
    assert not any("image" in row["record"] for row in of_day(spark, made, "raw_pois", FIRST))
