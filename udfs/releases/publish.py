"""Publishes an audited day by one commit of one row to `releases`, and rolls a release back in the same way.

Only the Delta versions that a passed audit looked at can be published. Publishing the same content again changes
nothing. A run that is repeated under its id also changes nothing, even after other releases. An older day than readers
see, or content that was rolled back, is published only with `--replace`. A rollback appends a row that points at the
older versions, so the log keeps the whole history; it first checks that their files exist. Run with
`python -m udfs publish --day D [--replace]`, `python -m udfs rollback [--to N]`, `python -m udfs releases`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from functools import reduce

from deltalake.exceptions import DeltaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import (
    AuditMissingError,
    ConflictingWriteError,
    DuplicateKeyError,
    ReleaseDamagedError,
    ReleaseOrderError,
    ReleaseSkewError,
)
from conf.releases import Release, find_current, find_previous, find_release, find_taken_back
from conf.tables import FEATURE_TABLES, RELEASES, TABLES
from etl.delta.contracts import digest_table, spark_schema
from etl.delta.erasure_plan import refuse_unfinished_erasure
from etl.delta.retention import missing_files
from etl.delta.storage import append_log, read_table, table_version
from etl.spark.session import local_frame, open_session
from udfs.releases.audit_record import Audit, audit_path, load_audit
from udfs.releases.reader import VECTOR_KEYS, keep_released
from udfs.releases.release_log import load_releases

LOGGER = logging.getLogger(__name__)


def run_publish(context: JobContext) -> JobSummary:
    """Publishes the audited tables of the day.

    Raises:
        ReleaseSkewError: the tables are not all from one model on one index.
        AuditMissingError: no passed audit looked at the tables as they are now.
        ReleaseOrderError: readers see a newer day, or this content was rolled back, and `--replace` was not given.
        ConflictingWriteError: another run published at the same moment.
        ErasureUnfinishedError: an erasure was begun and has not ended.
    """
    settings = context.settings
    root = settings.storage.root
    refuse_unfinished_erasure(settings.storage.artifacts)
    spark = open_session(settings, f"spacetime-gr publish {context.day}")
    releases = load_releases(spark, root)
    if (known := find_published(releases, context)) is not None:
        LOGGER.info("run %s has published release %d before; nothing to publish", context.run_id, known)
        return JobSummary(notes={"release_id": known, "is_new": False})
    versions = {name: table_version(spark, root, name) for name in FEATURE_TABLES}
    stamps = refuse_skew(spark, root, versions, day=context.day)
    audit = require_passed_audit(settings.storage.artifacts, versions, day=context.day)
    if stamps and (audit.model_version, audit.index_version) not in stamps:
        ((model_version, index_version),) = stamps
        mismatch = (
            f"the rows are by model {model_version} on index {index_version}, but the audit tells of model "
        )
        raise ReleaseSkewError(
            day=str(context.day), found=f"{mismatch}{audit.model_version} on index {audit.index_version}"
        )
    assert audit.model_version is not None, "a passed audit has found exactly one model"
    assert audit.index_version is not None, "and one index version"
    release = Release(
        # Two runs that publish at once choose the same number. `append_log` accepts one of them, so the
        # other run cannot become current over a release that it was never compared with.
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
    last = releases[-1] if releases else None
    # A release that repairs a damaged one is new, whatever the other one showed.
    is_shown = last is not None and has_same_stamps(last, release) and not is_damaged(spark, root, last)
    if is_shown and has_same_rows(spark, root, releases[-1], release):
        LOGGER.info("release %d already shows these rows; nothing to publish", releases[-1].release_id)
        return JobSummary(notes={"release_id": releases[-1].release_id, "is_new": False})
    if not context.options.replace:
        refuse_step_back(spark, root, releases, release)
    return append_release(spark, context, release)


def find_published(releases: Sequence[Release], context: JobContext) -> int | None:
    """Returns the release that this run has already published, if the day was not audited again since.

    A scheduler repeats a run that it believes lost. A day that was cleared and recomputed also keeps its run id, but
    it has another audit.
    """
    audit = load_audit(context.settings.storage.artifacts, context.day)
    for release in releases:
        if (
            release.run_id == context.run_id
            and release.rollback_of is None
            and release.day == context.day
            and audit is not None
            and audit.table_versions == release.table_versions
        ):
            return release.release_id
    return None


def refuse_step_back(spark: SparkSession, root: str, releases: Sequence[Release], release: Release) -> None:
    """Refuses to show readers an older day, or rows that were rolled back.

    Raises:
        ReleaseOrderError: the release would show one of these.
    """
    current = find_current(releases)
    if current is not None and release.day < current.day:
        problem = f"readers see release {current.release_id} of {current.day}, a newer day"
        raise ReleaseOrderError(day=str(release.day), problem=problem)
    for taken_back in find_taken_back(releases):
        if not has_same_stamps(taken_back, release):
            continue
        if taken_back.withdrawn or is_damaged(spark, root, taken_back):
            problem = (
                f"release {taken_back.release_id} of this day and model was rolled back and "
                f"{'has been withdrawn' if taken_back.withdrawn else 'has lost files'}, so its rows can no longer be "
                "compared with these"
            )
            raise ReleaseOrderError(day=str(release.day), problem=problem)
        if has_same_rows(spark, root, taken_back, release):
            problem = f"these rows are those of release {taken_back.release_id}, which was rolled back"
            raise ReleaseOrderError(day=str(release.day), problem=problem)


def run_rollback(context: JobContext) -> JobSummary:
    """Goes back to the release before the current one, or to `--to N`, by publishing its versions again.

    Raises:
        NoReleaseError: there is no such release.
        ReleaseDamagedError: files of the release to go back to are missing.
        ConflictingWriteError: another run published at the same moment.
        ErasureUnfinishedError: an erasure was begun and has not ended.
    """
    root = context.settings.storage.root
    refuse_unfinished_erasure(context.settings.storage.artifacts)
    spark = open_session(context.settings, "spacetime-gr rollback")
    releases = load_releases(spark, root)
    current = find_release(releases, root)
    for release in releases:
        if release.run_id == context.run_id and release.rollback_of is not None:
            LOGGER.info("run %s has rolled back before: release %d", context.run_id, release.release_id)
            return JobSummary(notes={"release_id": release.release_id, "is_new": False})
    number = context.options.to
    target = find_previous(releases, root) if number is None else find_release(releases, root, number)
    if target.has_content_of(current):
        LOGGER.info("release %d already shows what release %d does", current.release_id, target.release_id)
        return JobSummary(notes={"release_id": current.release_id, "is_new": False})
    refuse_damaged(spark, root, target)
    release = replace(
        target,
        release_id=max(release.release_id for release in releases) + 1,
        rollback_of=current.release_id,
        run_id=context.run_id,
    )
    return append_release(spark, context, release)


def refuse_damaged(spark: SparkSession, root: str, release: Release) -> None:
    """Checks that every file of the table versions that a release shows exists in full length.

    Raises:
        ReleaseDamagedError: a file is missing or cut.
    """
    for name in (*FEATURE_TABLES, "poi_index"):
        version = release.table_versions[name]
        try:
            missing = missing_files(spark, root, name, version)
        except DeltaError as error:
            raise ReleaseDamagedError(
                release_id=release.release_id, table=name, version=version, problem=str(error).splitlines()[0]
            ) from error
        if missing:
            raise ReleaseDamagedError(
                release_id=release.release_id, table=name, version=version,
                problem=f"{len(missing)} files are gone or cut, for example {missing[0]}",
            )  # fmt: skip


def is_damaged(spark: SparkSession, root: str, release: Release) -> bool:
    """Tells whether a file that a release shows is missing or cut."""
    try:
        refuse_damaged(spark, root, release)
    except ReleaseDamagedError:
        return True
    return False


def refuse_skew(
    spark: SparkSession, root: str, versions: dict[str, int], *, day: date
) -> set[tuple[str, int]]:
    """Checks that the day's rows of all feature tables, and the vectors of earlier days, are of one model.

    Returns:
        The pair of model and index version of the day's rows; empty if there is no row.

    Raises:
        ReleaseSkewError: they are of several models.
    """
    stamps: dict[tuple[str, int], set[str]] = {}
    stamped_rows = [
        read_table(spark, root, name, version=versions[name])
        .where(F.col("day") == F.lit(day))
        .select(F.lit(name).alias("table"), "model_version", "index_version")
        for name in FEATURE_TABLES
    ]
    for row in reduce(DataFrame.unionAll, stamped_rows).distinct().collect():
        stamps.setdefault((row["model_version"], row["index_version"]), set()).add(row["table"])
    if len(stamps) > 1:
        mixture = "; ".join(
            f"{', '.join(sorted(names))} by model {model} on index {index}"
            for (model, index), names in sorted(stamps.items())
        )
        raise ReleaseSkewError(day=str(day), found=mixture)
    for model_version, _ in stamps:
        _refuse_foreign_vectors(spark, root, versions, day=day, model_version=model_version)
    return set(stamps)


def require_passed_audit(artifacts: str, versions: dict[str, int], *, day: date) -> Audit:
    """Returns the audit of the day, if it passed and looked at these versions of the feature tables.

    Raises:
        AuditMissingError: there is no such audit.
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
    """Tells whether readers see the same rows through two releases, even at different Delta versions.

    A run that was cleared and repeated writes equal rows under new versions. Releasing it twice would announce a
    change to readers although nothing changed.
    """
    if not has_same_stamps(one, other):
        return False
    names = [name for name in FEATURE_TABLES if one.table_versions[name] != other.table_versions[name]]
    if one.table_versions["poi_index"] != other.table_versions["poi_index"]:
        names.append("poi_embeddings")  # it shows POIs that are live
    return all(_digest(spark, root, one, name) == _digest(spark, root, other, name) for name in names)


def has_same_stamps(one: Release, other: Release) -> bool:
    """Tells whether two releases are of one day, by one model on one index."""
    stamps = [(release.day, release.model_version, release.index_version) for release in (one, other)]
    return stamps[0] == stamps[1]


def append_release(spark: SparkSession, context: JobContext, *releases: Release) -> JobSummary:
    """Appends releases with a timestamp, in one commit; the last of them becomes the current one.

    Raises:
        ConflictingWriteError: another run has taken the number, so what this one compared with is no longer current.
    """
    release = releases[-1]
    summary = JobSummary(
        rows_out=1, notes={"release_id": release.release_id, "is_new": True, "day": str(release.day)}
    )
    if context.dry_run:
        return summary
    now = time.time_ns() // 1_000_000
    rows = [asdict(replace(appended, published_ts_ms=now)) for appended in releases]
    columns = RELEASES.column_names
    frame = local_frame(
        spark, [tuple(row[column] for column in columns) for row in rows], spark_schema(RELEASES)
    )
    root = context.settings.storage.root
    try:
        version = append_log(frame, "releases", root, run_id=context.run_id, job=context.job, day=release.day)
    except DuplicateKeyError as error:
        raise ConflictingWriteError(
            table="releases",
            day=str(release.day),
            cause=f"release {release.release_id} was published meanwhile",
        ) from error
    summary.tables["releases"] = version
    LOGGER.info(
        "release %d shows the tables of %s, model %s", release.release_id, release.day, release.model_version
    )
    return summary


def _digest(spark: SparkSession, root: str, release: Release, name: str) -> str:
    rows = read_table(spark, root, name, version=release.table_versions[name])
    slots = read_table(spark, root, "poi_index", version=release.table_versions["poi_index"])
    return digest_table(keep_released(rows, slots, release, name), TABLES[name])


def _refuse_foreign_vectors(
    spark: SparkSession, root: str, versions: dict[str, int], *, day: date, model_version: str
) -> None:
    """Refuses a day whose model computed none of the vectors in one of the vector tables."""
    for name in VECTOR_KEYS:
        rows = read_table(spark, root, name, version=versions[name]).where(F.col("day") <= F.lit(day))
        models = {row["model_version"] for row in rows.select("model_version").distinct().collect()}
        if models and model_version not in models:
            vector_models = ", ".join(sorted(models))
            problem = (
                f"{name} holds vectors of model {vector_models} only, the day's rows are of {model_version}"
            )
            raise ReleaseSkewError(day=str(day), found=problem)
