"""The synthetic city: reproducible, coherent, and its planted truths can be found again."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.rules import RULES
from conf.settings import CitySettings, CleanSettings, Settings
from etl.city.actions import build_visits
from etl.city.dirt import NOT_PLANTED, plant_dirty_actions, plant_dirty_pois
from etl.city.geography import LEAVES, PATHS, lay_out, poi_number, with_poi
from etl.city.shown import build_exposures, build_requests, click_logit, expose
from etl.city.source import SyntheticCity, plant_truth
from etl.city.users import build_users, is_open

CITY = CitySettings(
    num_users=80, num_pois=900, num_actions=2_400, num_requests=400, num_days=21, dirty_share=0.2
)
LAST = CITY.first_day + timedelta(days=20)
BEFORE = LAST - timedelta(days=1)


@pytest.fixture(scope="module")
def users(spark: SparkSession):
    return build_users(spark, CITY).localCheckpoint()


@pytest.fixture(scope="module")
def visits(users):
    return build_visits(users, city=CITY, after=None, until=LAST).localCheckpoint()


@pytest.fixture(scope="module")
def truth(spark: SparkSession) -> pd.DataFrame:
    return plant_truth(spark, Settings(city=CITY), day=LAST).users.toPandas().set_index("user_id")


@pytest.fixture(scope="module")
def exposures(users) -> pd.DataFrame:
    shown = build_exposures(users, city=CITY, after=None, until=LAST)
    logits = shown.withColumns(
        {"logit": click_logit(city=CITY), "observable": click_logit(city=CITY, observable=True)}
    )
    return logits.select("request_id", "poi_no", "position", "logit", "observable").toPandas()


def test_given_lists_are_judged_by_the_same_click_model(spark, users, exposures):
    requests = build_requests(users, city=CITY, after=None, until=LAST)
    lists = spark.createDataFrame(exposures[["request_id", "poi_no", "position"]].iloc[:300])
    again = expose(requests, lists, city=CITY).withColumn("logit", click_logit(city=CITY))

    found = again.select("request_id", "poi_no", "logit").toPandas().merge(
        exposures, on=["request_id", "poi_no"], suffixes=("_again", "")
    )  # fmt: skip
    assert len(found) == 300
    assert np.abs(found["logit_again"] - found["logit"]).max() == 0


def test_a_poi_number_and_its_attributes_give_each_other(spark):
    numbers = spark.range(CITY.num_pois).select(F.col("id").cast("int").alias("poi_no"))
    described = with_poi(numbers, city=CITY)
    hoods = F.element_at(F.array(*map(F.lit, lay_out(CITY).num_hoods)), F.col("city_no") + 1)
    again = described.withColumn("in_city", F.col("rank") * hoods + F.col("hood_no")).withColumn(
        "again", poi_number(F.col("leaf_no"), F.col("city_no"), F.col("in_city"), city=CITY)
    )

    assert again.where("again <> poi_no").count() == 0


def test_the_volume_is_as_asked_and_ids_are_unique(visits):
    ids = [row["action_id"] for row in visits.select("action_id").collect()]

    assert len(set(ids)) == len(ids)
    assert len(ids) == pytest.approx(CITY.num_actions, rel=0.05)


def test_rows_do_not_depend_on_partitioning(users, visits):
    otherwise = build_visits(users.repartition(7, "joined"), city=CITY, after=None, until=LAST)

    assert visits.exceptAll(otherwise).count() == otherwise.exceptAll(visits).count() == 0


def test_nights_add_up_to_one_delivery_of_all_history(users, visits):
    nights = build_visits(users, city=CITY, after=None, until=BEFORE).unionByName(
        build_visits(users, city=CITY, after=BEFORE, until=LAST)
    )

    assert visits.exceptAll(nights).count() == nights.exceptAll(visits).count() == 0


def test_users_act_on_open_pois_only(visits):
    on = F.expr("date(timestamp_millis(action_ts_ms + tz_offset_min * 60000))")
    acted = with_poi(
        visits.select(F.substring("poi_id", 2, 8).cast("int").alias("poi_no"), on.alias("on")), city=CITY
    )

    # A night out may end after midnight: the POI was open on the day that it began.
    assert acted.where(~is_open(F.col("on")) & ~is_open(F.date_sub("on", 1))).count() == 0


def test_a_user_place_is_where_the_user_comes_from(visits):
    places = visits.where("user_lon IS NOT NULL")

    assert places.where("abs(user_lon - poi_lon) < 1e-9 OR abs(user_lat - poi_lat) < 1e-9").count() == 0
    assert 0.85 < places.count() / visits.count() < 0.97


def test_homes_and_offices_are_where_they_were_planted(visits, truth):
    buildings = visits.where(F.col("category").isin("Residential Building (Apartment / Condo)", "Office"))
    seen = buildings.select("user_id", "category", "poi_lon", "poi_lat").distinct().toPandas()

    for row in seen.itertuples():
        home = truth.loc[row.user_id]
        kind = "work" if row.category == "Office" else "home"
        assert (row.poi_lon, row.poi_lat) == pytest.approx((home[f"{kind}_lon"], home[f"{kind}_lat"]))
    assert len(seen) > CITY.num_users  # not a single pair is missing for lack of data


def test_the_planted_taste_is_the_most_visited_kind_of_restaurant(visits, truth):
    eaten = visits.select("user_id", "category").toPandas()
    meals = eaten[
        eaten["category"].isin(
            [leaf for leaf, path in zip(LEAVES, PATHS, strict=True) if path.startswith("Food >")]
        )
    ]
    meals = meals[~meals["category"].isin(["Coffee Shop", "Cafe", "Bakery"])]

    liked = meals["category"].to_numpy() == truth.loc[meals["user_id"], "taste_food"].to_numpy()
    assert liked.mean() > 0.45  # of six kinds; taste alone is 52 %


def test_every_rule_has_its_dirty_row(spark, visits):
    city = CITY.model_copy(update={"kept_dirt_share": 0.2, "bot_share": 0.002})
    columns = ("poi_id", "name", "category", "category_path", "first_seen_date", "poi_lon", "poi_lat")
    pois = spark.range(500).selectExpr(
        "concat('p', id)", "'Bar'", "'Bar'", "'Food > Bar'", "DATE'2025-01-01'", "4.9D", "52.4D"
    )
    dirty = plant_dirty_actions(visits, city=city, clean=CleanSettings(max_actions_per_day=5))
    dirty_pois = plant_dirty_pois(pois.toDF(*columns), city=city, clean=CleanSettings())

    for table, frame in (("raw_actions", dirty), ("raw_pois", dirty_pois)):
        reasons = {row[0] for row in frame.select("planted_reason").distinct().collect()}
        assert reasons == {rule.code for rule in RULES if rule.table == table} - {*NOT_PLANTED} | {None}


def test_a_bot_acts_more_often_on_a_day_than_is_kept(visits):
    city = CITY.model_copy(update={"dirty_share": 0.0, "bot_share": 0.002})
    dirty = plant_dirty_actions(visits, city=city, clean=CleanSettings(max_actions_per_day=5))
    bots = dirty.where("user_id LIKE 'bot-%'").groupBy("user_id", "planted_reason").count().collect()

    assert {(row["planted_reason"], row["count"]) for row in bots} == {(None, 5), ("too_many_actions", 20)}


def test_planting_dirt_leaves_the_clean_rows_as_they_are(visits):
    dirty = plant_dirty_actions(visits, city=CITY, clean=CleanSettings())
    clean = dirty.where("planted_reason IS NULL").drop("planted_reason")

    assert visits.exceptAll(clean).count() == clean.exceptAll(visits).count() == 0
    assert dirty.count() == pytest.approx(clean.count() / (1 - CITY.dirty_share), rel=0.1)


def test_clicks_fall_with_the_position_and_follow_the_planted_odds(exposures):
    probability = 1 / (1 + np.exp(-exposures["logit"]))
    by_position = probability.groupby(exposures["position"]).mean()

    assert by_position[1] > 1.5 * by_position[CITY.num_candidates]
    assert 0.05 < probability.mean() < 0.35
    assert (
        exposures["observable"].corr(exposures["logit"]) > 0.8
    )  # noise and position hide some of it, not most


def test_a_request_shows_each_poi_once(exposures):
    assert not exposures.duplicated(["request_id", "poi_no"]).any()
    assert exposures.groupby("request_id").size().max() == CITY.num_candidates


def test_the_first_night_tells_one_value_per_attribute_and_asks_for_rankings_of_the_day(spark):
    city, settings = SyntheticCity(), Settings(city=CITY)
    night = city.read(spark, settings, day=LAST)
    profiles = night["raw_profiles"].toPandas()
    requests = city.make_requests(night["raw_impressions"], settings, day=LAST)
    days = requests.select(F.expr("date(timestamp_millis(request_ts_ms))")).distinct().collect()

    assert not profiles.duplicated(["user_id", "attribute"]).any()
    assert set(profiles["attribute"]) == {"age_group", "home_city"}
    assert [row[0] for row in days] == [LAST]
