"""Audits the feature tables of a day, and what they were made from, before anything is published.

The Great Expectations gate checks each table against its contract; the checks here are those that look across
tables: one model and one index version, a vector for every user and every live POI, a score for every
candidate, every generated POI live. Everything is read at versions that are pinned first and kept in the
audit record, a JSON file under `{storage.artifacts}/audits/`; `publish` releases exactly those. Run it with
`python -m udfs audit --day D`.
"""

import time
from dataclasses import asdict
from pathlib import Path

from conf.cli import JobContext, JobSummary
from conf.errors import GateFailedError
from conf.tables import FEATURE_TABLES
from etl.quality import gate
from etl.session import open_session
from udfs.audit_checks import AuditedDay, check_across_tables, check_stamps, find_stamps
from udfs.audit_record import Audit, save_audit

MAY_BE_EMPTY = (*FEATURE_TABLES, "ranking_requests")


def run_audit(context: JobContext) -> JobSummary:
    """Audits the day and writes the record.

    Raises:
        MissingInputError: a feature table or an input was never written.
        GateFailedError: something must not be published; the record says so too.
    """
    settings, started = context.settings, time.perf_counter()
    spark = open_session(settings, f"spacetime-gr audit {context.day}")
    audited = AuditedDay(spark, settings.storage.root, context.day)
    docs = Path(settings.storage.artifacts) / "data_docs"
    stamps = find_stamps(audited)
    checks = check_stamps(stamps)
    if len(stamps) == 1:
        checks += check_across_tables(audited, model_version=stamps[0][0], index_version=stamps[0][1])
    crossed = time.perf_counter()
    failures = [f"{check.table}: {check.found} {check.name}" for check in checks if not check.is_passed]
    failures += run_gates(audited, docs)
    audit = Audit(
        day=str(context.day),
        run_id=context.run_id,
        is_passed=not failures,
        model_version=stamps[0][0] if len(stamps) == 1 else None,
        index_version=stamps[0][1] if len(stamps) == 1 else None,
        is_simulated=any(stamp[2] for stamp in stamps),
        table_versions=audited.versions,
        checks=[asdict(check) for check in checks],
        failures=failures,
        docs=str(docs),
    )
    if not context.dry_run:
        save_audit(audit, settings.storage.artifacts)
    if failures:
        raise GateFailedError(table="the feature tables", day=audit.day, failures=failures, docs=docs)
    steps = {"checks": crossed - started, "gates": time.perf_counter() - crossed}
    return JobSummary(notes={"checks": len(checks), "table_versions": audited.versions}, steps=steps)


def run_gates(audited: AuditedDay, docs: Path) -> list[str]:
    """Runs the Great Expectations gate of every table; returns what failed, in words.

    A night may have no requests and nothing to embed anew, so tables that follow from those are judged only
    if they have rows; a night without a single action is a delivery that failed.
    """
    failures = []
    for name in audited.versions:
        rows = audited.rows(name)
        if name in MAY_BE_EMPTY and rows.isEmpty():
            continue
        failures += gate(rows, name, docs)
    return failures
