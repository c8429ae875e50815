"""Features of past days by one model, to train a ranking model on: nothing is published, no release changes.

    python -m udfs backfill --from 2026-01-10 --to 2026-02-28 [--model URI]

A ranking team that trains on requests of many days needs features of all of them by one model, which on those days did
not exist. `--from` and `--to` are UTC days of requests. The vectors are those known before each day began: users after
their actions up to the end of the day before, POIs as the catalogue described them then. The scores are those of every
POI shown on the days (`raw_impressions`), from the user's actions strictly before the request. The first delivery
brings the whole past at once and counts as always known, as in the samples of a training.

    raw_impressions, action_sequences, poi_index
        -> backfilled_user_embeddings, backfilled_poi_embeddings, backfilled_ranking_scores: rows by model and day
        -> backfills: one row per run, written last; `read_training_set` (udfs/training_sets/reader.py) starts there

A run replaces the rows of its model and days, in one commit per table, so it can be repeated after a kill.
"""

import logging
import time
from dataclasses import replace
from datetime import date, timedelta
from functools import partial, reduce

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import GateFailedError, SettingsError
from conf.tables import BACKFILLS, RANKING_SCORES, TABLES
from conf.units import MS_PER_DAY
from etl.columns import impression_rules
from etl.columns.poi_slots import date_details
from etl.columns.request_rules import judge_requests
from etl.columns.spacetime import event_date
from etl.delta.contracts import spark_schema
from etl.delta.storage import (
    append_log,
    read_table,
    replace_days,
    table_exists,
    table_location,
    table_version,
)
from etl.sources.base import collect_requests
from etl.spark.session import compute_once, local_frame
from udfs.features import poi_embeddings, ranking_scores, user_embeddings
from udfs.features.outcomes import complete_outcomes, keep_accepted, outcome_schema
from udfs.features.requests import prepare_requests, with_history
from udfs.features.run_context import FeatureRun, open_run
from udfs.features.runner import check_versions

LOGGER = logging.getLogger(__name__)
INPUTS = ("action_sequences", "poi_index", "raw_impressions")
STAGES = {
    "user_embeddings": "sft_embedding",
    "poi_embeddings": "sft_embedding",
    "ranking_scores": "sft_ranking",
}
"""Feature table -> stage of the model that it needs."""


def run_backfill(context: JobContext) -> JobSummary:
    """Computes the features of the days from `--from` to `--to`.

    Raises:
        SettingsError: the range is empty.
        MissingInputError: an input or the model does not exist.
        IndexVersionError, CapacityError, FingerprintError: the model does not fit the index.
        GateFailedError: too many rows made the model fail.
    """
    first, last = context.options.first, context.options.last
    if first > last:
        raise SettingsError(where="the command line", key="--from", problem=f"{first} lies after --to {last}")
    run = open_run(replace(context, day=last), INPUTS)
    summary = JobSummary()
    sequences = run.read("action_sequences")
    versions = sequences.where(F.col("day") <= F.lit(last)).select("index_version").distinct()
    check_versions(run, versions)
    plans = {
        "user_embeddings": lambda: plan_users(run, sequences, first=first, last=last),
        "poi_embeddings": lambda: plan_pois(run, first=first, last=last),
        "ranking_scores": lambda: plan_scores(run, sequences, first=first, last=last),
    }
    for name, plan in plans.items():
        started = time.perf_counter()
        reason = run.model.missing_stages.get(STAGES[name])
        if reason is not None:
            summary.notes[f"{name}_skipped"] = reason
            continue
        # Vectors are those of the day before a request. Rows of other days belong to other runs.
        back = timedelta(days=0 if name == "ranking_scores" else 1)
        _write(run, name, plan(), summary, first=first - back, last=last - back)
        summary.steps[name] = time.perf_counter() - started
    if not run.dry_run:
        summary.tables[BACKFILLS.name] = _append_range(run, first=first, last=last)
    summary.notes |= {"model_version": run.model.model_version, "inputs": run.versions}
    return summary


def plan_users(run: FeatureRun, sequences: DataFrame, *, first: date, last: date) -> DataFrame:
    """Plans the vectors of all users as of the day before `first`, and of those who acted on each later day."""
    states = user_states(sequences, first=first, last=last, delivered_first=_first_day(sequences))
    emitted = user_embeddings.arrange_states(
        states, num_partitions=run.settings.spark.shuffle_partitions
    ).mapInArrow(
        partial(user_embeddings.embed_users, model=run.model, micro_batch=run.settings.features.micro_batch),
        outcome_schema(TABLES["user_embeddings"], user_embeddings.EMITTED),
    )
    return complete_outcomes(
        emitted, TABLES["user_embeddings"], day=F.col("sequence_day"), model=run.model, run_id=run.run_id
    )


def user_states(sequences: DataFrame, *, first: date, last: date, delivered_first: date) -> DataFrame:
    """Returns the history of users at the ends of the days before `first` to `last`.

    Args:
        sequences: `action_sequences`, any days.
        first: first day of the requests.
        last: last day of the requests.
        delivered_first: day of the first delivery; its actions count as known on the day on which they happened.

    Returns:
        Columns as of `with_history`, and `sequence_day`, the day at whose end the history ends. One row per user with
        a history for the first of these days, and one for each later day on which the user's history grew.
    """
    before, until = first - timedelta(days=1), last - timedelta(days=1)
    known = F.col("day") <= F.lit(max(before, delivered_first))
    everybody = sequences.where(known).select("user_id", F.lit(before).alias("sequence_day"))
    since = sequences.where(
        (F.col("day") > F.lit(max(before, delivered_first))) & (F.col("day") <= F.lit(until))
    )
    later = since.select("user_id", F.col("day").alias("sequence_day"))
    at_first = sequences.where(F.col("day") == F.lit(delivered_first))
    acted_on = F.explode(F.array_distinct(F.transform("timestamps_ms", event_date)))
    history = at_first.select("user_id", acted_on.alias("sequence_day")).where(
        (F.col("sequence_day") > F.lit(before))
        & (F.col("sequence_day") <= F.lit(min(until, delivered_first)))
    )
    wanted = everybody.unionByName(later).unionByName(history).distinct()
    ends_ms = (F.unix_date("sequence_day").cast("bigint") + 1) * F.lit(MS_PER_DAY)
    asked = wanted.withColumns({"request_ts_ms": ends_ms, "is_simulated": F.lit(False)})
    as_of = F.greatest("sequence_day", F.lit(delivered_first))
    return with_history(asked, sequences, as_of=as_of).where("seq_len > 0")


def plan_pois(run: FeatureRun, *, first: date, last: date) -> DataFrame:
    """Plans the vectors of all POIs as of the day before `first`, and of those that changed on each later day."""
    details = date_details(run.read("poi_index"), index_version=run.model.index_version)
    changed = poi_states(details, first=first, last=last)
    ordered = changed.repartition(run.settings.spark.shuffle_partitions, "poi_id").sortWithinPartitions(
        "block_id", "inner_id", "poi_id", "changed_day"
    )
    emitted = ordered.select(*poi_embeddings.SLOT_NAMES, "changed_day", "is_simulated").mapInArrow(
        partial(poi_embeddings.embed_pois, model=run.model, micro_batch=run.settings.features.micro_batch),
        outcome_schema(TABLES["poi_embeddings"], poi_embeddings.EMITTED),
    )
    return complete_outcomes(
        emitted, TABLES["poi_embeddings"], day=F.col("changed_day"), model=run.model, run_id=run.run_id
    )


def poi_states(details: DataFrame, *, first: date, last: date) -> DataFrame:
    """Returns the slots that are live on the days before `first` to `last`, once for each change of their details.

    Args:
        details: `date_details` of the index.
        first: first day of the requests.
        last: last day of the requests.

    Returns:
        The columns of `details`; `changed_day` is the first of these days on which the row holds.
    """
    before, until = F.lit(first - timedelta(days=1)), F.lit(last - timedelta(days=1))
    starts = F.greatest(before, "valid_from", F.coalesce("known_from", before))
    is_over = (F.col("known_until") <= starts) | (F.col("valid_to") <= starts)
    return details.withColumn("changed_day", starts).where(
        (F.col("changed_day") <= until) & ~F.coalesce(is_over, F.lit(False))
    )


def plan_scores(run: FeatureRun, sequences: DataFrame, *, first: date, last: date) -> DataFrame:
    """Plans the scores of every POI that was shown on the days."""
    clean = run.settings.clean
    judged = impression_rules.judge_impressions(run.read("raw_impressions"), settings=clean)
    shown = impression_rules.keep_accepted(judged).where(
        event_date(F.col("request_ts_ms")).between(F.lit(first), F.lit(last))
    )
    asked = collect_requests(shown, action_type=None).withColumn("day", F.lit(last))
    requests = compute_once(
        prepare_requests(
            judge_requests(asked, day=last, settings=clean), action_type_id=run.model.action_type_id
        )
    )
    as_of = F.greatest(event_date(F.col("request_ts_ms")), F.lit(_first_day(sequences)))
    emitted = ranking_scores.plan_scores(
        requests,
        date_details(run.read("poi_index"), index_version=run.model.index_version),
        sequences,
        as_of=as_of,
        model=run.model,
        micro_batch=run.settings.features.micro_batch,
        num_partitions=run.settings.spark.shuffle_partitions,
        max_text_length=clean.max_text_length,
    ).join(requests.select("request_id", "request_date"), "request_id")
    return complete_outcomes(
        emitted, RANKING_SCORES, day=F.col("request_date"), model=run.model, run_id=run.run_id
    )


def _first_day(sequences: DataFrame) -> date:
    """Returns the day of the first delivery."""
    row = sequences.agg(F.min("day").alias("first")).first()
    return date(1970, 1, 1) if row is None or row["first"] is None else row["first"]


def _write(
    run: FeatureRun, name: str, outcomes: DataFrame, summary: JobSummary, *, first: date, last: date
) -> None:
    """Writes the good rows of a table; counts the others, which the run of the day has put into quarantine."""
    table, root = f"backfilled_{name}", run.settings.storage.root
    rows = compute_once(outcomes, StorageLevel.DISK_ONLY)
    counts = rows.groupBy("reason").count().collect()
    refused = {row["reason"]: row["count"] for row in counts if row["reason"] is not None}
    total = sum(row["count"] for row in counts)
    failures = {user_embeddings.REASON, poi_embeddings.REASON, ranking_scores.REASON}
    failed = sum(count for reason, count in refused.items() if reason in failures)
    limit = run.settings.features.max_failed_share
    if failed > limit * total:
        raise GateFailedError(
            table=table,
            day=f"{first} to {last}",
            failures=[f"{failed} of {total} rows made the model fail, more than "
                      f"features.max_failed_share={limit} allows"],
            docs=table_location(root, "quarantined_rows"),
        )  # fmt: skip
    summary.rows_in += total
    summary.rows_out += total - sum(refused.values())
    summary.rows_refused += sum(refused.values())
    summary.notes[name] = {"rows": total - sum(refused.values()), "refused": refused}
    if not run.dry_run:
        summary.tables[table] = replace_days(
            keep_accepted(rows), table, root, first_day=first, day=last, run_id=run.run_id, job="backfill",
            where=f"model_version = '{run.model.model_version}'",
        )  # fmt: skip
    LOGGER.info("%s: %d rows of %s to %s, %s refused", table, total, first, last, refused or "none")


def _append_range(run: FeatureRun, *, first: date, last: date) -> int:
    """Records that the range is complete; a retry of the run records it once."""
    model, root = run.model, run.settings.storage.root
    if table_exists(run.spark, root, BACKFILLS.name):
        same = {
            "run_id": run.run_id,
            "model_version": model.model_version,
            "first_day": first,
            "last_day": last,
        }
        known = read_table(run.spark, root, BACKFILLS.name)
        if not known.where(reduce(Column.__and__, (F.col(k) == F.lit(v) for k, v in same.items()))).isEmpty():
            return table_version(run.spark, root, BACKFILLS.name)
    values = (
        model.model_version, first, last, time.time_ns() // 1_000_000, model.index_version, run.run_id,
        model.is_simulated,
    )  # fmt: skip
    frame = local_frame(run.spark, [values], spark_schema(BACKFILLS))
    return append_log(frame, BACKFILLS.name, root, run_id=run.run_id, job="backfill", day=last)
