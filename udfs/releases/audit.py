"""Audits the feature tables of a day and their inputs before anything is published.

The gates judge each table: its contract, and volume, shares and freshness compared with the days before. The checks
here compare tables: one model and one index version, a vector for every user and every live POI, a score for every
candidate, every generated POI live. Every table is read at a version that is pinned first and kept in the audit
record, a JSON file under `{storage.artifacts}/audits/`; `publish` releases exactly these versions. A critical failure
stops publication. A warning goes to the record, the job's summary and the Data Docs. Run it with `python -m udfs audit
--day D`.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import date
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import GateFailedError
from conf.settings import GateSettings, Settings
from conf.tables import TABLE_STATISTICS
from etl.delta.contracts import spark_schema
from etl.delta.storage import replace_day
from etl.quality.expectations import Judgement, judge
from etl.quality.gate_rules import Figure, build_rules
from etl.quality.table_statistics import measure_tables
from etl.spark.session import local_frame, open_session
from udfs.features.skipped_features import load_skipped
from udfs.releases.audit_checks import (
    AuditedDay,
    Check,
    check_across_tables,
    check_stamps,
    find_stamps,
    measure_candidates,
)
from udfs.releases.audit_record import Audit, save_audit
from udfs.releases.audit_sample import SampleFindings, look_at_sample

LOGGER = logging.getLogger(__name__)
DayFigures = dict[tuple[date, str], dict[tuple[str, str], Figure]]
"""Figures by day and table, then by column and statistic."""


def run_audit(context: JobContext) -> JobSummary:
    """Audits the day and writes the record and, if it passed, the day's figures for later audits.

    Raises:
        MissingInputError: a feature table or an input was never written.
        GateFailedError: the day must not be published; the record says so too.
    """
    settings, clock = context.settings, StepClock()
    spark = open_session(settings, f"spacetime-gr audit {context.day}")
    skipped = load_skipped(settings.storage.artifacts, day=context.day)
    audited = AuditedDay(spark, settings.storage.root, context.day, skipped, settings.clean)
    docs = Path(settings.storage.artifacts) / "data_docs" / str(context.day)
    stamps = find_stamps(audited)
    model_version, index_version = stamps[0][:2] if len(stamps) == 1 else (None, None)
    clock.end("open")
    checks, sample, figures = look_at_day(
        audited,
        settings,
        model_version=model_version,
        index_version=index_version,
        model_uri=getattr(context.options, "model", None) or settings.features.model,
    )
    checks = check_stamps(stamps) + checks
    clock.end("look")
    judgement = judge_day(audited, figures, docs, settings.gates)
    clock.end("gates")
    failures = [f"{check.table}: {check.found} {check.name}" for check in checks if not check.is_passed]
    audit = Audit(
        day=str(context.day),
        run_id=context.run_id,
        is_passed=not (failures + sample.collapsed + judgement.failures),
        model_version=model_version,
        index_version=index_version,
        is_simulated=any(stamp[2] for stamp in stamps),
        table_versions=audited.versions,
        checks=[asdict(check) for check in checks],
        failures=failures + sample.collapsed + judgement.failures,
        docs=str(docs),
        warnings=judgement.warnings,
        unjudged=judgement.unjudged + sample.unjudged,
        skipped={name: each.reason for name, each in skipped.items()},
    )
    log_audit(audit, context)
    summary = JobSummary(
        notes={"checks": len(checks), "table_versions": audited.versions, "warnings": audit.warnings,
               "unjudged": audit.unjudged, "skipped": audit.skipped},
        steps=clock.steps,
    )  # fmt: skip
    if not context.dry_run:
        summary.tables[TABLE_STATISTICS.name] = save_figures(audited, figures, context)
    return summary


def look_at_day(
    audited: AuditedDay,
    settings: Settings,
    *,
    model_version: str | None,
    index_version: int | None,
    model_uri: str,
) -> tuple[list[Check], SampleFindings, DayFigures]:
    """Checks across tables, recomputes a sample, and counts the day's figures, all three in parallel.

    Each is a Spark action that spends its time on planning, on one core of the driver, so none waits for the others.
    If the rows are of several models or indexes, only the figures are counted.
    """
    history_days = settings.gates.history_days
    if model_version is None or index_version is None:
        return [], SampleFindings(), measure_day(audited, history_days=history_days)
    audited.prepare()
    with ThreadPoolExecutor(3) as pool:
        checking = pool.submit(
            check_across_tables, audited, model_version=model_version, index_version=index_version
        )
        sampling = pool.submit(
            look_at_sample, audited, settings, model_version=model_version, model_uri=model_uri
        )
        figures = measure_day(audited, history_days=history_days, index_version=index_version)
        checks, sample = checking.result(), sampling.result()
    for table, sampled in sample.figures.items():
        figures[audited.day, table] |= sampled
    return checks + sample.checks, sample, figures


class StepClock:
    """Measures the seconds of the consecutive steps of a job."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, step: str) -> None:
        """Ends a step."""
        now = time.perf_counter()
        self.steps[step], self._last = now - self._last, now


def log_audit(audit: Audit, context: JobContext) -> None:
    """Saves the record, logs the warnings, and raises if the audit failed.

    Raises:
        GateFailedError: the day must not be published.
    """
    # Saved before the raise: otherwise an earlier record that passed could still let the day be published.
    if not context.dry_run:
        save_audit(audit, context.settings.storage.artifacts)
    for warning in audit.warnings:
        LOGGER.warning("audit of %s: %s", context.day, warning)
    if not audit.is_passed:
        raise GateFailedError(
            table="the feature tables", day=audit.day, failures=audit.failures, docs=Path(audit.docs)
        )


def measure_day(audited: AuditedDay, *, history_days: int, index_version: int | None = None) -> DayFigures:
    """Counts the figures of the day and reads those of the days before, in one Spark action.

    Args:
        audited: the day at pinned versions.
        history_days: days before that are read.
        index_version: of the day's rows; None if there are several, then generated POIs are not measured.
    """
    tables = {name: audited.rows(name) for name in audited.versions}
    figures = measure_tables(tables, audited.before_the_night(), audited.eve(), day=audited.day)
    if index_version is not None:
        figures = figures.unionAll(measure_candidates(audited, index_version=index_version))
    statistics = audited.earlier_statistics(history_days).unionByName(
        figures.withColumn("day", F.lit(audited.day)), allowMissingColumns=True
    )
    by_table: DayFigures = {}
    for row in statistics.collect():  # a few hundred figures, however large the tables are
        of_table = by_table.setdefault((row["day"], row["table_name"]), {})
        of_table[row["column_name"], row["statistic"]] = Figure(row["value"], row["example"])
    return by_table


def judge_day(audited: AuditedDay, figures: DayFigures, docs: Path, settings: GateSettings) -> Judgement:
    """Judges every table of the day; returns failures and warnings as text."""
    rules, unjudged = {}, []
    for name in audited.versions:
        earlier = {
            day: of_table for (day, table), of_table in figures.items() if table == name and day < audited.day
        }
        rules[name], too_few = build_rules(
            name, figures[audited.day, name], earlier, day=audited.day, settings=settings
        )
        unjudged += too_few
    judgement = judge(rules, docs, day=audited.day)
    return Judgement(judgement.failures, judgement.warnings, unjudged)


def save_figures(audited: AuditedDay, figures: DayFigures, context: JobContext) -> int:
    """Replaces the day's rows of `table_statistics`; only passed audits get here.

    Thus a failed day, for example one with almost no rows, does not become part of the baseline for later days.
    """
    rows = [
        (day, table, column, statistic, figure.value)
        for (day, table), of_table in sorted(figures.items())
        if day == audited.day
        for (column, statistic), figure in sorted(of_table.items())
    ]
    frame: DataFrame = local_frame(audited.spark, rows, spark_schema(TABLE_STATISTICS))
    return replace_day(
        frame.coalesce(1),
        TABLE_STATISTICS.name,
        audited.root,
        day=audited.day,
        run_id=context.run_id,
        job=context.job,
    )
