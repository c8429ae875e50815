"""The city's pictures: real bitmaps that show the look, and nothing else does."""

import io
from datetime import timedelta

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import functions as F

from conf.settings import CitySettings, ClickSettings, Settings
from etl.city.geography import FIRST_LEAF, LOOKS, poi_id, with_poi
from etl.city.pictures import FIRST_PICTURED_KIND, SIDE, build_pictures
from etl.city.shown import build_exposures, click_logit
from etl.city.source import SyntheticCity, plant_truth
from etl.city.users import build_users, with_chosen_poi

SIZES = {"num_users": 40, "num_pois": 600, "num_actions": 2_000, "num_requests": 300, "num_days": 21}
CITY = CitySettings(pictures=True, clicks=ClickSettings(look=2.0), **SIZES)
LAST = CITY.first_day + timedelta(days=20)


@pytest.fixture(scope="module")
def pois(spark):
    return with_poi(spark.range(CITY.num_pois).select(F.col("id").cast("int").alias("poi_no")), city=CITY)


@pytest.fixture(scope="module")
def pictures(pois):
    """Returns a picture, brightness (32, 32), and the number of the look of each POI that has one."""
    looks = {
        row["id"]: row["look_no"]
        for row in pois.select(poi_id(F.col("poi_no")).alias("id"), "look_no").collect()
    }
    rows = build_pictures(pois, city=CITY).collect()
    opened = [Image.open(io.BytesIO(bytes(row["image"]))) for row in rows]
    assert {(image.format, image.size, image.mode) for image in opened} == {("BMP", (SIDE, SIDE), "RGB")}
    grey = np.stack([np.asarray(image.convert("L"), dtype=float) for image in opened])
    return grey, np.array([looks[row["poi_id"]] for row in rows])


def test_a_picture_shows_the_look_of_its_poi(pictures):
    grey, looks = pictures
    # Without the noise, a row of stripes across has one brightness, and so has a column of stripes down.
    rows, columns = grey.mean(axis=2).std(axis=1), grey.mean(axis=1).std(axis=1)
    spread = grey.std(axis=(1, 2))

    across, down, plain = (looks == LOOKS.index(name) for name in ("striped across", "striped down", "plain"))
    assert (rows[across] > 2 * columns[across]).all()
    assert (columns[down] > 2 * rows[down]).all()
    assert spread[plain].max() < spread[~plain].min()
    assert set(looks) == set(range(len(LOOKS)))


def test_colour_and_brightness_say_nothing_of_the_look(pictures):
    grey, looks = pictures
    by_look = [grey[looks == number].mean() for number in range(len(LOOKS))]

    assert max(by_look) - min(by_look) < grey.mean(axis=(1, 2)).std()


def test_every_picture_is_delivered_once_and_says_that_it_is_simulated(spark, pois):
    half = CITY.first_day + timedelta(days=10)
    settings = Settings(city=CITY)
    later = settings.model_copy(update={"source": settings.source.model_copy(update={"since": half})})
    first = SyntheticCity().read(spark, settings, day=half)["raw_poi_images"].collect()
    second = SyntheticCity().read(spark, later, day=LAST)["raw_poi_images"].collect()

    known = pois.where(F.col("opened_date") <= F.lit(LAST)).select("poi_no", "leaf_no")
    expected = {row["poi_id"]: row["content_sha256"] for row in build_pictures(known, city=CITY).collect()}
    assert {row["poi_id"]: row["content_sha256"] for row in (*first, *second)} == expected
    assert 0 < len(second) < len(first)
    assert all(row["is_simulated"] for row in (*first, *second))


def test_without_pictures_the_city_is_as_before(spark):
    plain = CitySettings(**SIZES)
    delivery = SyntheticCity().read(spark, Settings(city=plain), day=LAST)

    assert "raw_poi_images" not in delivery
    assert "look_no" not in build_users(spark, plain).columns
    assert "likes_look" not in plant_truth(spark, Settings(city=plain), day=LAST).users.columns


def test_the_liked_look_adds_its_weight_to_the_log_odds_of_a_click(spark):
    users = build_users(spark, CITY)
    other = CITY.model_copy(update={"clicks": ClickSettings(look=0.0)})
    shown = build_exposures(users, city=CITY, after=None, until=LAST)
    found = shown.select(
        (F.col("look_no") == F.col("likes_look_no")).alias("liked"),
        (click_logit(city=CITY) - click_logit(city=other)).alias("gain"),
    ).toPandas()

    assert found["gain"].to_numpy() == pytest.approx(2.0 * found["liked"].to_numpy())
    assert 0.1 < found["liked"].mean() < 0.4


def test_favourites_have_the_look_and_the_attribute_that_a_user_likes_more_often_than_others(spark):
    city = CITY.model_copy(update={"attribute_tries": 4, "num_users": 300, "num_pois": 6_000})
    users = build_users(spark, city).withColumn("leaf_no", F.lit(FIRST_LEAF[FIRST_PICTURED_KIND]))
    chosen = with_chosen_poi(
        users, "poi_no", leaf="leaf_no", favourite=F.lit(0), looks_around=None, city=city
    ).withColumnRenamed("city_no", "home_city_no")
    described = with_poi(chosen.drop("leaf_no"), city=city)
    has_look, has_attribute = (
        F.avg((F.col(poi) == F.col(liked)).cast("int"))
        for poi, liked in (("look_no", "likes_look_no"), ("attribute_no", "likes_no"))
    )
    shares = described.agg(has_look, has_attribute).first()

    assert min(shares) > 1.5 / len(LOOKS)
