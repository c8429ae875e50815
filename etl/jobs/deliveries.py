"""New content of a source: rows that no other day has delivered, and POIs that the index lacks or holds differently.

A row is new if no other day has delivered it, whether it was accepted or refused; the day of its event does not
matter. So late rows arrive with the next delivery, the next run makes up for a missed one, and a file that is
delivered again brings nothing. To keep a run cheap, rows are compared by content only with those rows of
`raw_actions` whose event days the source touches. POIs are compared with the index and with the POIs that it refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import Settings
from conf.tables import RAW_ACTIONS, RAW_POIS, TableContract
from etl.columns import spacetime
from etl.columns.poi_slots import PAST, last_slots, state_before
from etl.columns.refusal import trimmed
from etl.delta import storage
from etl.delta.contracts import spark_schema
from etl.delta.erased_users import read_erased
from etl.spark.session import compute_once
from etl.tables import categories, poi_index

FIRST_MS, LAST_MS = 10**12, 10**13
"""Times within are 13-digit epoch milliseconds (2001 to 2286); others cannot be dated."""
UNREADABLE = "_unreadable"
MAX_RANGES = 64
"""Ranges of event days that are looked up; more are joined to fewer, and some days are read for nothing."""
ACTION_CONTENT = tuple(name for name in RAW_ACTIONS.column_names if name not in ("day", "record"))
"""What makes two delivered actions the same; not how the file spelled them."""
POI_CONTENT = tuple(
    name for name in RAW_POIS.column_names if name not in ("day", "record", "first_seen_date", "is_simulated")
)
"""What makes two delivered POIs the same. First sight is not of the catalogue: a late action changes it."""


@dataclass(frozen=True)
class Warehouse:
    """The deliveries of other days, as seen from the day of a delivery; empty where there are no tables yet."""

    spark: SparkSession
    settings: Settings
    day: date

    @property
    def root(self) -> str:
        return self.settings.storage.root

    @cached_property
    def actions(self) -> DataFrame | None:
        """Rows of `raw_actions` of other days; None if there are none."""
        return self._of_other_days("raw_actions")

    @cached_property
    def images(self) -> DataFrame | None:
        """Rows of `raw_poi_images` of other days; None if there are none."""
        return self._of_other_days("raw_poi_images")

    @cached_property
    def erased(self) -> DataFrame | None:
        """Digests of erased users whose rows are left out; None if there are none."""
        return read_erased(self.spark, self.settings)

    @cached_property
    def index(self) -> DataFrame | None:
        """`poi_index` of other days: as it stood before the day, or without the day if later days are indexed.

        None if there is no index.
        """
        index, last = self.stored_index, self.last_indexed_day
        if index is None or last is None or last <= self.day:
            return None if index is None else state_before(index, day=self.day)
        was_changed = F.exists(PAST, lambda past: past["replaced_day"] == F.lit(self.day))
        # `exists` over a null array is null: without the coalesce, slots that never changed would be dropped.
        by_others = (F.col("indexed_day") != self.day) & (F.col("changed_day") != self.day)
        return index.where(by_others & ~F.coalesce(was_changed, F.lit(False)))

    @cached_property
    def last_indexed_day(self) -> date | None:
        """The last day on which the index changed; None if there is no index."""
        if self.stored_index is None:
            return None
        row = self.stored_index.agg(F.max("changed_day").alias("last")).first()
        return None if row is None else row["last"]

    @cached_property
    def stored_index(self) -> DataFrame | None:
        """`poi_index` as it is stored, of the settings' version; None if there is none."""
        if not storage.table_exists(self.spark, self.root, "poi_index"):
            return None
        index = storage.read_table(self.spark, self.root, "poi_index")
        return index.where(F.col("index_version") == self.settings.index.version)

    @cached_property
    def refused_pois(self) -> DataFrame | None:
        """Rows of `raw_pois` that other days have refused, as delivered; None if there are none."""
        refused = self._of_other_days("quarantined_rows")
        if refused is None:
            return None
        row = F.from_json("payload", spark_schema(RAW_POIS))
        return refused.where("source_table = 'raw_pois'").select(row.alias("row")).select("row.*")

    def has(self, name: str) -> bool:
        """Tells whether a table exists."""
        return storage.table_exists(self.spark, self.root, name)

    def last_day(self) -> date | None:
        """Returns the last day before this one that has delivered actions; None if there is none."""
        if self.actions is None:
            return None
        row = self.actions.where(F.col("day") < self.day).agg(F.max("day").alias("last")).first()
        return None if row is None else row["last"]

    def _of_other_days(self, name: str) -> DataFrame | None:
        if not storage.table_exists(self.spark, self.root, name):
            return None
        others = storage.read_table(self.spark, self.root, name).where(F.col("day") != self.day)
        return None if others.isEmpty() else others


def is_later(ts_ms: Column, *, day: date) -> Column:
    """Tells whether a time lies after a day, so that its row is not due yet. A time without a date is not later."""
    dated = ts_ms.between(FIRST_MS, LAST_MS - 1)
    return F.coalesce(F.when(dated, spacetime.event_date(ts_ms) > F.lit(day)), F.lit(False))


def keep_new_actions(rows: DataFrame, delivered: DataFrame | None) -> DataFrame:
    """Keeps the actions that no other day has delivered with the same content.

    Args:
        rows: columns of `raw_actions` without `day`.
        delivered: rows of `raw_actions` of other days; None if there are none.
    """
    if delivered is None:
        return rows
    known = _with_unreadable(delivered.where(in_event_days(rows)))
    return keep_unknown(_with_unreadable(rows), known, (*ACTION_CONTENT, UNREADABLE)).drop(UNREADABLE)


def _with_unreadable(rows: DataFrame) -> DataFrame:
    """Adds the record where a key could not be read: such rows look alike but are not equal."""
    lost = F.col("user_id").isNull() | F.col("poi_id").isNull() | F.col("action_ts_ms").isNull()
    return rows.withColumn(UNREADABLE, F.when(lost, F.col("record")))


def in_event_days(rows: DataFrame) -> Column:
    """Returns the condition on `action_ts_ms` that a row belongs to one of the event days of some rows.

    It consists of ranges of constants, so that files of other days are not opened. Rows without a day (no time, or none
    in epoch milliseconds) count as one day.
    """
    touched = rows.select(_event_day(F.col("action_ts_ms")).alias("event_day")).distinct().collect()
    days = [row["event_day"] for row in touched if row["event_day"] is not None]
    ts_ms, condition = F.col("action_ts_ms"), F.lit(False)
    for first, last in merge_days(days):
        condition |= ts_ms.between(first * spacetime.MS_PER_DAY, (last + 1) * spacetime.MS_PER_DAY - 1)
    if len(touched) > len(days):
        condition |= ts_ms.isNull() | (ts_ms < FIRST_MS) | (ts_ms >= LAST_MS)
    return condition


def keep_unknown(rows: DataFrame, known: DataFrame, names: Sequence[str]) -> DataFrame:
    """Keeps the rows that differ from every known row in the named columns; nulls are equal to each other."""
    other = known.select(*(F.col(name).alias(f"_known_{name}") for name in names))
    content = F.xxhash64(*(F.col(f"_known_{name}") for name in names))
    same = F.xxhash64(*names) == F.col("_known_content")
    for name in names:
        # With plain equality a row with a null would match no copy of itself, and would arrive again in every run.
        same &= F.col(name).eqNullSafe(F.col(f"_known_{name}"))
    return rows.join(other.withColumn("_known_content", content), same, "left_anti")


def merge_days(days: Sequence[int], max_ranges: int = MAX_RANGES) -> list[tuple[int, int]]:
    """Merges days (since 1970) into ranges of first and last day; too many ranges are joined at the smallest gaps."""
    ordered = sorted(set(days))
    if not ordered:
        return []
    gaps = sorted(pairwise(ordered), key=lambda pair: pair[0] - pair[1])
    cuts = sorted(pair for pair in gaps[: max_ranges - 1] if pair[1] - pair[0] > 1)
    starts = [ordered[0], *(later for _, later in cuts)]
    ends = [*(earlier for earlier, _ in cuts), ordered[-1]]
    return list(zip(starts, ends, strict=True))


def keep_changed_pois(pois: DataFrame, warehouse: Warehouse) -> DataFrame:
    """Keeps the POIs that the index lacks or holds with another place, name, text or category.

    Rows of an earlier delivery that the index refused are left out as long as they are unchanged.

    Args:
        pois: columns of `raw_pois` without `day`.
        warehouse: the deliveries of other days.
    """
    index = warehouse.index
    if index is None or index.isEmpty():
        return pois
    moved_km = warehouse.settings.index.moved_km
    version = F.col("index_version") == warehouse.settings.index.version
    leaves = storage.read_table(warehouse.spark, warehouse.root, "categories").where(version)
    leaves = leaves.select(F.col("category_id").alias("_category_id"), F.col("category").alias("_leaf"))
    names = ("poi_id", "poi_lon", "poi_lat", "valid_to", "name", "text", "category_id")
    slots = last_slots(
        index.join(pois.select(trimmed("poi_id").alias("poi_id")).distinct(), "poi_id", "left_semi")
    )
    known = slots.select(*(F.col(f"slot.{name}").alias(f"_{name}") for name in names)).join(
        F.broadcast(leaves), "_category_id", "left"
    )
    shaped = shape(pois, RAW_POIS)
    compared = shaped.join(known, trimmed("poi_id") == F.col("_poi_id"), "left")
    far = spacetime.distance_km(F.col("poi_lon"), F.col("poi_lat"), F.col("_poi_lon"), F.col("_poi_lat"))
    leaf = categories.leaf_category(F.col("category"), F.col("category_path"))
    is_same_text = (
        F.coalesce(F.trim("name"), F.lit("")).eqNullSafe(F.col("_name"))
        & poi_index.poi_text().eqNullSafe(F.col("_text"))
        & leaf.eqNullSafe(F.col("_leaf"))
    )
    # A POI derived from logged actions keeps the details of its first sight; only its place is updated.
    is_same = (F.coalesce("is_derived", F.lit(False)) | is_same_text) & (far <= moved_km)
    is_held = F.col("_poi_id").isNotNull() & F.col("_valid_to").isNull() & is_same
    # Read twice below: to find the POIs that are new, and for all rows of these POIs.
    rows = compute_once(
        compared.withColumn("_is_held", F.coalesce(is_held, F.lit(False))).select(*shaped.columns, "_is_held")
    )
    new = rows.where("NOT _is_held").drop("_is_held")
    if warehouse.refused_pois is not None:
        new = keep_unknown(new, warehouse.refused_pois, POI_CONTENT)
    # All rows of such a POI, the known ones too: the index decides which of several counts, always in the same way.
    ids = new.select(trimmed("poi_id").alias("_id")).distinct()
    of_poi = trimmed("poi_id").eqNullSafe(F.col("_id"))
    return rows.drop("_is_held").join(ids, of_poi, "left_semi")


def shape(frame: DataFrame, contract: TableContract) -> DataFrame:
    """Selects the columns of a raw table except `day` (kept if present); columns that the frame lacks are null.

    Bytes that are not UTF-8 become U+FFFD, which the cleaning refuses; other readers of the table would fail on them.
    """
    have = set(frame.columns)
    columns = []
    for column in contract.columns:
        if column.name not in have:
            if column.name != "day":
                columns.append(F.lit(None).cast(column.type).alias(column.name))
            continue
        is_text = column.type == "string"
        columns.append(F.make_valid_utf8(column.name).alias(column.name) if is_text else F.col(column.name))
    return frame.select(*columns)


def _event_day(ts_ms: Column) -> Column:
    """Returns the day of a time, counted from 1970; null for times that cannot be dated."""
    dated = ts_ms.between(FIRST_MS, LAST_MS - 1)
    return F.when(dated, F.floor(ts_ms / spacetime.MS_PER_DAY).cast("int"))
