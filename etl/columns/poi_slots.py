"""Slots of the POI index as of a day: which are known, which are live, and how the day changes a slot.

A slot is live from `valid_from` up to, not including, `valid_to`; `models.data.catalogue` and `udfs.releases.reader`
define the same for arrays and Arrow, and a test compares the three.

The ids of a slot never change, but its details do: a POI closes, moves away, gets another name or category. Every
change keeps the old details in `past_details`, so the index knows its past without time travel. A rerun of the last
day starts from the state before that day, and a backfill of an older day reads the names and categories of that time.
"""

from datetime import date, timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.tables import POI_INDEX

SLOT_COLUMNS = POI_INDEX.column_names
PAST = "past_details"
DETAILS = ("changed_day", "name", "text", "category_id")
"""What a later day changes in place. The end of a slot needs no copy: it comes once, and `closed_day` dates it."""


def state_before(index: DataFrame, *, day: date) -> DataFrame:
    """Returns the index as it stood before a day: later slots are removed, later changes undone."""
    since = F.filter(PAST, lambda past: past["replaced_day"] >= F.lit(day))
    kept = F.filter(PAST, lambda past: past["replaced_day"] < F.lit(day))
    # Changes are appended in order of time: the first undone change holds the details before all of them.
    then = F.get(since, F.lit(0))
    is_ended_since = F.coalesce(F.col("closed_day") >= F.lit(day), F.lit(False))
    before = {
        **{name: F.when(~is_ended_since, F.col(name)).alias(name) for name in ("valid_to", "closed_day")},
        **{name: F.when(then.isNull(), F.col(name)).otherwise(then[name]).alias(name) for name in DETAILS},
        PAST: F.when(F.size(kept) > 0, kept).alias(PAST),
    }
    known = index.where(F.col("indexed_day") < F.lit(day))
    return known.select(*(before.get(name, F.col(name)) for name in index.columns))


def keep_known(index: DataFrame, *, day: date, index_version: int) -> DataFrame:
    """Returns the slots of one index version as they stood at the end of a day."""
    return state_before(index.where(F.col("index_version") == index_version), day=day + timedelta(days=1))


def date_details(index: DataFrame, *, index_version: int) -> DataFrame:
    """Splits the slots of one index version by the details that they had, for readers of many days at once.

    The first run indexes the whole catalogue, so its slots count as always known (`etl/columns/as_of.py`).

    Args:
        index: `poi_index`.
        index_version: version to keep.

    Returns:
        The columns of `index` with the details of their time, one row per slot and span of days, plus `known_from` and
        `known_until`, the first day of the span and the first day after it; null = since ever, or until now.
    """
    of_version = index.where(F.col("index_version") == index_version)
    first = of_version.agg(F.min("indexed_day").alias("first_indexed_day"))
    current = F.struct(
        F.lit(None).cast("date").alias("replaced_day"), *(F.col(name).alias(name) for name in DETAILS)
    )
    past = F.coalesce(F.col(PAST), F.array().cast(POI_INDEX.column(PAST).type))
    spans = of_version.crossJoin(F.broadcast(first)).withColumn("spans", F.concat(past, F.array(current)))
    span, number = F.col("span"), F.col("span_number")
    began = F.when(F.col("indexed_day") > F.col("first_indexed_day"), F.col("indexed_day"))
    before = F.get("spans", number - 1)["replaced_day"]
    return (
        spans.select("*", F.posexplode("spans").alias("span_number", "span"))
        .withColumn("known_from", F.when(number == 0, began).otherwise(before))
        .withColumn("known_until", span["replaced_day"])
        .withColumns({name: span[name] for name in DETAILS})
        .select(*index.columns, "known_from", "known_until")
    )


def is_known(on: Column) -> Column:
    """Tells whether a row of `date_details` says what was known at the end of a date."""
    return (F.col("known_from").isNull() | (F.col("known_from") <= on)) & (
        F.col("known_until").isNull() | (F.col("known_until") > on)
    )


def is_live(on: Column) -> Column:
    """Tells whether a slot (`valid_from`, `valid_to`) is live on a date."""
    return (F.col("valid_from") <= on) & (F.col("valid_to").isNull() | (F.col("valid_to") > on))


def last_slots(index: DataFrame) -> DataFrame:
    """Returns `poi_id` and `slot`, a struct of the last slot of each POI."""
    last = F.max_by(F.struct(*SLOT_COLUMNS), F.struct("valid_from", "indexed_day"))
    return index.groupBy("poi_id").agg(last.alias("slot"))


def change_slots(compared: DataFrame, *, day: date) -> DataFrame:
    """Builds the slots that the day changes: ended (POI moved or closed), or with other details.

    Args:
        compared: POIs with their last `slot`, `is_ended` and `is_updated` (`poi_index.compare_with_index`).
        day: the job's day.
    """
    ended, updated = F.col("is_ended"), F.col("is_updated")
    past = F.struct(
        F.lit(day).alias("replaced_day"), *(F.col(f"slot.{name}").alias(name) for name in DETAILS)
    )
    earlier = F.coalesce(f"slot.{PAST}", F.array().cast(POI_INDEX.column(PAST).type))
    values = {
        "valid_to": F.when(ended, F.lit(day)).otherwise(F.col("slot.valid_to")),
        "closed_day": F.when(ended, F.lit(day)).otherwise(F.col("slot.closed_day")),
        "changed_day": F.lit(day),
        PAST: F.concat(earlier, F.array(past)),
        **{name: _updated(name, updated) for name in ("name", "text", "category_id")},
    }
    changed = (values.get(name, F.col(f"slot.{name}")).alias(name) for name in SLOT_COLUMNS)
    return compared.where(ended | updated).select(*changed)


def restore_slots(index: DataFrame, touched: DataFrame, *, day: date) -> DataFrame:
    """Builds the slots that an earlier run of the day changed and this one does not, as they were before.

    Args:
        index: the stored index.
        touched: result of `change_slots`.
        day: the job's day.
    """
    was_changed = index.where(F.col("changed_day") == F.lit(day))
    key = ["poi_id", "valid_from"]
    return (
        state_before(was_changed, day=day).join(touched.select(*key), key, "left_anti").select(*SLOT_COLUMNS)
    )


def _updated(name: str, is_updated: Column) -> Column:
    return F.when(is_updated, F.col(name)).otherwise(F.col(f"slot.{name}"))
