"""A catalogue with pictures: they go to their own table, once, and no job of the catalogue carries them along."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import SchemaError
from tests.etl.checkin_folder import FIRST, SECOND, deliver, of_day, write_folder

RED, BLUE = b"\x89PNG red", b"\x89PNG blue"


def add_columns(folder: Path, **columns: pa.Array | list[object]) -> None:
    """Adds columns to the catalogue of four POIs."""
    table = pq.read_table(folder / "pois.parquet")
    for name, values in columns.items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
    pq.write_table(table, folder / "pois.parquet")


def test_pictures_uris_and_vectors_are_delivered_apart_from_their_pois(spark, made, tmp_path):
    write_folder(tmp_path)
    add_columns(
        tmp_path,
        image=[RED, None, b"", None],
        image_uri=[None, "a/b.png", " ", None],
        Image_Vector=pa.array([None, None, None, [1, 2]], pa.list_(pa.int16())),
    )

    notes = deliver(spark, made, tmp_path, FIRST)

    rows = of_day(spark, made, "raw_poi_images", FIRST)
    found = {row["poi_id"]: (row["image"], row["image_uri"], row["image_vector"]) for row in rows}
    assert found == {"p1": (RED, None, None), "p2": (None, "a/b.png", None), "p4": (None, None, [1.0, 2.0])}
    assert notes["warnings"] == []
    records = {row["record"] for row in of_day(spark, made, "raw_pois", FIRST)}
    assert not any("image" in record.lower() for record in records)


def test_a_later_night_brings_changed_pictures_only_and_a_rerun_the_same_ones(spark, made, tmp_path):
    write_folder(tmp_path)
    add_columns(tmp_path, image=[RED, RED, None, RED])
    deliver(spark, made, tmp_path, FIRST)
    write_folder(tmp_path)
    add_columns(tmp_path, image=[RED, BLUE, BLUE, None])

    for _ in range(2):
        deliver(spark, made, tmp_path, SECOND)
        rows = of_day(spark, made, "raw_poi_images", SECOND)
        assert {row["poi_id"]: bytes(row["image"]) for row in rows} == {"p2": BLUE, "p3": BLUE}


def test_a_picture_that_changes_back_is_delivered_again(spark, made, tmp_path):
    from datetime import timedelta

    for number, image in enumerate((RED, BLUE, RED)):
        write_folder(tmp_path)
        add_columns(tmp_path, image=[image, None, None, None])
        day = FIRST + timedelta(days=number)
        deliver(spark, made, tmp_path, day)
        assert [bytes(row["image"]) for row in of_day(spark, made, "raw_poi_images", day)] == [image]


def test_a_struct_with_bytes_is_read_and_a_catalogue_without_pictures_makes_no_table(spark, made, tmp_path):
    write_folder(tmp_path)
    deliver(spark, made, tmp_path, FIRST)
    assert not Path(made.storage.root, "raw_poi_images").exists()

    structs = [{"bytes": RED, "path": "x.png"}, None, {"bytes": None, "path": "y.png"}, None]
    add_columns(tmp_path, image=structs)
    deliver(spark, made, tmp_path, SECOND)

    assert [bytes(row["image"]) for row in of_day(spark, made, "raw_poi_images", SECOND)] == [RED]


@pytest.mark.parametrize(
    ("column", "values", "advice"),
    [
        ("image", ["a.png"] * 4, "image_uri"),
        ("image_uri", [1] * 4, "string"),
        ("image_vector", ["1,2"] * 4, "array<float>"),
    ],
)
def test_a_column_of_another_type_stops_the_delivery_and_says_what_it_should_be(
    spark, made, tmp_path, column, values, advice
):
    write_folder(tmp_path)
    add_columns(tmp_path, **{column: values})

    with pytest.raises(SchemaError, match=advice):
        deliver(spark, made, tmp_path, FIRST)
