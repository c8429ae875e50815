"""Runs the feature jobs of a day: pins inputs, checks model against index, computes, counts, writes.

Every job is one entry of `FEATURE_JOBS`; the runner does the rest. Units in = units done + units refused is
checked before anything is committed. If too many rows make the model fail, the run stops instead of publishing
gaps.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import ConflictingWriteError, GateFailedError, IndexVersionError, RowsLostError
from conf.rules import rules_of
from conf.tables import QUARANTINED_ROWS, RANKING_REQUESTS
from etl.columns import request_rules
from etl.columns.refusal import count_rows, tally, to_quarantine
from etl.delta.contracts import conform, digest_table
from etl.delta.storage import (
    ATTEMPTS,
    replace_day,
    table_location,
)
from etl.spark.session import compute_once
from models.copying.crowd_tables import CROWD_TABLES, last_crowd
from udfs.features import poi_candidates, poi_embeddings, ranking_scores, user_embeddings
from udfs.features.outcomes import FeatureBuild, build_refused, keep_accepted
from udfs.features.requests import judge_requests_of
from udfs.features.run_context import FeatureRun, open_run
from udfs.features.skipped_features import save_skipped, skip_feature

LOGGER = logging.getLogger(__name__)
REQUEST_REASONS = tuple(
    rule.code for rule in rules_of(RANKING_REQUESTS.name, "refuse") if rule.code.startswith("request_")
)
"""Reasons for which a whole request is refused, the same in every job that reads requests."""


@dataclass(frozen=True)
class FeatureJob:
    """One feature table.

    Attributes:
        inputs: tables that are read for every model.
        source_table: where the rows that may be refused come from.
        reasons: all reason codes of the job.
        model_failure: the reason code of rows that made the model fail.
        build: plans the rows of a day.
        copied: further tables, read if the model copies from the crowd.
        stage: training stage that the table needs; empty for generation, which every model can do.
    """

    inputs: tuple[str, ...]
    source_table: str
    reasons: tuple[str, ...]
    model_failure: str
    build: Callable[[FeatureRun], FeatureBuild]
    copied: tuple[str, ...] = ()
    stage: str = ""


def plan_user_embeddings(run: FeatureRun) -> FeatureBuild:
    """Plans `user_embeddings` from the tables of a day."""
    root = run.settings.storage.root
    return user_embeddings.build_user_embeddings(
        run.read("action_sequences"),
        user_embeddings.mark_current(run.read_output("user_embeddings"), root),
        day=run.day,
        model=run.model,
        run_id=run.run_id,
        micro_batch=run.settings.features.micro_batch,
        num_partitions=run.settings.spark.shuffle_partitions,
    )


def plan_poi_embeddings(run: FeatureRun) -> FeatureBuild:
    """Plans `poi_embeddings` from the tables of a day."""
    return poi_embeddings.build_poi_embeddings(
        run.read("poi_index"),
        run.read_output("poi_embeddings"),
        day=run.day,
        model=run.model,
        run_id=run.run_id,
        micro_batch=run.settings.features.micro_batch,
        num_partitions=run.settings.spark.shuffle_partitions,
    )


def judge_night(run: FeatureRun) -> DataFrame:
    """Judges the requests of a day, once per job."""
    requests = run.read("ranking_requests")
    return compute_once(judge_requests_of(requests, day=run.day, settings=run.settings.clean))


def plan_ranking_scores(run: FeatureRun) -> FeatureBuild:
    """Plans `ranking_scores` from the tables of a day."""
    return ranking_scores.build_ranking_scores(
        judge_night(run),
        run.read("action_sequences"),
        run.read("poi_index"),
        day=run.day,
        model=run.model,
        run_id=run.run_id,
        micro_batch=run.settings.features.micro_batch,
        num_partitions=run.settings.spark.shuffle_partitions,
        max_text_length=run.settings.clean.max_text_length,
    )


def open_places(run: FeatureRun) -> poi_candidates.Places:
    """Sends the catalogue to the workers, with the location of the crowd's tables if the model copies from them."""
    catalogue = poi_candidates.ship_catalogue(
        run.spark, run.read("poi_index"), day=run.day, index_version=run.model.index_version
    )
    if not run.model.copies_from_crowd:
        return poi_candidates.Places(catalogue)
    visits, transitions = (run.locate(name) for name in CROWD_TABLES)
    crowd = last_crowd(visits, transitions, run.day, run.model.index_version)
    return poi_candidates.Places(catalogue, crowd)


def plan_poi_candidates(run: FeatureRun) -> FeatureBuild:
    """Plans `poi_candidates` from the tables of a day."""
    return poi_candidates.build_poi_candidates(
        judge_night(run),
        run.read("action_sequences"),
        open_places(run),
        day=run.day,
        model=run.model,
        run_id=run.run_id,
        micro_batch=run.settings.features.micro_batch,
        num_partitions=run.settings.spark.shuffle_partitions,
        lists=poi_candidates.ListSettings(run.settings.features.top_k, run.settings.features.new_logit),
    )


FEATURE_JOBS: dict[str, FeatureJob] = {
    "user_embeddings": FeatureJob(
        inputs=("action_sequences", "poi_index"),
        source_table="action_sequences",
        reasons=(user_embeddings.REASON,),
        model_failure=user_embeddings.REASON,
        build=plan_user_embeddings,
        stage="sft_embedding",
    ),
    "poi_embeddings": FeatureJob(
        inputs=("poi_index",),
        source_table="poi_index",
        reasons=(poi_embeddings.REASON,),
        model_failure=poi_embeddings.REASON,
        build=plan_poi_embeddings,
        stage="sft_embedding",
    ),
    "ranking_scores": FeatureJob(
        inputs=("ranking_requests", "action_sequences", "poi_index"),
        source_table="ranking_requests",
        reasons=ranking_scores.REASONS,
        model_failure=ranking_scores.REASON,
        build=plan_ranking_scores,
        stage="sft_ranking",
    ),
    "poi_candidates": FeatureJob(
        inputs=("ranking_requests", "action_sequences", "poi_index"),
        source_table="ranking_requests",
        reasons=poi_candidates.REASONS,
        model_failure=poi_candidates.REASON,
        build=plan_poi_candidates,
        copied=CROWD_TABLES,
    ),
}


def run_features(context: JobContext, names: Sequence[str]) -> JobSummary:
    """Runs feature jobs one after another in one session with one model and adds up their summaries."""
    started = time.perf_counter()
    jobs = [FEATURE_JOBS[name] for name in names]
    inputs = sorted({table for job in jobs for table in job.inputs})
    copied = sorted({table for job in jobs for table in job.copied})
    run = open_run(context, inputs, copied)
    total = JobSummary(steps={"open": time.perf_counter() - started})
    for name in names:
        started = time.perf_counter()
        summary = run_feature(run, name)
        total.rows_in += summary.rows_in
        total.rows_out += summary.rows_out
        total.take(summary, name)
        total.notes |= summary.notes
        total.steps[name] = time.perf_counter() - started
    total.notes |= {
        "model_version": run.model.model_version,
        "index_version": run.model.index_version,
        "model_loads": run.model.loads.value,
        "inputs": run.versions,
    }
    return total


def run_feature(run: FeatureRun, name: str) -> JobSummary:
    """Computes and writes one feature table for the day.

    Raises:
        IndexVersionError: histories were built with another index version.
        GateFailedError: too many rows made the model fail.
        RowsLostError: units in are not units done + refused.
    """
    started = time.perf_counter()
    job = FEATURE_JOBS[name]
    if job.stage in run.model.missing_stages:
        return skip_feature(run, name, stage=job.stage)
    build = job.build(run)
    check_versions(run, build.index_versions)
    # Kept on disk, since the rows are large and the GPU should not compute them twice.
    outcomes = compute_once(build.outcomes, StorageLevel.DISK_ONLY)
    counts = count_outcomes(outcomes, build.unit, job)
    rows_in = build.todo.count()
    summary = JobSummary(rows_in=rows_in, rows_out=counts["rows"], rows_refused=counts["refused"])
    _count_requests(run, build, summary)
    if rows_in != counts["done"] + counts["refused"]:
        raise RowsLostError(
            table=name,
            day=str(run.day),
            rows_in=rows_in,
            rows_out=counts["done"],
            rows_refused=counts["refused"],
            rows_dropped=0,
        )
    if not run.dry_run:
        # Refused rows are written first, so that a run that stops because of them leaves them for inspection.
        # A kill before the table's one commit leaves its day unchanged, and a rerun replaces both.
        _write_refused(run, job, build, outcomes, name)
        _stop_if_model_fails(run, job, name, failed=counts["failed"], rows_in=rows_in)
        summary.tables[name] = replace_day(
            keep_accepted(outcomes), name, run.settings.storage.root,
            day=run.day, run_id=run.run_id, job=name, metadata={"read": dict(run.versions)},
        )  # fmt: skip
        save_skipped(None, run.settings.storage.artifacts, name, day=run.day)
    LOGGER.info(
        "%s %s: %d in, %d rows out, %d refused, model %s, %.1f s",
        name, run.day, rows_in, counts["rows"], counts["refused"], run.model.model_version,
        time.perf_counter() - started,
    )  # fmt: skip
    return summary


def check_versions(run: FeatureRun, index_versions: DataFrame) -> None:
    """Checks that histories were built with the model's index; `index_versions` has one column.

    Raises:
        IndexVersionError: some were not.
    """
    for row in index_versions.collect():
        if row["index_version"] != run.model.index_version:
            raise IndexVersionError(
                model_uri=run.model.uri, trained_on=run.model.index_version, found=row["index_version"]
            )


def count_outcomes(outcomes: DataFrame, unit: Sequence[str], job: FeatureJob) -> dict[str, int]:
    """Counts rows written, units done, units refused and units that made the model fail, in one pass."""
    is_good = F.col("reason").isNull()
    key = F.struct(*unit)
    row = outcomes.agg(
        F.count_if(is_good).alias("rows"),
        F.count_distinct(F.when(is_good, key)).alias("done"),
        F.count_distinct(F.when(~is_good, key)).alias("refused"),
        F.count_distinct(F.when(F.col("reason") == job.model_failure, key)).alias("failed"),
    ).first()
    assert row is not None
    return {name: int(value) for name, value in row.asDict().items()}


def refused_where(job: FeatureJob) -> str:
    """Returns the condition that selects a job's rows of `quarantined_rows`.

    Wholly refused requests belong to every job that reads requests: each of these jobs writes the same rows.
    """
    shared = REQUEST_REASONS if job.source_table == RANKING_REQUESTS.name else ()
    reasons = ", ".join(f"'{reason}'" for reason in (*job.reasons, *shared))
    return f"source_table = '{job.source_table}' AND reason IN ({reasons})"


def _count_requests(run: FeatureRun, build: FeatureBuild, summary: JobSummary) -> None:
    """Adds the refused and dropped requests to the summary, by reason.

    Raises:
        RowsLostError: requests delivered are not accepted + refused + dropped.
    """
    if build.judged is None:
        return
    delivered = run.read(RANKING_REQUESTS.name).where(F.col("day") == F.lit(run.day)).count()
    counts = tally(count_rows(build.judged).collect())
    statuses = counts["statuses"]
    if delivered != sum(statuses.values()):
        raise RowsLostError(
            table=RANKING_REQUESTS.name, day=str(run.day), rows_in=delivered, rows_out=statuses["accepted"],
            rows_refused=statuses["refused"], rows_dropped=statuses["dropped"],
        )  # fmt: skip
    summary.rows_in += statuses["refused"] + statuses["dropped"]
    summary.rows_refused += statuses["refused"]
    summary.rows_dropped += statuses["dropped"]
    summary.notes["requests"] = {
        "delivered": delivered, **statuses, "reasons": counts["reasons"], "repairs": counts["repairs"]
    }  # fmt: skip


def _write_refused(
    run: FeatureRun, job: FeatureJob, build: FeatureBuild, outcomes: DataFrame, name: str
) -> None:
    """Replaces the rows that this job refused on the day; no commit if the quarantine already holds exactly them.

    Two jobs that read the requests may run at once and both write the refused ones. Delta lets one of them commit;
    the other reads the quarantine again and then has nothing to write.
    """
    refused = build_refused(outcomes, day=run.day, source_table=job.source_table)
    if build.judged is not None:
        requests = to_quarantine(
            build.judged.where("status = 'refused'"),
            source_table=job.source_table, payload_columns=request_rules.PAYLOAD_COLUMNS,
        )  # fmt: skip
        refused = refused.unionByName(requests.withColumn("day", F.lit(run.day)))
    rows = compute_once(conform(refused, QUARANTINED_ROWS))
    expected = digest_table(rows, QUARANTINED_ROWS)
    for attempt in range(ATTEMPTS):
        stored = run.read_output(QUARANTINED_ROWS.name).where(F.col("day") == F.lit(run.day))
        if digest_table(stored.where(refused_where(job)), QUARANTINED_ROWS) == expected:
            return
        try:
            replace_day(
                rows, QUARANTINED_ROWS.name, run.settings.storage.root,
                day=run.day, run_id=run.run_id, job=name, where=refused_where(job),
            )  # fmt: skip
            return
        except ConflictingWriteError:
            if attempt + 1 == ATTEMPTS:
                raise
            LOGGER.info(
                "%s %s: another job wrote refused rows at the same time; looking again", name, run.day
            )


def _stop_if_model_fails(run: FeatureRun, job: FeatureJob, name: str, *, failed: int, rows_in: int) -> None:
    limit = run.settings.features.max_failed_share
    if failed > limit * rows_in:
        raise GateFailedError(
            table=name,
            day=str(run.day),
            failures=[f"{failed} of {rows_in} rows made the model fail ({job.model_failure}), "
                      f"more than features.max_failed_share={limit} allows"],
            docs=table_location(run.settings.storage.root, "quarantined_rows"),
        )  # fmt: skip
