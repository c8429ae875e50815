"""The sample jobs: pretrain_samples, training_others, ranking_samples, preference_pairs. Reads, builds, counts, writes.

Samples are as of a day: they hold the deliveries up to it, split by time counted back from it. A rerun of the day
gives the same rows.
"""

from datetime import date, timedelta
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.tables import QUARANTINED_ROWS
from conf.tokens import action_type_id
from etl.columns import impression_rules
from etl.columns.impression_rules import judge_impressions
from etl.columns.poi_slots import state_before
from etl.columns.refusal import to_quarantine
from etl.delta import storage
from etl.delta.contracts import conform, digest_table
from etl.jobs.runner import JobRun
from etl.spark.session import compute_once
from etl.tables.histories import split_of
from etl.tables.preference_pairs import CLICKS, MEAL_TIME, build_meal_time_pairs, build_preference_pairs
from etl.tables.pretrain_samples import build_pretrain_samples
from etl.tables.profiles import judge_profiles, keep_accepted, profile_states
from etl.tables.ranking_samples import build_ranking_samples, with_live_slot
from etl.tables.training_transitions import build_training_transitions
from etl.tables.training_visits import build_training_visits

NO_LIVE_SLOT = "impression_no_live_slot"
"""Why a shown POI that is fine is in no sample."""


def sample_windows(context: JobContext, spark: SparkSession) -> JobSummary:
    """Cuts histories into windows: `cleaned_actions` -> `pretrain_samples`."""
    run, day, settings = JobRun(context, spark), context.day, context.settings
    built = compute_once(
        build_pretrain_samples(
            _actions(run),
            _places(run),
            _profiles(run),
            day=day,
            first_day=_first_day(run),
            index_version=settings.index.version,
            samples=settings.samples,
            sequences=settings.sequences,
        )
    )
    with run.step("build"):
        rows = (
            built.groupBy("split", "is_kept")
            .agg(F.count("*").alias("n"), F.sum(_num_targets()).alias("targets"))
            .collect()
        )
    run.replace(built.where("is_kept").drop("is_kept"), "pretrain_samples")
    run.summary.rows_in = sum(row["n"] for row in rows)
    run.summary.rows_out = sum(row["n"] for row in rows if row["is_kept"])
    run.summary.rows_dropped = run.summary.rows_in - run.summary.rows_out
    run.summary.notes |= {
        "targets": {row["split"]: row["targets"] for row in sorted(rows) if row["is_kept"]},
        "dropped": "windows without target, and training windows of users below samples.min_richness",
    }
    return run.summary


def count_others(context: JobContext, spark: SparkSession) -> JobSummary:
    """Counts actions of the training period: `cleaned_actions` -> `training_transitions`, `training_visits`.

    Visits are written last: if the visits of a day exist, its transitions do too, even after a kill in between.
    """
    run, version = JobRun(context, spark), context.settings.index.version
    actions = _training_actions(run)
    with run.step("count"):
        counted = actions.agg(
            F.count("*").alias("rows"),
            F.count_if("is_target").alias("targets"),
            F.count_distinct("user_id").alias("users"),
        ).first()
    assert counted is not None
    run.replace(build_training_transitions(actions, index_version=version), "training_transitions")
    run.replace(build_training_visits(actions, index_version=version), "training_visits")
    run.summary.rows_in, run.summary.rows_out = counted["rows"], counted["targets"]
    run.summary.rows_dropped = counted["rows"] - counted["targets"]
    run.summary.notes |= {
        "users": counted["users"],
        "rows_out": "actions counted as visits",
        "dropped": "errands: they are where transitions start, and no visits",
    }
    return run.summary


def sample_requests(context: JobContext, spark: SparkSession) -> JobSummary:
    """Joins requests with the user's earlier actions: `raw_impressions` -> `ranking_samples`.

    Every row delivered so far is judged; the refused rows replace those of the same deliveries in the quarantine.
    """
    run, day, settings = JobRun(context, spark), context.day, context.settings
    raw = run.read("raw_impressions", made_by="SOURCE").where(F.col("day") <= day)
    judged = compute_once(judge_impressions(raw, settings=settings.clean))
    of_version = F.col("index_version") == settings.index.version
    index = run.read("poi_index", made_by="poi_index").where(of_version)
    slots = state_before(
        index, day=day + timedelta(days=1)
    )  # a rerun after later runs sees the same rows as the first run
    shown = compute_once(with_live_slot(impression_rules.keep_accepted(judged), slots))
    _count_impressions(run, raw, judged, shown)
    actions = _actions(run)
    samples = build_ranking_samples(
        shown,
        actions,
        _places(run),
        _profiles(run),
        day=day,
        first_day=_first_day(run),
        index_version=settings.index.version,
        request_type_id=_requested_type(actions),
        samples=settings.samples,
        sequences=settings.sequences,
    )
    _quarantine_deliveries(run, judged, raw)
    run.replace(samples, "ranking_samples")
    return run.summary


def _count_impressions(run: JobRun, raw: DataFrame, judged: DataFrame, shown: DataFrame) -> None:
    """Adds the outcome of every impression to the summary, by name.

    Raises:
        RowsLostError: rows in are not used + refused + dropped.
    """
    notes = run.count(judged, table="raw_impressions", rows_in=raw.count())
    with run.step("count"):
        without_slot = shown.where("block_id IS NULL").count()
    run.summary.rows_out -= without_slot
    run.summary.rows_dropped += without_slot
    reasons = {**notes["reasons"], **({NO_LIVE_SLOT: without_slot} if without_slot else {})}  # type: ignore[dict-item]
    run.summary.notes |= notes | {"reasons": reasons}


def _quarantine_deliveries(run: JobRun, judged: DataFrame, raw: DataFrame) -> None:
    """Replaces the quarantined rows of the impressions read, in one commit; commits nothing if they are unchanged."""
    context, where = run.context, "source_table = 'raw_impressions'"
    delivered = raw.agg(F.min("day").alias("first")).first()
    if context.dry_run or delivered is None or delivered["first"] is None:
        return
    refused = to_quarantine(
        judged.where("status = 'refused'"),
        source_table="raw_impressions",
        payload_columns=impression_rules.PAYLOAD_COLUMNS,
        by_day=True,
    )
    rows = compute_once(conform(refused, QUARANTINED_ROWS))
    # A later delivery of a request can cause rows of an earlier one to be refused, so all days are replaced.
    of_days = F.col("day").between(F.lit(delivered["first"]), F.lit(context.day))
    stored = run.read_or_empty(QUARANTINED_ROWS.name).where(of_days).where(where)
    if digest_table(stored, QUARANTINED_ROWS) == digest_table(rows, QUARANTINED_ROWS):
        return
    with run.step(f"write_{QUARANTINED_ROWS.name}"):
        run.summary.tables[QUARANTINED_ROWS.name] = storage.replace_days(
            rows, QUARANTINED_ROWS.name, run.root,
            first_day=delivered["first"], day=context.day, run_id=context.run_id, job=context.job, where=where,
        )  # fmt: skip


def sample_pairs(context: JobContext, spark: SparkSession) -> JobSummary:
    """Pairs chosen with rejected POIs by the rules of the settings: `ranking_samples` -> `preference_pairs`."""
    run, day = JobRun(context, spark), context.day
    requests = run.read("ranking_samples", made_by="ranking_samples").where(F.col("day") == day)
    samples, parts = context.settings.samples, []
    if CLICKS in samples.preference_rules:
        parts.append(build_preference_pairs(requests, max_rejected=samples.max_rejected))
    if MEAL_TIME in samples.preference_rules:
        version = F.col("index_version") == context.settings.index.version
        categories = run.read("categories", made_by="poi_index").where(version)
        parts.append(build_meal_time_pairs(requests, categories, max_rejected=samples.max_rejected))
    pairs = compute_once(reduce(DataFrame.unionByName, parts))
    with run.step("count"):
        run.summary.rows_in, run.summary.rows_out = requests.count(), pairs.count()
    run.replace(pairs, "preference_pairs")
    return run.summary


def _actions(run: JobRun) -> DataFrame:
    of_version = F.col("index_version") == run.context.settings.index.version
    cleaned = run.read("cleaned_actions", made_by="clean_actions")
    return cleaned.where((F.col("day") <= run.context.day) & of_version)


def _training_actions(run: JobRun) -> DataFrame:
    """Returns the actions before the validation days, with `is_target`, as `pretrain_samples` splits and marks them."""
    samples = run.context.settings.samples
    split = split_of(
        F.col("event_date"),
        day=F.lit(run.context.day),
        val_days=samples.val_days,
        test_days=samples.test_days,
    )
    is_target = F.col("is_interest") | F.lit(not samples.interest_only)
    return (
        _actions(run)
        .where(split == "train")
        .select(
            "user_id", "action_id", "action_ts_ms", "tz_offset_min", "block_id", "inner_id",
            is_target.alias("is_target"), "is_simulated",
        )
    )  # fmt: skip


def _places(run: JobRun) -> DataFrame:
    return run.read("user_places", made_by="clean_actions").where(F.col("day") <= run.context.day)


def _profiles(run: JobRun) -> DataFrame:
    raw = run.read_or_empty("raw_profiles").where(F.col("day") <= run.context.day)
    return profile_states(keep_accepted(judge_profiles(raw, settings=run.context.settings.clean)))


def _first_day(run: JobRun) -> date:
    """Returns the day of the first run, which delivered the history."""
    row = _actions(run).agg(F.min("day").alias("first")).first()
    return run.context.day if row is None or row["first"] is None else row["first"]


def _num_targets() -> F.Column:
    return F.size(F.filter("is_targets", lambda flag: flag))


def _requested_type(actions: DataFrame) -> int:
    """Returns the action type that requests ask for: click where there are clicks, else the data's only type."""
    click = action_type_id("click")
    row = actions.agg(
        F.count_if(F.col("action_type_id") == click).alias("clicks"),
        F.mode("action_type_id", deterministic=True).alias("most_common"),
    ).first()
    assert row is not None
    return click if row["clicks"] or row["most_common"] is None else int(row["most_common"])
