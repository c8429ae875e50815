"""Job `poi_index`: `raw_pois` of the day -> `categories`, `blocks`, `poi_index`, `quarantined_rows`.

The job reads, calls the builders of `poi_index.py` and `categories.py`, writes, and reports how full the index is. It
runs strictly forward, since ids follow the order of first sight: a rebuild replays the catalogue day by day, and a
rerun of the last day gives the same ids. Every other job reads the index as of its day. Run: python -m etl poi_index
--day D.
"""

import logging
from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import IndexFullError, IndexOrderError
from conf.settings import IndexSettings, Settings
from conf.taxonomy import load_taxonomy
from etl.columns.poi_slots import state_before
from etl.jobs.runner import A_SOURCE, JobRun
from etl.spark.session import compute_once
from etl.tables import categories, poi_index

LOGGER = logging.getLogger(__name__)
MAX_PLACES_SHOWN = 5
"""Shared places that are named in warnings, the largest first."""


def index_pois(context: JobContext, spark: SparkSession) -> JobSummary:
    """Indexes the POIs of the day.

    Raises:
        IndexOrderError: a later day has been indexed, and this one holds POIs.
        IndexFullError: a block would hold more POIs than there are inner ids; nothing is written.
    """
    run, day, settings = JobRun(context, spark), context.day, context.settings
    version = settings.index.version
    raw = run.read("raw_pois", made_by=A_SOURCE).where(F.col("day") == day)
    index, blocks, known = (
        run.read_or_empty(name).where(F.col("index_version") == version)
        for name in ("poi_index", "blocks", "categories")
    )
    last_day = _last_day(index)
    if last_day is not None and last_day > day:
        return _leave_index(run, raw, index, last_day=last_day)
    before = state_before(index, day=day)
    judged = poi_index.judge_pois(raw, before, day=day, settings=settings.clean)
    max_pois = settings.clean.max_pois_at_place
    judged = compute_once(poi_index.with_shared_places(judged, before, max_pois=max_pois))
    counts = run.count(judged, table="raw_pois", rows_in=raw.count())

    new_categories, pois = _with_categories(
        describe_pois(judged.where("status = 'accepted'")), known, context
    )
    known_blocks = blocks.where(F.col("first_day") < day)
    moved_km, cell_km = settings.index.moved_km, settings.index.cell_km
    compared = compute_once(poi_index.compare_with_index(pois, day=day, moved_km=moved_km, cell_km=cell_km))
    new_blocks = compute_once(
        poi_index.build_blocks(
            compared,
            known_blocks,
            day=day,
            index_version=version,
            first_id=_next_id(known_blocks, "block_id", 0),
            cell_km=cell_km,
        )
    )
    slots = compute_once(
        poi_index.build_poi_index(
            compared, index, known_blocks.unionByName(new_blocks), day=day, index_version=version
        )
    )
    with run.step("build"):
        run.summary.notes |= _report_growth(before, slots, day=day, settings=settings.index)

    run.quarantine(
        judged.where("status = 'refused'"), source_table="raw_pois", columns=poi_index.PAYLOAD_COLUMNS
    )
    # A rerun assigns the ids of the day again. A row that only the earlier run added could now share the id of
    # another row, so it is deleted in the same commit.
    of_day = f"target.first_day = DATE'{day}' AND target.index_version = {version}"
    run.merge(new_categories, "categories", delete_where=of_day)
    run.merge(new_blocks, "blocks", delete_where=of_day)
    run.merge(slots, "poi_index", delete_where=of_day.replace("first_day", "indexed_day"))
    run.summary.notes |= counts
    _warn_of_shared_places(run, judged, settings)
    return run.summary


def describe_pois(accepted: DataFrame) -> DataFrame:
    """Adds `leaf` (category), `text` and `name` to accepted rows, under their clean id."""
    leaf = categories.leaf_category(F.col("category"), F.col("category_path"))
    name = F.coalesce(F.trim("name"), F.lit(""))
    return accepted.withColumns(
        {"poi_id": F.col("clean_poi_id"), "leaf": leaf, "text": poi_index.poi_text(), "name": name}
    )


def _leave_index(run: JobRun, raw: DataFrame, index: DataFrame, *, last_day: date) -> JobSummary:
    """Leaves the index unchanged on a day before the last indexed one, if the index has all its POIs.

    Raises:
        IndexOrderError: the index lacks some of them.
    """
    day = run.context.day
    if not poi_index.keep_unknown_pois(raw, index).isEmpty():
        raise IndexOrderError(day=str(day), last_day=str(last_day))
    warning = (
        f"{last_day} is indexed, and {day} brings no POI that it lacks: the index stays as it is. Changes of known "
        "POIs are taken in by the next delivery"
    )
    run.summary.notes |= {"warnings": [warning]}
    return run.summary


def _warn_of_shared_places(run: JobRun, judged: DataFrame, settings: Settings) -> None:
    """Warns of places that more POIs share than can be right."""
    flagged = judged.where(
        F.array_contains("repairs", poi_index.SHARED_PLACE) & (F.col("status") == "accepted")
    )
    largest = flagged.groupBy("poi_lon", "poi_lat").agg(F.max("num_at_place").alias("n"))
    for row in largest.orderBy(F.desc("n"), "poi_lon", "poi_lat").limit(MAX_PLACES_SHOWN).collect():
        warning = (
            f"{row['n']} POIs lie at exactly lon {row['poi_lon']}, lat {row['poi_lat']}, more than "
            f"clean.max_pois_at_place={settings.clean.max_pois_at_place}: a geocoder's fallback? They are indexed, "
            "and move when the catalogue delivers their places"
        )
        LOGGER.warning("poi_index %s: %s", run.context.day, warning)
        warnings = run.summary.notes.setdefault("warnings", [])
        assert isinstance(warnings, list)
        warnings.append(warning)


def measure_growth(slots: DataFrame, *, day: date, settings: IndexSettings) -> DataFrame:
    """Measures how full the index is, in one row.

    Args:
        slots: all slots of one index version, with `block_id`, `inner_id`, `indexed_day`, `closed_day`, `valid_to`.
        day: the job's day.
        settings: capacities.

    Returns:
        num_slots, num_live, new_slots, ended_slots, num_blocks, `fullest` (num_pois ever held, block_id) and
        num_close_blocks (as full as `index.warn_share` of the inner ids).
    """
    is_new = (F.col("indexed_day") == day).cast("int")
    by_block = slots.groupBy("block_id").agg(
        F.count("*").alias("num_slots"),
        F.count_if(F.col("valid_to").isNull()).alias("num_live"),
        F.sum(is_new).alias("num_new"),
        F.count_if(F.col("closed_day") == day).alias("num_ended"),
        (F.max("inner_id") + 1).alias("num_ids"),
    )
    return by_block.agg(
        *(F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in ("num_slots", "num_live")),
        F.coalesce(F.sum("num_new"), F.lit(0)).alias("new_slots"),
        F.coalesce(F.sum("num_ended"), F.lit(0)).alias("ended_slots"),
        F.coalesce(F.max("block_id") + 1, F.lit(0)).alias("num_blocks"),
        F.max(F.struct("num_ids", "block_id")).alias("fullest"),
        F.count_if(F.col("num_ids") >= settings.warn_share * settings.max_inner).alias("num_close_blocks"),
    )


def _report_growth(
    before: DataFrame, changes: DataFrame, *, day: date, settings: IndexSettings
) -> dict[str, object]:
    """Raises IndexFullError if a block overflows; returns the notes on the index after the day."""
    key = ["poi_id", "valid_from"]
    unchanged = before.join(changes.select(*key), key, "left_anti")
    names = ("block_id", "inner_id", "indexed_day", "closed_day", "valid_to")
    after = unchanged.select(*names).unionByName(changes.select(*names))
    row = measure_growth(after, day=day, settings=settings).first()
    assert row is not None
    num_ids, fullest_block = row["fullest"] or (0, 0)
    if num_ids > settings.max_inner:
        raise IndexFullError(
            day=str(day), block_id=fullest_block, num_pois=num_ids, max_inner=settings.max_inner
        )
    warnings = []
    if row["num_close_blocks"]:
        warnings.append(
            f"{row['num_close_blocks']} blocks have given out {settings.warn_share:.0%} of their {settings.max_inner} "
            f"inner ids, block {fullest_block} most ({num_ids}): plan a model with a larger index.max_inner"
        )
    if row["num_blocks"] >= settings.warn_share * settings.max_blocks:
        warnings.append(
            f"{row['num_blocks']} of {settings.max_blocks} block ids are given out: plan a model with a larger "
            "index.max_blocks"
        )
    for warning in warnings:
        LOGGER.warning("poi_index %s: %s", day, warning)
    return {
        **{name: row[name] for name in ("new_slots", "ended_slots", "num_slots", "num_live", "num_blocks")},
        "fullest_block": {"block_id": fullest_block, "inner_ids": num_ids, "of": settings.max_inner},
        "warnings": warnings,
    }


def _with_categories(pois: DataFrame, known: DataFrame, context: JobContext) -> tuple[DataFrame, DataFrame]:
    """Returns the new categories, and the POIs with `category_id` (0 = none)."""
    known = known.where(F.col("first_day") < context.day)
    new = compute_once(
        categories.build_categories(
            pois,
            known,
            day=context.day,
            index_version=context.settings.index.version,
            first_id=_next_id(known, "category_id", 1),
            taxonomy=load_taxonomy(),
        )
    )
    ids = known.unionByName(new).select("category_id", F.col("category").alias("leaf"))
    return new, pois.join(F.broadcast(ids), "leaf", "left").fillna(0, ["category_id"])


def _last_day(index: DataFrame) -> date | None:
    """Returns the last day on which the index changed."""
    row = index.agg(F.max("changed_day").alias("last")).first()
    return None if row is None else row["last"]


def _next_id(known: DataFrame, column: str, first: int) -> int:
    row = known.agg(F.max(column).alias("last")).first()
    return first if row is None or row["last"] is None else int(row["last"]) + 1
