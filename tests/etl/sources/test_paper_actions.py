"""Actions in the paper's form: JSON lines and Parquet."""

from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import SchemaError
from conf.settings import SourceSettings
from etl.sources.paper_actions import PaperActions

DAY = date(2026, 1, 2)
LINES = (
    '{"time": 1767225600000, "user_id": "u1", "user_geo": {"x": 116.4, "y": 39.9}, "poi_id": "p1", '
    '"poi_geo": {"x": 116.41, "y": 39.91}, "category": "food, French food", "action_type": "click"}\n'
    '{"time": "yesterday", "user_id": "u2", "poi_id": "p1", "poi_geo": {"x": "far", "y": 39.91}, '
    '"action_type": "click"}\n'
    '{"time": 17672256000\n'
)


def read(spark, settings, path):
    source = settings.model_copy(update={"source": SourceSettings(path=str(path))})
    return PaperActions().read(spark, source, day=DAY)


@pytest.fixture
def rows(spark, settings, tmp_path):
    path = tmp_path / "actions.json"
    path.write_text(LINES)
    return {row["user_id"]: row for row in read(spark, settings, path)["raw_actions"].collect()}


def test_x_is_longitude_and_y_is_latitude(rows):
    row = rows["u1"]

    assert (row["user_lon"], row["user_lat"], row["poi_lon"], row["poi_lat"]) == (116.4, 39.9, 116.41, 39.91)
    assert (row["category"], row["action_type"], row["action_ts_ms"]) == (
        "food, French food",
        "click",
        1767225600000,
    )


def test_a_value_of_a_wrong_type_is_null_in_its_own_field_only(rows):
    row = rows["u2"]

    assert (row["action_ts_ms"], row["poi_lon"], row["poi_lat"], row["poi_id"]) == (None, None, 39.91, "p1")


def test_a_line_that_is_no_json_is_kept_as_it_came(rows):
    assert rows[None]["corrupt_record"] == '{"time": 17672256000'
    assert rows[None]["action_id"] is None


def test_parquet_of_the_same_shape_gives_the_same_rows(spark, settings, tmp_path):
    record = {
        "time": [1767225600000],
        "user_id": ["u1"],
        "user_geo": [{"x": 116.4, "y": 39.9}],
        "poi_id": ["p1"],
        "poi_geo": [{"x": 116.41, "y": 39.91}],
        "action_type": ["click"],
    }
    pq.write_table(pa.table(record), tmp_path / "actions.parquet")

    row = read(spark, settings, tmp_path / "actions.parquet")["raw_actions"].first()

    assert (row["user_lon"], row["poi_lat"], row["action_ts_ms"]) == (116.4, 39.91, 1767225600000)


def test_a_parquet_file_without_a_needed_column_is_refused_with_an_example(spark, settings, tmp_path):
    pq.write_table(pa.table({"time": [1], "user_id": ["u1"]}), tmp_path / "actions.parquet")

    with pytest.raises(SchemaError, match="A record looks like this"):
        read(spark, settings, tmp_path / "actions.parquet")


def test_a_bare_nan_is_no_user_and_no_place(spark, settings, tmp_path):
    path = tmp_path / "actions.json"
    path.write_text(
        '{"time": 1767225600000, "user_id": NaN, "poi_id": "p1", "poi_geo": {"x": NaN, "y": 39.91}, '
        '"action_type": "click"}\n' + LINES
    )

    rows = read(spark, settings, path)["raw_actions"].where("user_id = 'NaN'").collect()

    # A word for nothing, which the cleaning refuses; in quotes it would be one, too.
    assert [(row["user_id"], str(row["poi_lon"])) for row in rows] == [("NaN", "nan")]


def test_the_case_of_keys_does_not_matter_and_the_record_stays_as_it_came(spark, settings, tmp_path):
    path = tmp_path / "actions.json"
    line = (
        '{"Time": 1767225600000, "USER_ID": "Time", "poi_Id": "p1", "Poi_Geo": {"x": 116.41, "y": 39.91}, '
        '"Action_Type": "click", "Category": "Bar"}'
    )
    path.write_text(line + "\n")

    row = read(spark, settings, path)["raw_actions"].first()

    assert (row["user_id"], row["poi_id"], row["poi_lon"], row["category"]) == ("Time", "p1", 116.41, "Bar")
    assert (row["action_ts_ms"], row["record"]) == (1767225600000, line)
