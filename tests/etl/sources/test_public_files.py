"""The raw TSMC2014 TSV and the CSV of GETNext."""

from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import functions as F

from conf.errors import SchemaError
from conf.settings import Settings, SourceSettings
from etl.sources.public_files import GetnextFile, TsmcFile, parse_time
from etl.spark.session import local_frame

DAY = date(2012, 4, 3)
TSMC = (
    "470\tp1\t4bf5\tArts & Crafts Store\t40.71981\t-74.00258\t-240\tTue Apr 03 18:00:09 +0000 2012\n"
    "979\tp2\t4bf6\tCaf\u00e9\t40.60680\t-74.04417\t-240\tTue Apr 03 18:00:25 +0000 2012\n"
    "979\tp2\t4bf7\tBar\t40.60680\t-74.04417\t-240\tTue Apr 03 18:01:25 +0000 2012\n"
    "979\tp2\t4bf7\tBar\t40.60682\t-74.04417\t-240\tWed Apr 04 18:01:25 +0000 2012\n"
)
GETNEXT = (
    "user_id,POI_id,POI_catid,POI_catid_code,POI_catname,latitude,longitude,timezone,UTC_time,local_time,day_of_week,"
    "norm_in_day_time,trajectory_id,norm_day_shift,norm_relative_time\n"
    "1,p1,4bf5,0,American Restaurant,40.78,-73.97,-240,2012-04-03 18:00:09+00:00,"
    "2012-04-03 14:00:09-04:00,1,0.58,1_1,0,0.1\n"
    '2,p2,4bf6,0,"Bar, Pub",nonsense,-73.97,-240,2012-04-03 19:00:00+00:00,,1,0.58,2_1,0,0.1\n'
)


def with_path(settings: Settings, path: Path) -> Settings:
    return settings.model_copy(update={"source": SourceSettings(path=str(path))})


@pytest.fixture
def tsmc(settings, tmp_path):
    path = tmp_path / "dataset_TSMC2014_NYC.txt"
    path.write_bytes(TSMC.encode("latin-1"))
    return with_path(settings, path)


def test_tsmc_rows_become_checkins_up_to_the_day(spark, tsmc):
    actions = TsmcFile().read(spark, tsmc, day=DAY)["raw_actions"]

    rows = [
        tuple(row)
        for row in actions.orderBy("action_ts_ms")
        .select("user_id", "action_ts_ms", "poi_lat", "category")
        .collect()
    ]
    assert rows == [
        ("470", 1333476009000, 40.71981, "Arts & Crafts Store"),
        ("979", 1333476025000, 40.6068, "Caf\u00e9"),  # Latin-1, as the file is
        ("979", 1333476085000, 40.6068, "Bar"),
    ]


def test_the_derived_catalogue_knows_nothing_of_later_days(spark, tsmc):
    today, tomorrow = (TsmcFile().read(spark, tsmc, day=day)["raw_pois"] for day in (DAY, date(2012, 4, 4)))

    # One Bar, one Cafe: the first in the alphabet. The day after, Bar leads, and the median place has moved.
    assert [tuple(row) for row in today.where("poi_id = 'p2'").select("category", "poi_lat").collect()] == [
        ("Bar", 40.6068)
    ]
    late = tomorrow.where("poi_id = 'p2'").select("category", "first_seen_date").collect()
    assert [tuple(row) for row in late] == [("Bar", DAY)]


def test_a_file_with_other_columns_is_refused_with_an_example(spark, settings, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("0\t2010-10-19T23:55:27Z\t30.23\t-97.79\t22847\n")

    with pytest.raises(SchemaError) as error:
        TsmcFile().read(spark, with_path(settings, path), day=DAY)

    assert "5 columns in the first row" in str(error.value)
    assert "Tue Apr 03 18:00:09 +0000 2012" in str(error.value)


def test_getnext_rows_are_read_by_their_header_and_nonsense_becomes_null(spark, settings, tmp_path):
    path = tmp_path / "NYC_train.csv"
    path.write_text(GETNEXT)

    actions = GetnextFile().read(spark, with_path(settings, path), day=DAY)["raw_actions"]

    names = ("user_id", "poi_id", "category", "poi_lat", "tz_offset_min", "action_ts_ms")
    rows = [tuple(row) for row in actions.orderBy("user_id").select(*names).collect()]
    assert rows == [
        ("1", "p1", "American Restaurant", 40.78, -240, 1333476009000),
        ("2", "p2", "Bar, Pub", None, -240, 1333479600000),
    ]


def test_both_forms_of_time_are_read_and_nonsense_is_null(spark):
    texts = [
        "Tue Apr 03 18:00:09 +0000 2012",
        "2012-04-03 18:00:09",
        "Tue Foo 03 18:00:09 +0000 2012",
        "soon",
        None,
    ]
    frame = local_frame(spark, [(text,) for text in texts], "text string")

    times = [row[0] for row in frame.select(parse_time(F.col("text"))).collect()]

    assert times == [1333476009000, 1333476009000, None, None, None]
