"""The reader for ranking teams: returns a feature table of one release, with or without Spark.

    from udfs.releases.reader import read_release
    vectors = read_release(None, "warehouse", "user_embeddings")             # pyarrow.Table
    vectors = read_release(spark, "warehouse", "user_embeddings")            # Spark DataFrame

Every table of a release is read at the Delta version that the release pins, so a reader never mixes models
and never sees a partly written day. Vectors of several days complete each other; scores are those of the
release's day.
"""

from typing import overload

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.releases import Release, find_release
from conf.releases import read_table as read_arrow
from conf.tables import FEATURE_TABLES
from etl.columns.poi_slots import is_live, keep_known
from etl.delta.storage import read_table
from udfs.releases.release_log import load_releases

VECTOR_KEYS = {"user_embeddings": "user_id", "poi_embeddings": "poi_id"}
"""Tables whose rows of several days complete each other, with the key of a vector."""
_SLOT_NAMES = ("poi_id", "index_version", "indexed_day", "valid_from", "valid_to", "closed_day")


@overload
def read_release(spark: SparkSession, root: str, table: str, *, release: int | None = None) -> DataFrame: ...
@overload
def read_release(spark: None, root: str, table: str, *, release: int | None = None) -> pa.Table: ...
def read_release(
    spark: SparkSession | None, root: str, table: str, *, release: int | None = None
) -> DataFrame | pa.Table:
    """Returns the rows of a feature table that belong to a release.

    Args:
        spark: open session, or None to read through Arrow.
        root: table root; `catalog:NAME` needs Spark.
        table: `user_embeddings`, `poi_embeddings`, `ranking_scores` or `poi_candidates`.
        release: number of the release; the current one if None.

    Returns:
        For vectors the latest row per user, and per POI that is live on the release's day; for scores and
        candidates the rows of the release's day. Columns as in the contract of the table.

    Raises:
        NoReleaseError: there is no such release.
    """
    if table not in FEATURE_TABLES:
        raise ValueError(f"{table!r} is not a feature table; there are {', '.join(FEATURE_TABLES)}")
    pinned = find_release(load_releases(spark, root), root, release)
    version = pinned.table_versions[table]
    if spark is not None:
        rows = read_table(spark, root, table, version=version)
        slots = read_table(spark, root, "poi_index", version=pinned.table_versions["poi_index"])
        return keep_released(rows, slots, pinned, table)
    rows = read_arrow(root, table, version=version)
    if table == "poi_embeddings":
        slots = read_arrow(root, "poi_index", version=pinned.table_versions["poi_index"], columns=_SLOT_NAMES)
        return _keep_live_arrow(_keep_latest_arrow(rows, pinned, "poi_id"), slots, pinned)
    if table in VECTOR_KEYS:
        return _keep_latest_arrow(rows, pinned, VECTOR_KEYS[table])
    return rows.filter((pc.field("day") == pinned.day) & (pc.field("model_version") == pinned.model_version))


def keep_released(rows: DataFrame, poi_index: DataFrame, release: Release, table: str) -> DataFrame:
    """Keeps the rows of a feature table that a release shows.

    Args:
        rows: the feature table at the version of the release.
        poi_index: the index at the version of the release.
        release: the release.
        table: name of the feature table.
    """
    of_model = rows.where(F.col("model_version") == release.model_version)
    if table not in VECTOR_KEYS:
        return of_model.where(F.col("day") == F.lit(release.day))
    key = VECTOR_KEYS[table]
    known = of_model.where(F.col("day") <= F.lit(release.day))
    state = known.groupBy(key).agg(F.max("day").alias("day"))
    latest = known.join(state, [key, "day"], "left_semi")
    if table == "poi_embeddings":
        slots = keep_known(poi_index, day=release.day, index_version=release.index_version)
        live = slots.where(is_live(F.lit(release.day))).select("poi_id")
        latest = latest.join(live, "poi_id", "left_semi")
    return latest.select(*rows.columns)  # a join puts its keys first


def _keep_latest_arrow(rows: pa.Table, release: Release, key: str) -> pa.Table:
    """Does in Arrow what `keep_released` does in Spark; Arrow cannot join list columns, so rows are numbered."""
    is_known = (pc.field("model_version") == release.model_version) & (pc.field("day") <= release.day)
    known = rows.filter(is_known)
    numbered = known.select([key, "day"]).append_column("row", pa.array(range(len(known)), pa.int64()))
    newest_first = numbered.sort_by([(key, "ascending"), ("day", "descending")])
    # With threads, Arrow does not keep the row order that `first` relies on.
    first = newest_first.group_by(key, use_threads=False).aggregate([("row", "first")])
    return known.take(first.column("row_first"))


def _keep_live_arrow(rows: pa.Table, slots: pa.Table, release: Release) -> pa.Table:
    day = pa.scalar(release.day)
    of_version = pc.and_(
        pc.equal(slots["index_version"], release.index_version), pc.less_equal(slots["indexed_day"], day)
    )
    closed_later = pc.fill_null(pc.greater(slots["closed_day"], day), False)
    not_ended = pc.or_(closed_later, pc.fill_null(pc.greater(slots["valid_to"], day), True))
    is_live_slot = pc.and_(pc.and_(of_version, not_ended), pc.less_equal(slots["valid_from"], day))
    live = slots.filter(is_live_slot)["poi_id"]
    return rows.filter(pc.is_in(rows["poi_id"], value_set=live.combine_chunks()))
