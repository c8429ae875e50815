"""Joins shown POIs with the features that were known at each request, in Spark: for sets that no machine holds.

The same rules as `with_arrow`; a test compares the two row by row.
"""

from collections.abc import Sequence
from datetime import date
from functools import reduce
from pathlib import Path
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import TimestampNTZType, TimestampType

from conf.errors import MissingInputError
from conf.tables import TABLES
from conf.units import MS_PER_DAY
from etl.columns.as_of import ALWAYS
from etl.columns.judging import clean_id
from etl.columns.spacetime import event_date
from etl.delta.storage import read_table, table_exists
from etl.spark.session import local_frame
from udfs.training_sets.views import (
    FEATURE_COLUMNS,
    SCORES,
    VECTORS,
    Timeline,
    View,
    day_start_ms,
    group_by_source,
)

_VIEW, _DATE = "_view", "_request_date"
_SCORED = "day:date,click_logit:float,score:float"


def open_shown(spark: SparkSession, root: str, shown: DataFrame | str | Path) -> DataFrame:
    """Reads the shown POIs.

    Raises:
        MissingInputError: there is no such file.
    """
    if isinstance(shown, DataFrame):
        return shown
    if str(shown) in TABLES:
        return read_table(spark, root, str(shown))
    if "://" not in str(shown) and not Path(shown).exists():
        raise MissingInputError(
            what="the shown POIs",
            where=str(shown),
            needed_by="read_training_set",
            remedy="Give a frame, a Parquet file or folder, or the name of a table of the pipeline.",
        )
    return spark.read.option("__globPaths__", "false").parquet(str(shown))


def normalise(shown: DataFrame) -> DataFrame:
    """Turns ids into normalised text and times into epoch milliseconds."""
    kind = shown.schema["request_ts_ms"].dataType
    time = F.col("request_ts_ms")
    if isinstance(kind, TimestampNTZType):
        time = F.to_utc_timestamp(time.cast("timestamp"), "UTC")
    if isinstance(kind, TimestampType | TimestampNTZType):
        time = F.unix_millis(time)
    ids = {name: clean_id(F.col(name).cast("string")) for name in ("request_id", "user_id", "poi_id")}
    return shown.withColumns({**ids, "request_ts_ms": time.cast("bigint")})


def read_log(spark: SparkSession, root: str, name: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Reads all rows of a log table; none if it was never written."""
    if not table_exists(spark, root, name):
        return []
    return [row.asDict() for row in read_table(spark, root, name).select(*columns).collect()]


def join_features(spark: SparkSession, root: str, shown: DataFrame, timeline: Timeline) -> DataFrame:
    """Adds the features to the rows; arguments and columns as in `with_arrow.join_features`."""
    columns = shown.columns
    dated = shown.withColumn(_DATE, event_date(F.col("request_ts_ms")))
    views = list(dict.fromkeys(view for view in timeline.views if view is not None))
    placed = with_view_number(spark, dated, timeline, views)
    used = [row[_VIEW] for row in placed.select(_VIEW).where(f"{_VIEW} IS NOT NULL").distinct().collect()]
    readable = [number for number in sorted(used) if views[number].is_readable]
    facts = _facts(spark, views)
    joined = placed.join(F.broadcast(facts), _VIEW, "left")
    of_views = [(number, views[number]) for number in readable]
    for name, key in VECTORS.items():
        joined = joined.join(read_vectors(spark, root, name, placed, of_views), [_VIEW, key], "left")
    joined = with_scores(joined, read_scores(spark, root, timeline, of_views), timeline)
    return joined.select(*columns, *FEATURE_COLUMNS)


def count_models(joined: DataFrame) -> tuple[dict[str, int], str]:
    """Returns the number of rows of each model, and a request of each as an example."""
    counted = joined.where("model_version IS NOT NULL").groupBy("model_version")
    rows = counted.agg(F.count("*").alias("count"), F.min("request_id").alias("request_id")).collect()
    ordered = sorted(rows, key=lambda row: str(row["model_version"]))
    example = " and ".join(f"request {row['request_id']} of model {row['model_version']}" for row in ordered)
    return {row["model_version"]: row["count"] for row in ordered}, example


def with_view_number(
    spark: SparkSession, dated: DataFrame, timeline: Timeline, views: Sequence[View]
) -> DataFrame:
    """Adds the number of the view that was current at each request; null = none.

    The timeline is cut by UTC day, so a row looks through the few changes of its own day only.
    """
    numbers = {view: number for number, view in enumerate(views)}
    days = sorted(row[_DATE] for row in dated.select(_DATE).distinct().collect() if row[_DATE] is not None)
    rows: list[tuple[Any, ...]] = []
    for day in days:
        start = day_start_ms(day)
        spans = [(start, timeline.find(start))]
        inside = zip(timeline.starts_ms, timeline.views, strict=True)
        spans += [(at, view) for at, view in inside if start < at < start + MS_PER_DAY]
        rows.append(
            (day, [at for at, _ in spans], [-1 if view is None else numbers[view] for _, view in spans])
        )
    changes = local_frame(spark, rows, f"{_DATE} date, _starts array<bigint>, _numbers array<int>")
    begun = F.size(F.filter("_starts", lambda at: at <= F.col("request_ts_ms")))
    number = F.get("_numbers", begun - 1)
    joined = dated.join(F.broadcast(changes), _DATE, "left")
    return joined.withColumn(_VIEW, F.when(number >= 0, number)).drop("_starts", "_numbers")


def read_vectors(
    spark: SparkSession, root: str, name: str, placed: DataFrame, views: Sequence[tuple[int, View]]
) -> DataFrame:
    """Returns the vectors that rows ask for: the view's number, the key and `user_embedding` or `poi_embedding`.

    Each version of a table is scanned once, whatever the number of views that read it, and all are joined at once.
    """
    key = VECTORS[name]
    output = f"{key.removesuffix('_id')}_embedding"
    number_of = dict((id(view), number) for number, view in views)
    facts: list[tuple[int, int, date, date]] = []
    vectors = [local_frame(spark, [], f"_source int, {key} string, day date, embedding array<float>")]
    slots = [local_frame(spark, [], f"_source int, {key} string, starts date, ends date")]
    for source, group in enumerate(group_by_source([view for _, view in views], name)):
        facts += [(number_of[id(view)], source, view.first_day or ALWAYS, view.day) for view in group]
        rows = read_table(spark, root, group[0].table(name), version=group[0].versions.get(name))
        of_model = rows.where(F.col("model_version") == group[0].model_version)
        vectors.append(of_model.select(F.lit(source).alias("_source"), key, "day", "embedding"))
        if name == "poi_embeddings":
            slots.append(
                _spans(spark, root, group[0]).select(F.lit(source).alias("_source"), key, "starts", "ends")
            )
    schema = f"{_VIEW} int, _source int, _first date, _last date"
    asked = placed.select(_VIEW, key).distinct()
    wanted = asked.join(F.broadcast(local_frame(spark, facts, schema)), _VIEW)
    everything = reduce(DataFrame.unionByName, vectors)
    known = wanted.join(everything, ["_source", key]).where("day BETWEEN _first AND _last")
    if name == "poi_embeddings":
        spans = wanted.join(reduce(DataFrame.unionByName, slots), ["_source", key])
        live = spans.where("starts <= _last AND (ends IS NULL OR ends > _last)")
        known = known.join(live.select(_VIEW, key).distinct(), [_VIEW, key], "left_semi")
    return known.groupBy(_VIEW, key).agg(F.max_by("embedding", "day").alias(output))


def _spans(spark: SparkSession, root: str, view: View) -> DataFrame:
    """Returns the days on which slots of the index are live and known to be: `poi_id`, `starts`, `ends`."""
    index = read_table(spark, root, "poi_index", version=view.versions.get("poi_index"))
    slots = index.where(F.col("index_version") == view.index_version)
    known_from = F.col("indexed_day")
    if view.release_id is None:  # the first run's catalogue counts as always known
        slots = slots.crossJoin(F.broadcast(slots.agg(F.min("indexed_day").alias("_first"))))
        known_from = F.when(F.col("indexed_day") > F.col("_first"), F.col("indexed_day"))
    # A slot has ended once its end has come and is known; `greatest` and `least` skip nulls.
    return slots.select(
        "poi_id",
        F.greatest("valid_from", known_from).alias("starts"),
        F.greatest("valid_to", "closed_day").alias("ends"),
    )


def read_scores(
    spark: SparkSession, root: str, timeline: Timeline, views: Sequence[tuple[int, View]]
) -> DataFrame:
    """Returns scores by view number (null = of any view), model, request and POI: an array of days and scores."""
    sources = views if timeline.score_views is None else [(None, view) for view in timeline.score_views]
    schema = f"{_VIEW} int, model_version string, request_id string, poi_id string, scored struct<{_SCORED}>"
    parts = [local_frame(spark, [], schema)]
    for number, view in sources:
        rows = read_table(spark, root, view.table(SCORES), version=view.versions.get(SCORES)).where(_of(view))
        if view.release_id is not None:
            rows = rows.where(F.col("day") == F.lit(view.day))
        scored = F.struct("day", "click_logit", "score").alias("scored")
        keys = ("model_version", "request_id", "poi_id")
        parts.append(rows.select(F.lit(number).cast("int").alias(_VIEW), *keys, scored))
    everything = reduce(DataFrame.unionByName, parts)
    by_day = F.array_sort(F.collect_list("scored")).alias("_scored")
    return everything.groupBy(_VIEW, "model_version", "request_id", "poi_id").agg(by_day)


def with_scores(rows: DataFrame, scores: DataFrame, timeline: Timeline) -> DataFrame:
    """Adds log-odds and score of each row's request and POI; null where they were not scored."""
    keys = ["model_version", "request_id", "poi_id"]
    if timeline.score_views is None:
        joined = rows.join(scores, [_VIEW, *keys], "left")
        counts = F.col("_scored")
    else:
        joined = rows.join(scores.drop(_VIEW), keys, "left")
        # A request is scored on its own day or, if it was delivered late, on a later one; the first one counts.
        is_backfill = all(view.release_id is None for view in timeline.score_views)
        asked = F.col(_DATE)
        counts = F.filter("_scored", lambda one: one["day"] == asked if is_backfill else one["day"] >= asked)
    first = F.get(counts, F.lit(0))
    return joined.withColumns({"click_logit": first["click_logit"], "score": first["score"]})


def _of(view: View) -> Column:
    condition = F.col("model_version") == view.model_version
    if view.first_day is not None:
        condition = condition & (F.col("day") >= F.lit(view.first_day))
    return condition


def _facts(spark: SparkSession, views: Sequence[View]) -> DataFrame:
    """Returns what each view adds to its rows; of a withdrawn release only its number is left."""
    rows = [
        (number, view.release_id, *((view.day, view.model_version) if view.is_readable else (None, None)))
        for number, view in enumerate(views)
    ]
    return local_frame(
        spark, rows, f"{_VIEW} int, release_id bigint, features_day date, model_version string"
    )
