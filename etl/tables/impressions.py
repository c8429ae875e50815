"""Actions and catalogue -> simulated exposures, for sources that log none (check-ins).

The recall rule in full: an action of the last `impressions.since_days` becomes one request if its user has acted
before its time (at most `max_requests_per_day`, chosen by hash). A request shows `num_candidates` POIs: the one
visited (label 1) and others (label 0), recalled from three lists in turn:

- own: the user's latest other POIs,
- nearby: POIs around the user's previous place, near ones first,
- popular: POIs near that place that were most visited at this time of the day.

The user's place is the previous action's, never the target's. All three lists use only facts known strictly
before the request: the user's history before its time, POIs first seen before its day, popularity up to
the month before. Positions are shuffled by hash. No click was observed: every row has `is_simulated` set.
"""

from datetime import date, timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.settings import ImpressionSettings
from etl.columns.spacetime import distance_km, event_date, is_on_earth, local_hour, tz_offset_from_longitude

OWN_ACTIONS = 30
"""Latest actions of the user among which own POIs are looked for."""
PER_CELL = 12
"""POIs per small cell that can be recalled as nearby; with nine cells this bounds the rows per request."""
PER_REGION = 20
"""POIs per region and time of day that can be recalled as popular."""
CELL_DEG, REGION_DEG = 0.02, 0.25
"""Sides of the cells of the recall lists, about 2 and 25 km of latitude."""
HOURS_PER_PERIOD = 4
NEARBY, POPULAR, OWN = "nearby", "popular", "own"


def simulate_impressions(
    requests: DataFrame, visits: DataFrame, pois: DataFrame, settings: ImpressionSettings, *, day: date
) -> DataFrame:
    """Builds the simulated impressions of a delivery.

    Args:
        requests: from `pick_requests`; read by every recall list, so the caller computes it once.
        visits: from `keep_visits`.
        pois: catalogue with poi_id, poi_lon, poi_lat and first_seen_date.
        settings: recall settings.
        day: day of the delivery.

    Returns:
        Rows of `raw_impressions` without `day`.
    """
    seed = settings.seed
    recalled = (
        _recall_own(requests, seed)
        .unionByName(_recall_nearby(requests, _keep_oldest(pois), settings))
        .unionByName(_recall_popular(requests, visits, day=day, num_days=settings.since_days))
        .join(requests.select("request_id", F.col("poi_id").alias("target")), "request_id")
        .where("poi_id <> target")
    )
    shown = _choose(recalled, settings).unionByName(
        requests.select("request_id", "poi_id", F.lit(1).alias("label"))
    )
    # Not rand(), whose values depend on the partitions: a rerun has to show every request the same list.
    by_hash = Window.partitionBy("request_id").orderBy(
        F.xxhash64(F.lit(seed), "request_id", "poi_id"), "poi_id"
    )
    about = requests.select("request_id", "user_id", "request_ts_ms", "tz_offset_min", "user_lon", "user_lat")
    return (
        shown.withColumn("position", F.row_number().over(by_hash))
        .join(about, "request_id")
        .withColumn("is_simulated", F.lit(True))
    )


def keep_visits(actions: DataFrame, pois: DataFrame) -> DataFrame:
    """Keeps one row per (user, time, POI) with known POI and valid time, at the catalogue's place of the POI.

    Args:
        actions: good actions up to the day of the delivery (`etl/tables/derived_pois.py`).
        pois: catalogue with poi_id, poi_lon and poi_lat.
    """
    places = pois.select("poi_id", "poi_lon", "poi_lat").where(
        is_on_earth(F.col("poi_lon"), F.col("poi_lat"))
    )
    nautical = tz_offset_from_longitude(F.col("poi_lon"))
    offset = F.col("tz_offset_min")
    hour = local_hour(F.col("action_ts_ms"), F.col("tz_offset_min"))
    return (
        actions.groupBy("action_id", "user_id", "action_ts_ms", "poi_id")
        .agg(F.min("tz_offset_min").alias("tz_offset_min"))
        .join(places, "poi_id")
        .withColumn("tz_offset_min", F.when(offset.between(-840, 840), offset).otherwise(nautical))
        .withColumn("event_date", event_date(F.col("action_ts_ms")))
        .withColumn("period", F.floor(hour / HOURS_PER_PERIOD).cast("int"))
    )


def pick_requests(
    visits: DataFrame, settings: ImpressionSettings, *, day: date, new: DataFrame | None
) -> DataFrame:
    """Turns new visits of users with earlier visits into requests: one row per request.

    Args:
        visits: from `keep_visits`, the new visits and all earlier ones.
        settings: recall settings.
        day: day of the delivery.
        new: `action_id` of the actions that are new on the day; None if all are.

    Returns:
        The request, the target (`poi_id`) and `own_poi_ids`, the user's latest POIs, last first.
    """
    start = day - timedelta(days=settings.since_days)
    by_time = Window.partitionBy("user_id").orderBy("action_ts_ms", "poi_id").rowsBetween(-OWN_ACTIONS, -1)
    earlier = F.collect_list(F.struct("action_ts_ms", "poi_id", "poi_lon", "poi_lat")).over(by_time)
    # A row before this one in the order may still have the same time; it is then not earlier.
    earlier = F.filter(earlier, lambda action: action["action_ts_ms"] < F.col("action_ts_ms"))
    by_hash = Window.partitionBy("event_date").orderBy(
        F.xxhash64(F.lit(settings.seed), "action_id"), "action_id"
    )
    # try_element_at: the array of a user's first action is empty, and the row is dropped below.
    previous = F.try_element_at("earlier", F.lit(-1))
    asking = visits.withColumn("earlier", earlier).where(
        (F.col("event_date") > F.lit(start)) & (F.col("event_date") <= F.lit(day)) & (F.size("earlier") > 0)
    )
    if new is not None:
        asking = asking.join(new.select("action_id").distinct(), "action_id", "left_semi")
    return (
        asking.withColumn("_rank", F.row_number().over(by_hash))
        .where(F.col("_rank") <= settings.max_requests_per_day)
        .select(
            F.concat(F.lit("sim-"), "action_id").alias("request_id"),
            "user_id",
            "poi_id",
            F.col("action_ts_ms").alias("request_ts_ms"),
            "tz_offset_min",
            previous["poi_lon"].alias("user_lon"),
            previous["poi_lat"].alias("user_lat"),
            "event_date",
            "period",
            F.array_distinct(F.reverse(F.col("earlier.poi_id"))).alias("own_poi_ids"),
        )
    )


def _recall_own(requests: DataFrame, seed: int) -> DataFrame:
    """Recalls the latest POIs first; a random half of them, since a user is not shown every place that she knows."""
    latest = requests.select("request_id", F.posexplode("own_poi_ids").alias("rank", "poi_id"))
    shown = F.pmod(F.xxhash64(F.lit(seed + 1), "request_id", "poi_id"), F.lit(2)) == 0
    return latest.where(shown).select("request_id", "poi_id", F.lit(OWN).alias("recall"), "rank")


def _recall_nearby(requests: DataFrame, listed: DataFrame, settings: ImpressionSettings) -> DataFrame:
    around = F.array(
        *(F.struct(F.lit(x).alias("x"), F.lit(y).alias("y")) for x in (-1, 0, 1) for y in (-1, 0, 1))
    )
    looked_at = (
        requests.withColumn("around", F.explode(around))
        .withColumn("cell_x", _wrap(_cell(F.col("user_lon"), CELL_DEG) + F.col("around.x"), CELL_DEG))
        .withColumn("cell_y", _cell(F.col("user_lat"), CELL_DEG) + F.col("around.y"))
        .select("request_id", "event_date", "user_lon", "user_lat", "cell_x", "cell_y")
    )
    distance = distance_km(F.col("user_lon"), F.col("user_lat"), F.col("poi_lon"), F.col("poi_lat"))
    # Distance in rings of 0.5 km, random within a ring: otherwise every user at a place would be shown the same list.
    ring = (distance / 0.5).cast("int")
    near_first = Window.partitionBy("request_id").orderBy(
        ring, F.xxhash64(F.lit(settings.seed + 2), "request_id", "poi_id"), "poi_id"
    )
    return (
        looked_at.join(listed, ["cell_x", "cell_y"])
        .where("first_seen_date < event_date")
        .withColumn("rank", F.row_number().over(near_first) - 1)
        .where(F.col("rank") < settings.num_candidates)
        .select("request_id", "poi_id", F.lit(NEARBY).alias("recall"), "rank")
    )


def _keep_oldest(pois: DataFrame) -> DataFrame:
    """Keeps the oldest `PER_CELL` POIs of each small cell: age is known on any later day, unlike popularity."""
    oldest = Window.partitionBy("cell_x", "cell_y").orderBy("first_seen_date", "poi_id")
    return (
        pois.where("first_seen_date IS NOT NULL AND poi_lon IS NOT NULL AND poi_lat IS NOT NULL")
        .withColumn("cell_x", _wrap(_cell(F.col("poi_lon"), CELL_DEG), CELL_DEG))
        .withColumn("cell_y", _cell(F.col("poi_lat"), CELL_DEG))
        .withColumn("_rank", F.row_number().over(oldest))
        .where(F.col("_rank") <= PER_CELL)
        .select("poi_id", "poi_lon", "poi_lat", "first_seen_date", "cell_x", "cell_y")
    )


def _recall_popular(requests: DataFrame, visits: DataFrame, *, day: date, num_days: int) -> DataFrame:
    """Recalls by popularity in the region at the time of day, over the months before the request's month."""
    first = (day - timedelta(days=num_days)).replace(day=1)
    months = F.sequence(F.lit(first), F.lit(day.replace(day=1)), F.expr("INTERVAL 1 MONTH"))
    region = [
        _wrap(_cell(F.col("poi_lon"), REGION_DEG), REGION_DEG).alias("region_x"),
        _cell(F.col("poi_lat"), REGION_DEG).alias("region_y"),
    ]
    counted = (
        visits.select("poi_id", "period", "event_date", *region, F.explode(months).alias("month"))
        .where("event_date < month")
        .groupBy("month", "period", "region_x", "region_y", "poi_id")
        .count()
    )
    most = Window.partitionBy("month", "period", "region_x", "region_y").orderBy(F.desc("count"), "poi_id")
    popular = counted.withColumn("rank", F.row_number().over(most) - 1).where(F.col("rank") < PER_REGION)
    keyed = requests.select(
        "request_id",
        "period",
        F.trunc("event_date", "month").alias("month"),
        _wrap(_cell(F.col("user_lon"), REGION_DEG), REGION_DEG).alias("region_x"),
        _cell(F.col("user_lat"), REGION_DEG).alias("region_y"),
    )
    return keyed.join(popular, ["month", "period", "region_x", "region_y"]).select(
        "request_id", "poi_id", F.lit(POPULAR).alias("recall"), "rank"
    )


def _choose(recalled: DataFrame, settings: ImpressionSettings) -> DataFrame:
    """Takes POIs from the lists in turn (first of each, second of each ...) until a request has enough."""
    in_turn = Window.partitionBy("request_id").orderBy("rank", "recall", "poi_id")
    return (
        recalled.groupBy("request_id", "poi_id")
        .agg(F.min(F.struct("rank", "recall")).alias("best"))
        .select("request_id", "poi_id", "best.*")
        .withColumn("_turn", F.row_number().over(in_turn))
        .where(F.col("_turn") < settings.num_candidates)
        .select("request_id", "poi_id", F.lit(0).alias("label"))
    )


def _cell(degrees: Column, side: float) -> Column:
    return F.floor(degrees / F.lit(side))


def _wrap(cell_x: Column, side: float) -> Column:
    """Continues the numbers of cells across the date line: the cell east of the last one is the first."""
    around = F.lit(round(360 / side))
    return F.pmod(cell_x + around / 2, around).cast("bigint") - (around / 2).cast("bigint")
