"""The jobs of a night: poi_index, clean_actions, action_sequences; they read, call the builders, write.

Thin ends around the pure builders of the table files. What is written depends on the inputs, the day and the
settings alone, so a rerun of a day gives the same tables. Counts are taken in one aggregation per job.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import IndexFullError, IndexOrderError, MissingInputError, RowsLostError
from conf.tables import QUARANTINED_ROWS, TABLES
from conf.taxonomy import load_taxonomy
from etl import action_sequences, categories, clean_actions, contracts, poi_index, storage, user_places
from etl.refusal import count_rows, tally, to_quarantine
from etl.session import compute_once

LOGGER = logging.getLogger(__name__)
A_SOURCE = "SOURCE (synthetic, checkins, tsmc, getnext or actions)"


@dataclass
class Night:
    """One job at work on one day: where it reads and writes, and what it reports."""

    context: JobContext
    spark: SparkSession
    summary: JobSummary = field(default_factory=JobSummary)

    @property
    def root(self) -> str:
        return self.context.settings.storage.root

    def read(self, name: str, *, made_by: str) -> DataFrame:
        """Reads a table; MissingInputError names the command that makes it."""
        if not storage.table_exists(self.spark, self.root, name):
            raise MissingInputError(
                what=f"table {name}",
                where=storage.table_location(self.root, name),
                needed_by=f"Job {self.context.job}",
                remedy=f"Run: python -m etl {made_by} --day {self.context.day} (or check storage.root).",
            )
        return storage.read_table(self.spark, self.root, name)

    def read_or_empty(self, name: str) -> DataFrame:
        """Reads a table that need not exist yet."""
        if storage.table_exists(self.spark, self.root, name):
            return storage.read_table(self.spark, self.root, name)
        return self.spark.createDataFrame([], contracts.spark_schema(TABLES[name]))

    def replace(self, frame: DataFrame, name: str, *, where: str | None = None) -> None:
        """Replaces the rows of the day, unless the run is dry."""
        with self.step(f"write_{name}"):
            if self.context.dry_run:
                frame.write.format("noop").mode("overwrite").save()
                return
            run = self.context
            self.summary.tables[name] = storage.replace_day(
                frame, name, self.root, day=run.day, run_id=run.run_id, job=run.job, where=where
            )

    def merge(self, frame: DataFrame, name: str, *, delete_where: str) -> None:
        """Merges changed rows and deletes what an earlier run of the day had added, unless the run is dry."""
        with self.step(f"write_{name}"):
            if self.context.dry_run:
                frame.write.format("noop").mode("overwrite").save()
                return
            run = self.context
            self.summary.tables[name] = storage.merge_rows(
                frame, name, self.root, day=run.day, run_id=run.run_id, job=run.job, delete_where=delete_where
            )

    def quarantine(self, refused: DataFrame, *, source_table: str, columns: tuple[str, ...]) -> None:
        """Replaces the day's quarantined rows of one raw table."""
        rows = to_quarantine(refused, source_table=source_table, payload_columns=columns)
        self.replace(rows, QUARANTINED_ROWS.name, where=f"source_table = '{source_table}'")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measures and logs one step."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.summary.steps[name] = self.summary.steps.get(name, 0.0) + seconds
        LOGGER.info("%s %s: %s took %.1f s", self.context.job, self.context.day, name, seconds)

    def count(self, judged: DataFrame, *, table: str, rows_in: int) -> dict[str, object]:
        """Takes the counts of judged rows into the summary.

        Returns:
            For the notes: refused rows by reason, accepted rows by what was repaired or flagged.

        Raises:
            RowsLostError: they do not add up to `rows_in`.
        """
        with self.step("count"):
            counts = tally(count_rows(judged).collect())
        statuses = counts["statuses"]
        found = {
            "rows_in": rows_in,
            "rows_out": statuses["accepted"],
            "rows_refused": statuses["refused"],
            "rows_dropped": statuses["dropped"],
        }
        for name, value in found.items():
            setattr(self.summary, name, value)
        if rows_in != sum(statuses.values()):
            raise RowsLostError(table=table, day=str(self.context.day), **found)
        return {"reasons": counts["reasons"], "repairs": counts["repairs"]}


def index_pois(context: JobContext, spark: SparkSession) -> JobSummary:
    """Indexes the POIs of the day: `raw_pois` -> `categories`, `blocks`, `poi_index`, `quarantined_rows`."""
    night, day, settings = Night(context, spark), context.day, context.settings
    version = settings.index.version
    raw = night.read("raw_pois", made_by=A_SOURCE).where(F.col("day") == day)
    index, blocks, known = (
        night.read_or_empty(name).where(F.col("index_version") == version)
        for name in ("poi_index", "blocks", "categories")
    )
    _check_order(index, day)
    before = poi_index.state_before(index, day=day)
    judged = compute_once(poi_index.judge_pois(raw, before, day=day, settings=settings.clean))
    counts = night.count(judged, table="raw_pois", rows_in=raw.count())

    new_categories, pois = _with_categories(
        _describe_pois(judged.where("status = 'accepted'")), known, context
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
    with night.step("build"):
        night.summary.notes |= _check_capacity(slots, day, settings.index.max_inner)

    night.quarantine(
        judged.where("status = 'refused'"), source_table="raw_pois", columns=poi_index.PAYLOAD_COLUMNS
    )
    of_day = f"target.first_day = DATE'{day}' AND target.index_version = {version}"
    night.merge(new_categories, "categories", delete_where=of_day)
    night.merge(new_blocks, "blocks", delete_where=of_day)
    night.merge(slots, "poi_index", delete_where=of_day.replace("first_day", "indexed_day"))
    night.summary.notes |= counts
    return night.summary


def clean_day(context: JobContext, spark: SparkSession, *, as_of: date | None = None) -> JobSummary:
    """Cleans the day: `raw_actions` -> `cleaned_actions`, `user_places`, `quarantined_rows`.

    The catalogue is read as it stood at the end of `as_of`, by default the day: a backfill judges as the
    night did.
    """
    night, day, settings = Night(context, spark), context.day, context.settings
    raw = night.read("raw_actions", made_by=A_SOURCE).where(F.col("day") == day)
    of_version = F.col("index_version") == settings.index.version
    as_of = as_of or day
    index = night.read("poi_index", made_by="poi_index").where(of_version)
    slots = poi_index.state_before(index, day=as_of + timedelta(days=1))
    known_categories = night.read("categories", made_by="poi_index").where(
        of_version & (F.col("first_day") <= as_of)
    )
    accepted_ever = night.read_or_empty("cleaned_actions").where(of_version)
    history = accepted_ever.where(F.col("day") < day)
    recent = history.where(F.col("day") >= day - timedelta(days=settings.clean.duplicate_days))
    if as_of > day:  # what a later day has accepted since is not accepted a second time
        recent = recent.unionByName(accepted_ever.where(F.col("day") > day))
    judged = compute_once(clean_actions.judge_actions(raw, slots, recent, day=day, settings=settings.clean))
    counts = night.count(judged, table="raw_actions", rows_in=raw.count())

    accepted = clean_actions.keep_accepted(judged)
    users = accepted.select("user_id").distinct()
    past = history.select(*accepted.columns).join(users, "user_id", "left_semi").unionByName(accepted)
    in_sight = past.where(F.col("event_date") > day - timedelta(days=settings.places.lookback_days))
    places = compute_once(
        user_places.build_user_places(
            in_sight, users, known_categories, settings=settings.places, taxonomy=load_taxonomy()
        )
    )
    cleaned = clean_actions.with_interest(
        accepted, known_categories, places, at_place_km=settings.places.at_place_m / 1000
    )
    night.quarantine(
        judged.where("status = 'refused'"), source_table="raw_actions", columns=clean_actions.PAYLOAD_COLUMNS
    )
    night.replace(places, "user_places")
    night.replace(cleaned, "cleaned_actions")
    night.summary.notes |= counts
    return night.summary


def sequence_day(context: JobContext, spark: SparkSession) -> JobSummary:
    """Makes the histories of the users active on the day: `cleaned_actions` -> `action_sequences`."""
    night, day, settings = Night(context, spark), context.day, context.settings
    of_version = F.col("index_version") == settings.index.version
    cleaned = night.read("cleaned_actions", made_by="clean_actions").where((F.col("day") <= day) & of_version)
    places = night.read("user_places", made_by="clean_actions").where(F.col("day") == day)
    profiles = night.read_or_empty("raw_profiles").where(F.col("day") <= day)
    users = cleaned.where(F.col("day") == day).select("user_id").distinct()
    sequences = compute_once(
        action_sequences.build_action_sequences(
            cleaned.join(users, "user_id", "left_semi"),
            places,
            profiles.join(users, "user_id", "left_semi"),
            index_version=settings.index.version,
            settings=settings.sequences,
        )
    )
    with night.step("build"):
        counted = (
            sequences.groupBy("pattern")
            .agg(F.count("*").alias("n"), F.sum("seq_len").alias("actions"))
            .collect()
        )
    night.replace(sequences, "action_sequences")
    night.summary.rows_in = sum(row["actions"] for row in counted)
    night.summary.rows_out = sum(row["n"] for row in counted)
    night.summary.notes |= {"users_by_pattern": {row["pattern"]: row["n"] for row in sorted(counted)}}
    return night.summary


def _describe_pois(accepted: DataFrame) -> DataFrame:
    leaf = categories.leaf_category(F.col("category"), F.col("category_path"))
    name = F.coalesce(F.trim("name"), F.lit(""))
    return accepted.withColumns(
        {"poi_id": F.col("clean_poi_id"), "leaf": leaf, "text": poi_index.poi_text(), "name": name}
    )


def _with_categories(pois: DataFrame, known: DataFrame, context: JobContext) -> tuple[DataFrame, DataFrame]:
    """Returns the categories that are new, and the POIs with `category_id` (0 = none)."""
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


def _check_order(index: DataFrame, day: date) -> None:
    row = index.agg(F.max("changed_day").alias("last")).first()
    if row is not None and row["last"] is not None and row["last"] > day:
        raise IndexOrderError(day=str(day), last_day=str(row["last"]))


def _check_capacity(slots: DataFrame, day: date, max_inner: int) -> dict[str, object]:
    """Raises IndexFullError if a block overflows; returns what the summary says about the night."""
    is_new = F.col("indexed_day") == day
    row = slots.agg(
        F.count_if(is_new).alias("new_slots"),
        F.count_if(F.col("closed_day") == day).alias("ended_slots"),
        F.max(F.when(is_new, F.struct("inner_id", "block_id"))).alias("fullest"),
    ).first()
    assert row is not None
    if row["fullest"] is not None and row["fullest"]["inner_id"] >= max_inner:
        fullest = row["fullest"]
        raise IndexFullError(
            day=str(day), block_id=fullest["block_id"], num_pois=fullest["inner_id"] + 1, max_inner=max_inner
        )
    return {"new_slots": row["new_slots"], "ended_slots": row["ended_slots"]}


def _next_id(known: DataFrame, column: str, first: int) -> int:
    row = known.agg(F.max(column).alias("last")).first()
    return first if row is None or row["last"] is None else int(row["last"]) + 1
