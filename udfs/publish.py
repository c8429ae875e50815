"""Makes an audited night visible by one commit of one row to `releases`, and takes one back in the same way.

Only what a passed audit looked at, at exactly those Delta versions, can be published. Publishing the same
content again changes nothing. A rollback appends a row that points at the older versions, so the log tells
the whole story. Run with `python -m udfs publish --day D`, `python -m udfs rollback [--to N]`, `python -m
udfs releases`.
"""

import logging
import time
from dataclasses import asdict, replace
from datetime import date
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import AuditMissingError, ReleaseSkewError
from conf.tables import FEATURE_TABLES, RELEASES, TABLES
from etl.contracts import digest_table, spark_schema
from etl.session import local_frame, open_session
from etl.storage import append_log, read_table, table_version
from udfs.audit_record import Audit, audit_path, load_audit
from udfs.read_release import VECTOR_KEYS, keep_released
from udfs.release_log import Release, find_previous, find_release, load_releases

LOGGER = logging.getLogger(__name__)


def run_publish(context: JobContext) -> JobSummary:
    """Publishes the audited tables of the day.

    Raises:
        ReleaseSkewError: the tables were not made by one model on one index.
        AuditMissingError: no passed audit looked at the tables as they are now.
    """
    settings = context.settings
    root = settings.storage.root
    spark = open_session(settings, f"spacetime-gr publish {context.day}")
    versions = {name: table_version(spark, root, name) for name in FEATURE_TABLES}
    stamps = refuse_skew(spark, root, versions, day=context.day)
    audit = require_passed_audit(settings.storage.artifacts, versions, day=context.day)
    if stamps and (audit.model_version, audit.index_version) not in stamps:
        ((model_version, index_version),) = stamps
        found = (
            f"the rows are by model {model_version} on index {index_version}, but the audit tells of model "
        )
        raise ReleaseSkewError(
            day=str(context.day), found=f"{found}{audit.model_version} on index {audit.index_version}"
        )
    assert audit.model_version is not None, "a passed audit has found exactly one model"
    assert audit.index_version is not None, "and one index version"
    releases = load_releases(spark, root)
    release = Release(
        release_id=max((release.release_id for release in releases), default=0) + 1,
        day=context.day,
        published_ts_ms=0,
        table_versions=audit.table_versions,
        model_version=audit.model_version,
        index_version=audit.index_version,
        rollback_of=None,
        run_id=context.run_id,
        is_simulated=audit.is_simulated,
    )
    if releases and has_same_rows(spark, root, releases[-1], release):
        LOGGER.info("release %d already shows these rows; nothing to publish", releases[-1].release_id)
        return JobSummary(notes={"release_id": releases[-1].release_id, "is_new": False})
    return append_release(spark, context, release)


def run_rollback(context: JobContext) -> JobSummary:
    """Goes back to the release before the current one, or to `--to N`, by publishing its versions again.

    Raises:
        NoReleaseError: there is no such release.
    """
    root = context.settings.storage.root
    spark = open_session(context.settings, "spacetime-gr rollback")
    releases = load_releases(spark, root)
    current = find_release(releases, root)
    wanted = context.options.to
    target = find_previous(releases, root) if wanted is None else find_release(releases, root, wanted)
    if target.has_content_of(current):
        LOGGER.info("release %d already shows what release %d does", current.release_id, target.release_id)
        return JobSummary(notes={"release_id": current.release_id, "is_new": False})
    for name in FEATURE_TABLES:
        read_table(
            spark, root, name, version=target.table_versions[name]
        )  # fails here if the version is gone
    release = replace(
        target, release_id=current.release_id + 1, rollback_of=current.release_id, run_id=context.run_id
    )
    return append_release(spark, context, release)


def refuse_skew(
    spark: SparkSession, root: str, versions: dict[str, int], *, day: date
) -> set[tuple[str, int]]:
    """Checks that the day's rows of all feature tables, and the vectors beside them, are of one model.

    Returns:
        The pair of model and index version behind the day's rows; empty if there is no row.

    Raises:
        ReleaseSkewError: they are not.
    """
    stamps: dict[tuple[str, int], set[str]] = {}
    of_tables = [
        read_table(spark, root, name, version=versions[name])
        .where(F.col("day") == F.lit(day))
        .select(F.lit(name).alias("table"), "model_version", "index_version")
        for name in FEATURE_TABLES
    ]
    for row in reduce(DataFrame.unionAll, of_tables).distinct().collect():
        stamps.setdefault((row["model_version"], row["index_version"]), set()).add(row["table"])
    if len(stamps) > 1:
        found = "; ".join(
            f"{', '.join(sorted(names))} by model {model} on index {index}"
            for (model, index), names in sorted(stamps.items())
        )
        raise ReleaseSkewError(day=str(day), found=found)
    for model_version, _ in stamps:
        _refuse_vectors_of_others(spark, root, versions, day=day, model_version=model_version)
    return set(stamps)


def require_passed_audit(artifacts: str, versions: dict[str, int], *, day: date) -> Audit:
    """Returns the audit of the day, if it passed and looked at these versions of the feature tables.

    Raises:
        AuditMissingError: there is none.
    """
    path = audit_path(artifacts, str(day))
    audit = load_audit(artifacts, day)
    if audit is None:
        raise AuditMissingError(day=str(day), record=path, problem="the day was never audited")
    if audit.day != str(day):
        raise AuditMissingError(day=str(day), record=path, problem=f"the record is of {audit.day}")
    changed = [name for name in FEATURE_TABLES if audit.table_versions.get(name) != versions[name]]
    if changed:
        raise AuditMissingError(
            day=str(day), record=path, problem=f"{', '.join(changed)} changed after the audit looked at them"
        )
    if not audit.is_passed:
        raise AuditMissingError(
            day=str(day), record=path, problem=f"the audit failed: {'; '.join(audit.failures)}"
        )
    return audit


def has_same_rows(spark: SparkSession, root: str, one: Release, other: Release) -> bool:
    """Tells whether readers see the same rows through two releases, whatever the Delta versions are called.

    A night that was cleared and rerun writes equal rows under new versions; releasing it twice would tell
    readers of a change that is none.
    """
    stamps = [(release.day, release.model_version, release.index_version) for release in (one, other)]
    if stamps[0] != stamps[1]:
        return False
    names = [name for name in FEATURE_TABLES if one.table_versions[name] != other.table_versions[name]]
    if one.table_versions["poi_index"] != other.table_versions["poi_index"]:
        names.append("poi_embeddings")  # it shows POIs that are live
    return all(_digest(spark, root, one, name) == _digest(spark, root, other, name) for name in names)


def append_release(spark: SparkSession, context: JobContext, *releases: Release) -> JobSummary:
    """Appends releases, stamped with the clock: the one moment at which the last of them becomes the current one."""
    release = releases[-1]
    summary = JobSummary(
        rows_out=1, notes={"release_id": release.release_id, "is_new": True, "day": str(release.day)}
    )
    if context.dry_run:
        return summary
    now = time.time_ns() // 1_000_000
    rows = [asdict(replace(each, published_ts_ms=now)) for each in releases]
    columns = RELEASES.column_names
    frame = local_frame(
        spark, [tuple(row[column] for column in columns) for row in rows], spark_schema(RELEASES)
    )
    root = context.settings.storage.root
    version = append_log(frame, "releases", root, run_id=context.run_id, job=context.job, day=release.day)
    summary.tables["releases"] = version
    LOGGER.info(
        "release %d shows the tables of %s, model %s", release.release_id, release.day, release.model_version
    )
    return summary


def _digest(spark: SparkSession, root: str, release: Release, name: str) -> str:
    rows = read_table(spark, root, name, version=release.table_versions[name])
    slots = read_table(spark, root, "poi_index", version=release.table_versions["poi_index"])
    return digest_table(keep_released(rows, slots, release, name), TABLES[name])


def _refuse_vectors_of_others(
    spark: SparkSession, root: str, versions: dict[str, int], *, day: date, model_version: str
) -> None:
    """Refuses a night whose model has made none of the vectors of a table that holds vectors."""
    for name in VECTOR_KEYS:
        rows = read_table(spark, root, name, version=versions[name]).where(F.col("day") <= F.lit(day))
        models = {row["model_version"] for row in rows.select("model_version").distinct().collect()}
        if models and model_version not in models:
            others = ", ".join(sorted(models))
            found = f"{name} holds vectors of model {others} only, the day's rows are of {model_version}"
            raise ReleaseSkewError(day=str(day), found=found)
