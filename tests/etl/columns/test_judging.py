"""What all delivered tables share: values of any type become ids, times and numbers; time zones fit their place."""

from decimal import Decimal

import pytest
from pyspark.sql import functions as F

from etl.columns import judging
from etl.spark.session import local_frame

pytestmark = pytest.mark.spark
NAN, INF = float("nan"), float("inf")


def read(spark, function, kind, values):
    frame = local_frame(spark, [(value,) for value in values], f"value {kind}")
    column = function(F.col("value"), frame.schema["value"].dataType)
    return [row[0] for row in frame.select(column).collect()]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("string", ["007", " p1", "", None], ["007", " p1", "", None]),  # blanks are `clean_id`'s
        ("bigint", [7, -1, None], ["7", "-1", None]),
        ("double", [7.0, 7.5, NAN, INF, 2.0**53 - 1, 2.0**53], ["7", None, None, None, "9007199254740991", None]),
        ("float", [7.0, 2.0**24 - 1, 2.0**24], ["7", "16777215", None]),
        ("decimal(38,10)", [Decimal("12"), Decimal("12.5")], ["12", None]),
        ("binary", [b"p1", b"\xff"], ["p1", "\ufffd"]),
        ("boolean", [True], [None]),
        ("array<string>", [["p1"]], [None]),
    ],
)  # fmt: skip
def test_ids_are_text_whatever_the_type_of_their_column(spark, kind, values, expected):
    assert read(spark, judging.id_text, kind, values) == expected


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("string", ["1771750800000", " 1771750800000.0 ", "1.7717508E12"], [1771750800000] * 3),
        ("string", ["1.5", "7d", "2026-02-22", "NaN", "", None, "99999999999999999999"], [None] * 7),
        ("double", [1.7717508e12, 1.5, NAN, INF, 1e300, 9e18], [1771750800000, None, None, None, None, 9 * 10**18]),
        ("float", [1.7717508e12], [None]),  # off by up to a minute
        ("bigint", [2**63 - 1, None], [2**63 - 1, None]),
        ("decimal(20,2)", [Decimal("1771750800000.00"), Decimal("0.5")], [1771750800000, None]),
    ],
)  # fmt: skip
def test_times_are_whole_numbers_whatever_the_type_of_their_column(spark, kind, values, expected):
    assert read(spark, judging.time_ms, kind, values) == expected


def test_minutes_and_degrees_are_numbers_or_null(spark):
    assert read(spark, judging.minutes, "string", ["-300", "5.5", "02:00", "3e9"]) == [-300, None, None, None]
    assert read(spark, judging.minutes, "bigint", [2**40, 60]) == [None, 60]
    degrees = read(spark, judging.degrees, "string", ["4.9", "-74", ".5", "4,9", "nan", "1e400"])
    assert degrees == [4.9, -74.0, 0.5, None, None, INF]
    assert read(spark, judging.degrees, "boolean", [True]) == [None]


ZONES = [
    ("New York, summer", -240, -74.0, False),
    ("New York in hours", -4, -74.0, True),
    ("New York, wrong sign", 240, -74.0, True),
    ("a traveller from New York in London", -300, -0.1, False),
    ("Berlin, winter", 60, 13.4, False),
    ("Berlin, wrong sign in winter", -60, 13.4, True),
    ("Berlin, wrong sign in summer", -120, 13.4, True),
    ("Lisbon, summer", 60, -9.1, False),
    ("Santiago de Compostela, summer", 120, -8.5, False),
    ("Kashgar on Beijing's time", 480, 76.0, False),
    ("Vardo, winter", 60, 31.1, False),
    ("Kiritimati", 840, -157.4, False),
    ("UTC in London", 0, -0.1, False),
    ("nowhere", 300, None, False),
    ("hours nowhere", 2, None, True),
    ("no zone", 2000, 4.9, False),  # another rule's
    ("the least of all integers", -(2**31), 4.9, False),
    ("no longitude", 300, 1e300, False),
    ("none", None, 4.9, False),
]


def test_a_time_zone_fits_its_place_or_is_far(spark):
    frame = local_frame(spark, ZONES, "name string, tz int, lon double, expected boolean")

    far = F.coalesce(judging.is_zone_far(F.col("tz"), F.col("lon")), F.lit(False))
    found = {row["name"]: row["far"] for row in frame.select("name", far.alias("far")).collect()}

    assert found == {name: expected for name, _, _, expected in ZONES}


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([-4, -5, -4, 0, None], "looks like hours: 3 of 3"),
        ([-4, -4, -300], "looks like hours: 2 of 3"),  # a damaged row does not hide it
        ([240, 300, 240, -240], "wrong sign: 3 of 4"),
        ([-240, -300, 240], None),
        ([0, 0, None], None),
        ([], None),
    ],
)
def test_a_column_of_offsets_is_judged_as_a_whole(spark, offsets, expected):
    frame = local_frame(spark, [(tz, -74.0) for tz in offsets], "tz int, lon double")

    warning = frame.agg(judging.zone_warning(F.col("tz"), F.col("lon"))).collect()[0][0]

    assert (warning is None) if expected is None else (expected in warning)
