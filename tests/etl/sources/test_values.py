"""What a value of a file means: times with a date and a clock, ids as text, numbers as numbers; else nothing."""

import json
from datetime import UTC, datetime

import pytest
from pyspark.sql import functions as F
from pyspark.sql import types as T

from etl.sources import values as values
from etl.spark.session import local_frame

NOON_MS = int(datetime(2026, 2, 22, 12, tzinfo=UTC).timestamp() * 1000)
CLOCKS = {
    "2026-02-22 12:00:00": NOON_MS,
    "2026-02-22T12:00:00Z": NOON_MS,
    "2026-02-22T13:00:00+01:00": NOON_MS,
    "2026-02-22 17:30:00 +0530": NOON_MS,
    "2026-02-22 12:00": NOON_MS,
    "2026-02-22T12:00:00.123456789Z": NOON_MS + 123,
    "2026-02-22 12:00:00,5": NOON_MS + 500,
    " 2026-02-22 12:00:00+00:00 ": NOON_MS,
    "12:00:00": None,  # a clock without a date: Spark would take it for today
    "2012": None,
    "T2": None,
    "10:13": None,
    "2026-02-22": None,  # a date without a clock has no hour
    "2026-02-30 12:00:00": None,
    "2026-02-22 25:00:00": None,
    "yesterday": None,
    "": None,
}
EPOCHS = {
    str(NOON_MS): NOON_MS,
    f"{NOON_MS}.0": NOON_MS,
    "1.7717508E12": 1771750800000,
    f"{NOON_MS}.5": None,
    "2026-02-22T12:00:00Z": NOON_MS,
    "12:00:00": None,
}


def convert(spark, texts, kind):
    frame = local_frame(spark, [(text,) for text in texts], "text string")
    return [row[0] for row in frame.select(values.convert(F.col("text"), T.StringType(), kind)).collect()]


def test_a_time_is_a_date_with_a_clock(spark):
    assert convert(spark, CLOCKS, "clock") == list(CLOCKS.values())


def test_a_time_may_be_epoch_milliseconds_where_the_format_says_so(spark):
    assert convert(spark, EPOCHS, "epoch") == list(EPOCHS.values())


def test_nanoseconds_are_cut_to_milliseconds_without_a_double_between(spark):
    frame = local_frame(spark, [(1771747200123999999,), (1771747200000000000,), (None,)], "time bigint")

    converted = values.convert(F.col("time"), T.LongType(), "clock", is_nanoseconds=True)

    assert [row[0] for row in frame.select(converted).collect()] == [1771747200123, 1771747200000, None]


def test_degrees_are_numbers_and_words_for_no_number_are_kept_for_the_rules(spark):
    found = convert(spark, ["4.91", "-74", "NaN", "Infinity", "40,71", "1.5d", "0x1p3", "north"], "degrees")

    assert found[:2] == [4.91, -74.0]
    assert found[2] != found[2]
    assert found[3:] == [float("inf"), None, None, None, None]


def test_ids_of_a_format_without_types_lose_the_fraction_that_a_gap_gave_them_and_no_zeros(spark):
    frame = local_frame(
        spark, [("470.0",), ("007",), ("1.5",), ("2.10",), (" 5.0 ",), ("a.0",), (None,)], "id string"
    )

    found = [row[0] for row in frame.select(values.untyped_id(F.col("id"))).collect()]

    assert found == ["470", "007", "1.5", "2.10", "5", "a.0", None]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ('{"id": 20000001.0}', "20000001"),
        ('{"id": 20000001}', "20000001"),
        ('{"id": "20000001.0"}', "20000001.0"),  # in quotes it is text, and text is text
        ('{"id": "007"}', "007"),
        ('{"id": 1.5}', None),
        ('{"id": 9007199254740993.0}', None),  # beyond 2^53 neighbours are one number
        ('{"id": 9007199254740993}', "9007199254740993"),
        ('{"id": null}', None),
    ],
)
def test_ids_of_json_are_digits_if_they_are_whole_numbers(spark, record, expected):
    frame = local_frame(spark, [(record,)], "record string")
    text = F.from_json("record", "id string")["id"]

    assert frame.select(values.json_id(text, F.col("record"), "id")).first()[0] == expected


def test_a_record_holds_float_ids_digit_by_digit(spark):
    ids = [10126086.0, 7.0, 1234567.5, 1.2345678901234567e19, float("nan"), None]
    frame = local_frame(spark, [(value,) for value in ids], "id double")

    records = [row[0] for row in frame.select(values.record_json(frame, ["id"], {"id"})).collect()]

    texts = ["10126086", "7", "1234567.5", "1.2345678901234567E19", "NaN", None]
    assert [json.loads(record) for record in records] == [{"id": text} for text in texts]
