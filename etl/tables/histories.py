"""As-of histories: the only way in which an action, a window or a request gets the actions before it.

Actions of a user are numbered in total order; a span is a stretch of these numbers. `gather_spans` collects the actions
of many spans into the parallel arrays of `HISTORY_COLUMNS` with an equi-join on stretches of fixed length, so that
neither a hot user nor a user with many requests is ever held in one array. `span_before` finds the span strictly
before a request, so nothing at or after its time can enter (point in time).
"""

from collections.abc import Callable
from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.tables import HISTORY_NAMES
from etl.columns import spacetime
from etl.columns.as_of import known_before

VISIT_FIELDS = {
    "poi_ids": "poi_id",
    "timestamps_ms": "action_ts_ms",
    "tz_offsets_min": "tz_offset_min",
    "action_type_ids": "action_type_id",
    "block_ids": "block_id",
    "inner_ids": "inner_id",
    "poi_lons": "poi_lon",
    "poi_lats": "poi_lat",
    "category_ids": "category_id",
    "is_interests": "is_interest",
    "user_lons": "from_lon",
    "user_lats": "from_lat",
}
"""Array column -> column of the action; `is_travels` is made from a known home."""

_SPAN_FIELDS = {**VISIT_FIELDS, "is_travels": "is_travel"}
_TYPES = {
    "poi_ids": "string",
    "timestamps_ms": "bigint",
    "is_interests": "boolean",
    "is_travels": "boolean",
} | {name: "float" for name in ("user_lons", "user_lats", "poi_lons", "poi_lats")}


def number_actions(actions: DataFrame) -> DataFrame:
    """Adds `number` (from 1, in order of time, then id) and the user's place `from_lon`, `from_lat`.

    The place is the delivered one, else the place of the previous action's POI, never the action's own; NaN for a
    first action without place.
    """
    in_order = Window.partitionBy("user_id").orderBy("action_ts_ms", "action_id")
    places = {
        f"from_{axis}": F.coalesce(f"user_{axis}", F.lag(f"poi_{axis}").over(in_order), F.lit(float("nan")))
        for axis in ("lon", "lat")
    }
    return actions.withColumns({"number": F.row_number().over(in_order), **places})


def with_travel(actions: DataFrame, places: DataFrame, *, travel_km: float, first_day: date) -> DataFrame:
    """Adds `is_travel`: whether the POI is farther from the user's home than `travel_km`.

    Args:
        actions: with `user_id`, `event_date`, `poi_lon`, `poi_lat`.
        places: `user_places` up to the day; the last row of a user that was known before the day of the action counts.
            Without a home, the place with most of the actions stands for it (`densest_place`).
        travel_km: radius, km.
        first_day: day of the first run (`etl/columns/as_of.py`).
    """
    homes = known_before(
        actions, places.select("user_id", "day", "home_lon", "home_lat"), on="event_date", first_day=first_day
    )
    middle = densest_place(actions, cell_km=travel_km / 2)
    near = [F.coalesce(f"home_{axis}", f"middle_{axis}") for axis in ("lon", "lat")]
    distance = spacetime.distance_km(F.col("poi_lon"), F.col("poi_lat"), *near)
    return (
        actions.join(homes, ["user_id", "event_date"])
        .join(middle, "user_id")
        .withColumn("is_travel", distance > travel_km)
        .drop("home_lon", "home_lat", "middle_lon", "middle_lat")
    )


def densest_place(actions: DataFrame, *, cell_km: float) -> DataFrame:
    """Finds where a user acts most: the middle of the POIs visited in the fullest grid cell.

    The medians of all longitudes and of all latitudes could be a place never visited, if a user lives in two distant
    cities. They could lie on the other side of the earth, if a user lives on both sides of the date line.

    Args:
        actions: with `user_id`, `poi_lon`, `poi_lat`.
        cell_km: side of a cell.

    Returns:
        `user_id`, `middle_lon`, `middle_lat`; among equally full cells the southernmost, then westernmost counts.
    """
    cell = spacetime.grid_cell(F.col("poi_lon"), F.col("poi_lat"), cell_km=cell_km)
    by_cell = actions.select(
        "user_id",
        cell.cell_y.alias("cell_y"),
        cell.cell_x.alias("cell_x"),
        spacetime.lon_in_cell(F.col("poi_lon"), cell.cell_x).alias("lon"),
        F.col("poi_lat").alias("lat"),
    ).groupBy("user_id", "cell_y", "cell_x")
    fullest = by_cell.agg(
        F.struct(
            (-F.count("*")).alias("fullness"),
            F.col("cell_y"),
            F.col("cell_x"),
            F.percentile("lon", 0.5).alias("lon"),
            F.percentile("lat", 0.5).alias("lat"),
        ).alias("cell")
    )
    chosen = fullest.groupBy("user_id").agg(F.min("cell").alias("cell"))
    return chosen.select(
        "user_id",
        spacetime.wrap_lon(F.col("cell.lon")).alias("middle_lon"),
        F.col("cell.lat").alias("middle_lat"),
    )


def densest_of_list(visits: Column) -> Column:
    """Computes `densest_place` for an array of structs `poi_lon`, `poi_lat`, `cell` (`number_of_cell`).

    Returns:
        A struct of `lon` and `lat`.
    """

    def fullness(cells: Column) -> Column:
        # Built-in functions on whole arrays: a loop over the elements takes ten times as long.
        counts = F.transform(
            F.array_distinct(cells),
            lambda cell: F.struct(
                F.size(F.array_remove(cells, cell)).alias("num_elsewhere"), cell.alias("cell")
            ),
        )
        return F.array_min(counts)["cell"]

    def middle(fullest: Column) -> Column:
        inside = F.filter(visits, lambda visit: visit["cell"] == fullest)
        return _bind(inside, lambda near: _middle_of_cell(near, is_first=F.pmod(fullest, F.lit(2**32)) == 0))

    return _bind(_bind(visits["cell"], fullness), middle)


def number_of_cell(lon: Column, lat: Column, *, cell_km: float) -> Column:
    """Returns the grid cell of a point as one number, by row, then column."""
    cell = spacetime.grid_cell(lon, lat, cell_km=cell_km)
    return F.shiftleft(cell.cell_y.cast("bigint"), 32) + cell.cell_x


def _middle_of_cell(near: Column, *, is_first: Column) -> Column:
    """Returns the median place of visits in one cell, the first of its row or not (`spacetime.lon_in_cell`)."""
    compared = F.transform(near, lambda visit: spacetime.lon_in_cell(visit["poi_lon"], F.lit(0)))
    lons = F.when(is_first, compared).otherwise(near["poi_lon"])
    lon, lat = _median_of_list(lons), _median_of_list(near["poi_lat"])
    return F.struct(spacetime.wrap_lon(lon).alias("lon"), lat.alias("lat"))


def span_before(requests: DataFrame, numbered: DataFrame, *, max_actions: int) -> DataFrame:
    """Returns the span of the last actions strictly before each request: `user_id`, `span_id`, first and last number.

    Args:
        requests: `request_id`, `user_id`, `request_ts_ms`.
        numbered: result of `number_actions`.
        max_actions: longest span. A request without earlier actions gets an empty span (last < first).
    """
    # At equal times the request sorts before the action, so an action at the request's own time is not before it.
    events = requests.select(
        "user_id", F.col("request_ts_ms").alias("ts"), F.lit(0).alias("kind"), F.col("request_id").alias("id")
    ).unionByName(
        numbered.select(
            "user_id",
            F.col("action_ts_ms").alias("ts"),
            F.lit(1).alias("kind"),
            F.col("action_id").alias("id"),
        )
    )
    running = (
        Window.partitionBy("user_id").orderBy("ts", "kind", "id").rowsBetween(Window.unboundedPreceding, 0)
    )
    counted = events.withColumn("last_number", F.sum("kind").over(running).cast("int")).where("kind = 0")
    first = F.greatest(F.col("last_number") - max_actions + 1, F.lit(1))
    return counted.select("user_id", F.col("id").alias("span_id"), first.alias("first_number"), "last_number")


def gather_spans(spans: DataFrame, numbered: DataFrame, *, stretch: int) -> DataFrame:
    """Collects the actions of every span.

    Args:
        spans: `user_id`, `span_id`, `first_number`, `last_number` (inclusive).
        numbered: result of `number_actions` and `with_travel`.
        stretch: length of the stretches on which spans and actions are joined; about the usual length of a span.

    Returns:
        `span_id`, `numbers` and the columns of `HISTORY_COLUMNS`, oldest first; spans without actions are left out.
    """
    stretches = F.sequence(_stretch("first_number", stretch), _stretch("last_number", stretch))
    stretched = spans.where("last_number >= first_number").withColumn("stretch", F.explode(stretches))
    fields = [F.col(field).alias(name) for name, field in _SPAN_FIELDS.items()]
    offered = numbered.select(
        "user_id",
        _stretch("number", stretch).alias("stretch"),
        "number",
        F.struct("number", *fields).alias("visit"),
    )
    matches = stretched.join(offered, ["user_id", "stretch"]).where(
        "number BETWEEN first_number AND last_number"
    )
    collected = matches.groupBy("span_id").agg(F.sort_array(F.collect_list("visit")).alias("visits"))
    return collected.select(
        "span_id",
        F.col("visits.number").alias("numbers"),
        *(F.col(f"visits.{name}").alias(name) for name in HISTORY_NAMES),
    )


def empty_if_null(name: str) -> Column:
    """Returns a history column, with an empty array where a left join found no history."""
    return F.coalesce(F.col(name), F.array().cast(f"array<{_TYPES.get(name, 'int')}>")).alias(name)


def split_of(event_date: Column, *, day: Column, val_days: int, test_days: int) -> Column:
    """Names the split of a date: the last `test_days` up to the day are test, the `val_days` before them val."""
    age = F.date_diff(day, event_date)
    return F.when(age < test_days, "test").when(age < test_days + val_days, "val").otherwise("train")


def richness(visits: Column) -> Column:
    """Aggregates visits per POI to exp(Shannon entropy), the effective number of POIs; 0 without any.

    exp(ln n - sum(c ln c) / n). The sum runs over whole numbers (units of 1e-9), so that the order in which groups
    arrive cannot move its last digit.
    """
    return _effective_number(F.sum(visits), F.sum(_visits_times_log(visits)))


def richness_of_list(pois: Column) -> Column:
    """Computes `richness` for an array with one POI per visit, in any order."""

    def take(state: Column, poi: Column) -> Column:
        same = F.struct(poi.alias("poi"), (state["visits"] + 1).alias("visits"), state["logs"].alias("logs"))
        logs = state["logs"] + _visits_times_log(state["visits"])
        return F.when(poi == state["poi"], same).otherwise(
            F.struct(poi.alias("poi"), F.lit(1).cast("bigint").alias("visits"), logs.alias("logs"))
        )

    nothing = F.struct(
        F.lit("").alias("poi"),
        F.lit(0).cast("bigint").alias("visits"),
        F.lit(0).cast("bigint").alias("logs"),
    )
    # Sorted, the visits of a POI follow each other, and one running count is enough.
    logs = F.aggregate(
        F.sort_array(pois), nothing, take, lambda state: state["logs"] + _visits_times_log(state["visits"])
    )
    return _effective_number(F.size(pois), logs)


def _visits_times_log(visits: Column) -> Column:
    logs = F.round(visits * F.log(visits) * 1e9).cast("bigint")
    return F.when(visits > 0, logs).otherwise(F.lit(0).cast("bigint"))


def _effective_number(visits: Column, logs: Column) -> Column:
    """Returns exp(ln n - logs / n), 0 for n = 0; `logs` in units of 1e-9."""
    num_visits = F.nullif(visits, F.lit(0))
    return F.coalesce(F.exp(F.log(num_visits) - logs / F.lit(1e9) / num_visits), F.lit(0.0))


def pattern_of(is_travels: Column, *, mixed_share: float) -> Column:
    """Names the pattern of a sequence by its share of travel: local, travel, or mixed if both kinds are frequent."""
    share = F.size(F.filter(is_travels, lambda is_travel: is_travel)) / F.size(is_travels)
    return F.when(share < mixed_share, "local").when(share > 1 - mixed_share, "travel").otherwise("mixed")


def _bind(value: Column, use: Callable[[Column], Column]) -> Column:
    """Computes a value once for all its uses, by a loop over one element.

    As a separate column, or written out at each use, it would be computed for every element of inner loops.
    """
    return F.get(F.transform(F.array(value), use), F.lit(0))


def _median_of_list(values: Column) -> Column:
    """Returns the median of an array; for an even number of values the mean of the middle two, as `percentile` does."""
    in_order = F.sort_array(values)
    last = F.size(values) - 1
    low = F.get(in_order, F.floor(last / 2).cast("int"))
    high = F.get(in_order, F.ceil(last / 2).cast("int"))
    return (low + high) / 2


def _stretch(number: str, length: int) -> Column:
    return F.floor(F.col(number) / length).cast("int")
