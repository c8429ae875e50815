"""Requests of the synthetic city, the POIs shown in them, and the click model behind the labels.

The click model is known (settings `city.clicks`), so the best AUC that any ranker can reach is known too:
`click_logit` gives the log-odds of a click as an expression. It depends on interest (leaf), hour (whether the POI
serves what people do at this hour), distance, favourite POIs, popularity, an attribute that appears only in the
POI's text, with `city.pictures` a look that appears only in its picture, the position, and noise that no feature shows.
"""

from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.settings import CitySettings
from etl.city.actions import SLOTS, with_day, with_slot
from etl.city.geography import (
    FIRST_LEAF,
    KIND_NAMES,
    KIND_OF_LEAF,
    LEAVES,
    look_up,
    normal,
    place_of_poi,
    poi_id,
    uniform,
    whole,
    with_poi,
)
from etl.city.users import FAVOURITES, choose_leaf, favourite_leaf, with_chosen_poi, with_open_poi
from etl.columns.spacetime import distance_km, event_date
from etl.sources.base import keep_dates

FIRST_SHOWN_KIND = KIND_NAMES.index("coffee")
"""Kinds from this one on are shown in requests: what one goes to for pleasure."""
SPARE_CANDIDATES = 7
"""Candidates recalled beyond the wanted number, since some are recalled twice."""


def build_impressions(users: DataFrame, *, city: CitySettings, after: date | None, until: date) -> DataFrame:
    """Builds the impressions of the UTC days after `after` (null: from the first) up to `until`.

    Returns:
        Rows of `raw_impressions` without `day`.
    """
    shown = build_exposures(users, city=city, after=after, until=until)
    probability = F.lit(1.0) / (F.lit(1.0) + F.exp(-click_logit(city=city)))
    is_clicked = uniform(city.seed, "click", F.col("request_id"), F.col("poi_no")) < probability
    return shown.select(
        "request_id",
        "user_id",
        "request_ts_ms",
        "tz_offset_min",
        "user_lon",
        "user_lat",
        poi_id(F.col("poi_no")).alias("poi_id"),
        "position",
        is_clicked.cast("int").alias("label"),
        F.lit(True).alias("is_simulated"),
    )


def build_exposures(users: DataFrame, *, city: CitySettings, after: date | None, until: date) -> DataFrame:
    """Builds the shown POIs with all columns that `click_logit` reads, one row per request and POI."""
    requests = build_requests(users, city=city, after=after, until=until)
    opened = with_open_poi(_recall(requests, city), "local_day", city=city).dropDuplicates(
        ["request_id", "request_ts_ms", "poi_no"]
    )
    # Grouped by time too, so that a filter on the day is pushed down to the users and other days are not computed.
    by_hash = Window.partitionBy("request_id", "request_ts_ms").orderBy(
        F.xxhash64(F.lit(city.seed), "request_id", "poi_no"), "poi_no"
    )
    shown = opened.withColumn("position", F.row_number().over(by_hash)).where(
        F.col("position") <= city.num_candidates
    )
    return _describe(shown, city)


def build_requests(users: DataFrame, *, city: CitySettings, after: date | None, until: date) -> DataFrame:
    """Builds the requests of the UTC days after `after` (null: from the first) up to `until`, without POIs."""
    return _make_requests(users, city).where(
        keep_dates(event_date(F.col("request_ts_ms")), day=until, since=after)
    )


def expose(requests: DataFrame, lists: DataFrame, *, city: CitySettings) -> DataFrame:
    """Builds the exposures of any lists, one row per request and POI, with all columns that `click_logit` reads.

    Args:
        requests: rows of `build_requests`.
        lists: request_id, poi_no and position (1 = first) of what another system shows.
        city: settings.
    """
    listed = requests.join(lists, "request_id").withColumnRenamed("city_no", "home_city_no")
    return _describe(with_poi(listed, city=city), city)


def _describe(shown: DataFrame, city: CitySettings) -> DataFrame:
    """Adds the place, the distance and the kind of POIs (`with_poi`), and the user's favourites of their leaf."""
    lon, lat = place_of_poi(F.col("local_day"), city=city)
    return (
        _with_favourites(shown, city)
        .withColumns({"poi_lon": lon, "poi_lat": lat})
        .withColumn(
            "distance_km",
            distance_km(F.col("user_lon"), F.col("user_lat"), F.col("poi_lon"), F.col("poi_lat")),
        )
        .withColumn("shown_kind_no", look_up(KIND_OF_LEAF, F.col("leaf_no")))
    )


def click_logit(*, city: CitySettings, observable: bool = False) -> Column:
    """Returns the log-odds of a click for a row of `build_exposures`.

    Args:
        city: settings.
        observable: leave out the noise and the position, which an oracle that ranks before showing cannot know.
    """
    weights, kind_no = city.clicks, F.col("shown_kind_no")
    tastes = [F.col("leaf_no") == favourite_leaf(kind_no, place, city=city) for place in (0, 1)]
    # One bit for each kind that the slot of the request leads to.
    served = look_up(
        [sum(1 << KIND_NAMES.index(kind) for kind in slot.kinds) for slot in SLOTS], F.col("slot_no")
    )
    serves = F.getbit(served, kind_no) == 1
    is_favourite = F.lit(False)
    for number in range(FAVOURITES):
        is_favourite = is_favourite | (F.col("poi_no") == F.col(f"favourite_{number}"))
    logit = (
        F.lit(weights.bias)
        + F.when(tastes[0], weights.first_taste).when(tastes[1], weights.second_taste).otherwise(0.0)
        + F.when(serves, weights.hour).otherwise(0.0)
        + F.when(is_favourite, weights.favourite).otherwise(0.0)
        + F.lit(weights.log_distance) * F.log1p("distance_km")
        + F.lit(weights.log_rank) * F.log1p("rank")
        + F.when(F.col("attribute_no") == F.col("likes_no"), weights.attribute).otherwise(0.0)
    )
    if city.pictures:
        logit += F.when(F.col("look_no") == F.col("likes_look_no"), weights.look).otherwise(0.0)
    if observable:
        return logit
    noise = normal(city.seed, "click noise", F.col("request_id"), F.col("poi_no"))
    return logit + F.lit(weights.position) * (F.col("position") - 1) + F.lit(weights.noise) * noise


def _make_requests(users: DataFrame, city: CitySettings) -> DataFrame:
    """Builds requests in proportion to activity, at times and places of the slots of a day."""
    seed, user = city.seed, F.col("user_no")
    expected = F.lit(city.num_requests / city.num_users) * F.col("activity")
    num_requests = F.floor(expected + uniform(seed, "requests", user)).cast("int")
    life = F.lit(city.num_days) - F.col("joined")
    ids = (user, F.col("request_no"))
    numbered = (
        users.withColumn("num_requests", num_requests)
        .where("num_requests > 0")
        .withColumn("request_no", F.explode(F.sequence(F.lit(0), F.col("num_requests") - 1)))
        .withColumn("_at", (F.col("request_no") + uniform(seed, "request day", *ids)) / F.col("num_requests"))
        .withColumn("day_no", F.col("joined") + whole(F.col("_at"), life))
    )
    dated = with_day(numbered, city=city).withColumn("progress", uniform(seed, "request slot", *ids))
    slotted = with_slot(dated, ids=("user_no", "request_no"), city=city)
    return (
        slotted.withColumn("request_id", F.format_string("r%07d-%05d", *ids))
        .withColumnRenamed("ts_ms", "request_ts_ms")
        .withColumnsRenamed({"from_lon": "user_lon", "from_lat": "user_lat"})
    )


def _recall(requests: DataFrame, city: CitySettings) -> DataFrame:
    """Recalls POIs in turn: favourites, POIs around the user for this hour, POIs around the user of any kind."""
    seed, ids = city.seed, (F.col("request_id"), F.col("recall_no"))
    recalled = requests.withColumn(
        "recall_no", F.explode(F.sequence(F.lit(0), F.lit(city.num_candidates + SPARE_CANDIDATES - 1)))
    )
    turn, first = F.col("recall_no") % 3, FIRST_LEAF[FIRST_SHOWN_KIND]
    any_leaf = whole(uniform(seed, "recall leaf", *ids), len(LEAVES) - first) + F.lit(first)
    any_kind = whole(uniform(seed, "recall kind", *ids), len(KIND_NAMES) - FIRST_SHOWN_KIND) + F.lit(
        FIRST_SHOWN_KIND
    )
    for_hour = F.when(F.col("kind_no") >= FIRST_SHOWN_KIND, F.col("kind_no")).otherwise(any_kind)
    # On a trip the favourites at home are not shown.
    is_favourite = (turn == 0) & (F.col("stay_city") == F.col("city_no"))
    leaved = (
        recalled.withColumn("_kind_no", for_hour)
        .withColumn("_leaf_draw", uniform(seed, "recall taste", *ids))
        .withColumn(
            "_leaf_no",
            F.when(turn < 2, choose_leaf(F.col("_kind_no"), F.col("_leaf_draw"), city=city)).otherwise(
                any_leaf
            ),
        )
    )
    favourite = F.when(is_favourite, whole(uniform(seed, "recall favourite", *ids), FAVOURITES))
    chosen = with_chosen_poi(
        leaved,
        "poi_no",
        leaf="_leaf_no",
        favourite=favourite,
        looks_around=F.xxhash64(*ids),
        city=city,
        seeks=False,
    )
    return chosen.drop("_kind_no", "_leaf_draw", "_leaf_no", "recall_no").dropDuplicates(
        ["request_id", "request_ts_ms", "poi_no"]
    )


def _with_favourites(shown: DataFrame, city: CitySettings) -> DataFrame:
    """Adds the numbers of the user's favourite POIs of the shown leaf: `favourite_0` and so on."""
    of_user = shown.withColumnsRenamed({"city_no": "_poi_city_no", "home_city_no": "city_no"})
    for number in range(FAVOURITES):
        of_user = with_chosen_poi(
            of_user,
            f"favourite_{number}",
            leaf="leaf_no",
            favourite=F.lit(number),
            looks_around=None,
            city=city,
        )
    return of_user.withColumnsRenamed({"city_no": "home_city_no", "_poi_city_no": "city_no"})
