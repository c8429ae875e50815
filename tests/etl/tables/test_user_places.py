"""Home and work are found from nights and workdays, and left empty without enough of them."""

import pytest

from conf.settings import PlacesSettings
from conf.taxonomy import load_taxonomy
from conf.tokens import action_type_id
from etl.spark.session import local_frame
from etl.tables.user_places import build_user_places
from tests.rows import HOUR_MS, NOON_MS, cleaned, frame_of

DAY_MS = 24 * HOUR_MS
FRIDAY_MS = NOON_MS - DAY_MS
CHECKIN = action_type_id("checkin")


@pytest.fixture(scope="module")
def places(spark):
    rows = []
    for day in range(3):
        workday = FRIDAY_MS - day * DAY_MS
        rows += [
            cleaned(
                user_id="ann", action_ts_ms=workday + 10 * HOUR_MS, user_lon=4.80, user_lat=52.30
            ),  # 23 h local
            cleaned(user_id="ann", action_ts_ms=workday, user_lon=4.95, user_lat=52.40),  # 13 h local
            cleaned(
                user_id="bar", action_ts_ms=workday + 10 * HOUR_MS, action_type_id=CHECKIN, category_id=1
            ),
            cleaned(user_id="res", action_ts_ms=workday, action_type_id=CHECKIN, category_id=3, poi_lon=4.7),
        ]
    rows += [cleaned(user_id="new", action_ts_ms=FRIDAY_MS + 10 * HOUR_MS)]
    # One long night is one night: 23 h and 2 h local.
    rows += [cleaned(user_id="owl", action_ts_ms=FRIDAY_MS + hours * HOUR_MS) for hours in (10, 11, 12, 13)]
    actions = frame_of(spark, "cleaned_actions", [{**row, "action_id": str(n)} for n, row in enumerate(rows)])
    categories = local_frame(
        spark, [(1, "Bar"), (2, "Office"), (3, "Home (private)")], "category_id int, category string"
    )
    users = actions.select("user_id").distinct()
    built = build_user_places(actions, users, categories, settings=PlacesSettings(), taxonomy=load_taxonomy())
    return {row["user_id"]: row for row in built.collect()}


def test_home_is_where_the_nights_are_and_work_where_the_workdays_are(places):
    ann = places["ann"]

    assert (ann["home_lon"], ann["home_lat"], ann["home_days"]) == (4.80, 52.30, 3)
    assert (ann["work_lon"], ann["work_lat"], ann["work_days"]) == (4.95, 52.40, 3)


def test_a_check_in_at_a_residence_speaks_for_home_at_any_hour(places):
    assert (places["res"]["home_lon"], places["res"]["home_days"]) == (4.7, 3)


def test_nights_in_a_bar_are_no_home(places):
    assert places["bar"]["home_lon"] is None


def test_one_night_is_not_enough_and_counts_once(places):
    assert (places["new"]["home_lon"], places["new"]["home_days"]) == (None, 0)
    assert places["owl"]["home_lon"] is None
