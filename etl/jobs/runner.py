"""The daily jobs clean_actions and action_sequences, and the steps of all jobs: read, call the builders, write.

These are thin ends around the pure builders of the table files. The output depends on the inputs, the day and the
settings alone, so a rerun of a day gives the same tables. Each job takes its counts in one aggregation.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import EmptyDeliveryError, MissingInputError, RowsLostError
from conf.tables import QUARANTINED_ROWS, TABLES
from conf.taxonomy import load_taxonomy
from etl.columns import action_rules
from etl.columns.judging import clean_id
from etl.columns.poi_slots import state_before
from etl.columns.refusal import count_rows, tally, to_quarantine
from etl.delta import commits, contracts, storage
from etl.jobs.deliveries import in_event_days
from etl.spark.session import compute_once, local_frame
from etl.tables import action_sequences, clean_actions, profiles, user_places
from etl.tables.profiles import judge_profiles, keep_accepted

LOGGER = logging.getLogger(__name__)
MAX_BROADCAST_ROWS = 1_000_000
"""Rows of a day up to which the keys in them (ids of some tens of bytes) are broadcast."""
MAX_REASONS = 5
"""Reasons that an error names, the most frequent first."""
A_SOURCE = "SOURCE (synthetic, checkins, tsmc, getnext or actions)"


@dataclass
class JobRun:
    """One job at work on one day: where it reads and writes, and what it reports."""

    context: JobContext
    spark: SparkSession
    summary: JobSummary = field(default_factory=JobSummary)
    skip_equal: bool = False
    """Is nothing committed where the rows of the day are stored already?"""

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
        return local_frame(self.spark, [], contracts.spark_schema(TABLES[name]))

    def replace(
        self,
        frame: DataFrame,
        name: str,
        *,
        where: str | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        """Replaces the rows of the day, unless the run is dry."""
        with self.step(f"write_{name}"):
            if self.context.dry_run:
                frame.write.format("noop").mode("overwrite").save()
                return
            run = self.context
            if self.skip_equal and self._is_stored(frame, name, where):
                self.summary.tables[name] = storage.table_version(self.spark, self.root, name)
                return
            self.summary.tables[name] = storage.replace_day(
                frame,
                name,
                self.root,
                day=run.day,
                run_id=run.run_id,
                job=run.job,
                where=where,
                metadata=metadata,
            )

    def _is_stored(self, frame: DataFrame, name: str, where: str | None) -> bool:
        """Tells whether the table holds these rows of the day and no others, by content."""
        stored = self.read_or_empty(name).where(F.col("day") == self.context.day).where(where or "true")
        rows = contracts.conform(frame.withColumn("day", F.lit(self.context.day)), TABLES[name])
        actual, expected = (contracts.digest_table(side, TABLES[name]) for side in (stored, rows))
        return actual == expected

    def merge(self, frame: DataFrame, name: str, *, delete_where: str) -> None:
        """Merges changed rows and deletes what an earlier run of the day had added, unless the run is dry."""
        with self.step(f"write_{name}"):
            if self.context.dry_run:
                frame.write.format("noop").mode("overwrite").save()
                return
            run = self.context
            # Usually there is nothing to delete; then Delta opens only the files with changed rows, if any.
            is_rerun = not self.read_or_empty(name).alias("target").where(delete_where).isEmpty()
            if not is_rerun and frame.isEmpty() and storage.table_exists(self.spark, self.root, name):
                self.summary.tables[name] = storage.table_version(self.spark, self.root, name)
                return
            self.summary.tables[name] = storage.merge_rows(
                frame,
                name,
                self.root,
                day=run.day,
                run_id=run.run_id,
                job=run.job,
                delete_where=delete_where if is_rerun else None,
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

    def count(self, judged: DataFrame, *, table: str, rows_in: int) -> dict[str, dict[str, int]]:
        """Takes the counts of judged rows into the summary.

        Returns:
            For the notes: refused rows by reason, accepted rows by repair or flag.

        Raises:
            RowsLostError: the counts do not add up to `rows_in`.
        """
        with self.step("count"):
            counts = tally(count_rows(judged).collect())
        statuses = counts["statuses"]
        totals = {
            "rows_in": rows_in,
            "rows_out": statuses["accepted"],
            "rows_refused": statuses["refused"],
            "rows_dropped": statuses["dropped"],
        }
        for name, value in totals.items():
            setattr(self.summary, name, value)
        if rows_in != sum(statuses.values()):
            raise RowsLostError(table=table, day=str(self.context.day), **totals)
        return {"reasons": counts["reasons"], "repairs": counts["repairs"]}


def clean_day(
    context: JobContext,
    spark: SparkSession,
    *,
    as_of: date | None = None,
    skip_equal: bool = False,
    may_refuse_all: bool = False,
) -> JobSummary:
    """Cleans the day: `raw_actions` -> `cleaned_actions`, `user_places`, `quarantined_rows`.

    The catalogue is read as it stood at the end of `as_of`, by default the day: a backfill judges as the
    original run did. Later days are left to `etl/jobs/recompute.py`.

    Raises:
        RowsLostError: the counts do not add up; nothing is written.
        EmptyDeliveryError: every row was refused, unless `may_refuse_all`; they are in quarantine.
    """
    run, day, settings = JobRun(context, spark, skip_equal=skip_equal), context.day, context.settings
    # Taken before the first read: a commit of another run in between must not count as read.
    metadata = commits.commit_metadata(spark, run.root, "cleaned_actions", as_of=as_of)
    raw = run.read("raw_actions", made_by=A_SOURCE).where(F.col("day") == day)
    of_version = F.col("index_version") == settings.index.version
    as_of = as_of or day
    index = run.read("poi_index", made_by="poi_index").where(of_version)
    slots = state_before(index, day=as_of + timedelta(days=1))
    leaves = run.read("categories", made_by="poi_index").where(of_version & (F.col("first_day") <= as_of))
    accepted_ever = run.read_or_empty("cleaned_actions").where(of_version)
    history = accepted_ever.where(F.col("day") < day)
    rows_in = raw.count()
    # An action that a later day has accepted since is not accepted a second time.
    others = history if as_of == day else accepted_ever.where(F.col("day") != day)
    known = _known_actions(raw, others, rows_in, since=day - timedelta(days=settings.clean.duplicate_days))
    judged = compute_once(clean_actions.judge_actions(raw, slots, known, day=day, settings=settings.clean))
    counts = run.count(judged, table="raw_actions", rows_in=rows_in)
    accepted = clean_actions.keep_accepted(judged)
    users = accepted.select("user_id").distinct()
    # An action is delivered on its own day or later: older days need not be opened.
    since = day - timedelta(days=settings.places.lookback_days)
    of_users = history.where(F.col("day") >= since).join(_small(users, rows_in), "user_id", "left_semi")
    in_sight = of_users.select(*accepted.columns).unionByName(accepted).where(F.col("event_date") > since)
    places = compute_once(
        user_places.build_user_places(
            in_sight, users, leaves, settings=settings.places, taxonomy=load_taxonomy()
        )
    )
    cleaned = clean_actions.with_interest(
        accepted, leaves, places, at_place_km=settings.places.at_place_m / 1000
    )
    run.quarantine(
        judged.where("status = 'refused'"), source_table="raw_actions", columns=action_rules.PAYLOAD_COLUMNS
    )
    run.replace(places, "user_places")
    # Written last, as this commit marks the day as done: after a kill before it, the next run recomputes the day.
    run.replace(cleaned, "cleaned_actions", metadata=metadata)
    run.summary.notes |= counts
    if rows_in and run.summary.rows_refused == rows_in and not may_refuse_all:
        # After the write, so that the quarantine holds the reasons; the raw rows stay for a replay.
        shown = ", ".join(f"{reason} {n}" for reason, n in list(counts["reasons"].items())[:MAX_REASONS])
        raise EmptyDeliveryError(path="raw_actions", day=str(day), refused=rows_in, reasons=shown)
    return run.summary


def _known_actions(raw: DataFrame, accepted: DataFrame, rows_in: int, *, since: date) -> DataFrame:
    """Finds actions that other days accepted with the id of a delivered row, or with its user and time.

    The search covers deliveries from a day on, and the event days of the delivered rows, whenever delivered.
    """
    recent = accepted.where((F.col("day") >= since) | in_event_days(raw))
    ids, moments = (
        _small(keys, rows_in)
        for keys in (clean_actions.delivered_ids(raw), clean_actions.delivered_moments(raw))
    )
    same_id = recent.join(ids, "action_id", "left_semi")
    same_moment = recent.join(moments, ["user_id", "action_ts_ms"], "left_semi")
    return compute_once(same_id.unionByName(same_moment).dropDuplicates(["action_id", "day"]))


def sequence_day(context: JobContext, spark: SparkSession, *, skip_equal: bool = False) -> JobSummary:
    """Builds the histories of the users active on the day: `cleaned_actions` -> `action_sequences`."""
    run, day, settings = JobRun(context, spark, skip_equal=skip_equal), context.day, context.settings
    metadata = commits.commit_metadata(spark, run.root, "action_sequences")
    of_version = F.col("index_version") == settings.index.version
    cleaned = run.read("cleaned_actions", made_by="clean_actions").where((F.col("day") <= day) & of_version)
    places = run.read("user_places", made_by="clean_actions").where(F.col("day") == day)
    raw = run.read_or_empty("raw_profiles").where(F.col("day") <= day)
    judged_profiles = _judge_profiles(run, raw.where(F.col("day") == day))
    of_day = cleaned.where(F.col("day") == day)
    users = _small(of_day.select("user_id").distinct(), of_day.count())
    profiles = raw.join(users, clean_id(raw["user_id"]) == users["user_id"], "left_semi")
    sequences = compute_once(
        action_sequences.build_action_sequences(
            cleaned.join(users, "user_id", "left_semi"),
            places,
            keep_accepted(judge_profiles(profiles, settings=settings.clean)),
            index_version=settings.index.version,
            settings=settings.sequences,
        )
    )
    with run.step("build"):
        counted = (
            sequences.groupBy("pattern")
            .agg(F.count("*").alias("n"), F.sum("seq_len").alias("actions"))
            .collect()
        )
    run.replace(sequences, "action_sequences", metadata=metadata)
    run.summary.rows_in = sum(row["actions"] for row in counted)
    run.summary.rows_out = sum(row["n"] for row in counted)
    run.summary.notes |= {"users_by_pattern": {row["pattern"]: row["n"] for row in sorted(counted)}}
    run.summary.notes |= judged_profiles
    return run.summary


def _judge_profiles(run: JobRun, delivered: DataFrame) -> dict[str, object]:
    """Quarantines the refused profile rows of the day and returns the counts of all of them, for the notes.

    Raises:
        RowsLostError: rows delivered are not accepted + refused + dropped.
    """
    of_source = (F.col("day") == run.context.day) & (F.col("source_table") == "raw_profiles")
    was_refused = not run.read_or_empty(QUARANTINED_ROWS.name).where(of_source).isEmpty()
    if delivered.isEmpty() and not was_refused:  # few sources know any
        return {}
    judged = compute_once(judge_profiles(delivered, settings=run.context.settings.clean))
    counts, num_delivered = tally(count_rows(judged).collect()), delivered.count()
    statuses = counts["statuses"]
    if num_delivered != sum(statuses.values()):
        raise RowsLostError(
            table="raw_profiles", day=str(run.context.day), rows_in=num_delivered,
            rows_out=statuses["accepted"], rows_refused=statuses["refused"], rows_dropped=statuses["dropped"],
        )  # fmt: skip
    if statuses["refused"] or was_refused:
        refused = judged.where("status = 'refused'")
        run.quarantine(refused, source_table="raw_profiles", columns=profiles.PAYLOAD_COLUMNS)
    return {
        "profiles": {
            "delivered": num_delivered, **statuses, "reasons": counts["reasons"], "repairs": counts["repairs"]
        }
    }  # fmt: skip


def _small(keys: DataFrame, num_rows: int) -> DataFrame:
    """Broadcasts the keys of a usual day, so that the history is filtered as it is read, not shuffled."""
    return F.broadcast(keys) if num_rows <= MAX_BROADCAST_ROWS else keys
