"""Removes users from everything that is kept: rows, old versions, logs and statistics of tables, reports and artefacts.

    python -m udfs erase --user ID [--user ID ...] | --users FILE    (one id a line)

Every table of the contracts that holds users loses their rows; then its present version becomes its first one, since
Delta's old files and its log would go on telling of them (`etl/retention.py`). The current release and the one before
it are published anew with the new versions, so readers see the same rows but for the erased; what older releases pinned
is gone, so they are withdrawn. In the end everything is searched again, and what was found before and after is kept as
`{storage.artifacts}/erasures/RUN_ID.json`, without the ids. A run that was killed is simply repeated; run it while no
other job writes. What models have learnt stays in their weights: the record names the trainings that read the rows.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from conf.cli import JobContext, JobSummary
from conf.errors import (
    AuditMissingError,
    ErasureIncompleteError,
    MissingInputError,
    NoReleaseError,
    SettingsError,
)
from etl import erasure, retention
from etl.session import open_session
from etl.storage import table_exists, table_version
from udfs.audit_record import audit_path
from udfs.erase_files import erase_files, find_files
from udfs.publish import append_release, has_same_rows
from udfs.release_log import Release, find_previous, find_release, load_releases
from udfs.withdrawals import pinned_before, withdraw

LOGGER = logging.getLogger(__name__)
Places = dict[str, erasure.Found]
"""By table, where it tells of the users."""


def run_erase(context: JobContext) -> JobSummary:
    """Erases users and proves it.

    Raises:
        SettingsError: no user was named.
        AuditMissingError: rows of the current release were changed and not published, so it cannot be carried over.
        ErasureIncompleteError: something that is kept still tells of them.
    """
    users = read_users(context)
    settings = context.settings
    spark = open_session(settings, "spacetime-gr erase")
    frame = erasure.as_frame(spark, users).localCheckpoint()
    folders = kept_folders(context)
    before, files = search(spark, settings.storage.root, frame), find_files(folders, users)
    told = {"tables": {name: asdict(found) for name, found in before.items()}, "files": len(files)}
    touched = [name for name, found in before.items() if not found.is_clean]
    summary = JobSummary(rows_in=len(users), rows_dropped=sum(found.rows for found in before.values()))
    summary.notes |= {"users": len(users), "before": told}
    if context.dry_run:
        return summary
    summary.tables = erase_tables(spark, context, touched, frame, summary)
    erase_files(files, users)
    after, left = search(spark, settings.storage.root, frame), find_files(folders, users)
    places = [f"table {name} ({found})" for name, found in after.items() if not found.is_clean]
    places += [str(path) for path in (*left.explanations, *left.texts, *left.others)]
    summary.notes |= {
        "after": {"tables": sum(not found.is_clean for found in after.values()), "files": len(left)}
    }
    summary.notes["trainings"] = trainings_with(context, touched)
    record = save_record(context, summary, places)
    if places:
        raise ErasureIncompleteError(run_id=context.run_id, places=places, record=record)
    return summary


def read_users(context: JobContext) -> list[str]:
    """Returns the ids given on the command line and in the file, each once."""
    users, path = list(context.options.user), context.options.users
    if path is not None:
        if not path.is_file():
            raise MissingInputError(what="the list of users", where=str(path), needed_by="The erasure",
                                    remedy="Check --users; it is a text with one id a line.")  # fmt: skip
        users += path.read_text().splitlines()
    named = sorted({user.strip() for user in users} - {""})
    if not named:
        raise SettingsError(where="the command line", key="--user", problem="no user is named")
    return named


def search(spark: SparkSession, root: str, users: DataFrame) -> Places:
    """Looks for the users in every table that can hold one and has been written."""
    names = [name for name in erasure.user_tables() if table_exists(spark, root, name)]
    return {name: erasure.find_users(spark, root, name, users) for name in names}


def erase_tables(
    spark: SparkSession, context: JobContext, names: Sequence[str], users: DataFrame, summary: JobSummary
) -> dict[str, int]:
    """Erases the users from tables, carries the releases over, and only then deletes what the old versions need."""
    root = context.settings.storage.root
    releases = load_releases(spark, root)
    carried = releases_to_carry(spark, context, releases, names)
    versions: dict[str, int] = {}
    for name in names:
        erasure.delete_users(spark, root, name, users)
        versions[name] = retention.start_history_anew(spark, root, name)
        LOGGER.info("users are erased from %s; its history starts with version %d", name, versions[name])
    if names and carried:
        first = max(release.release_id for release in releases) + 1
        moved = [
            replace(
                repin(release, versions), release_id=first + number, rollback_of=None, run_id=context.run_id
            )
            for number, release in enumerate(carried)
        ]
        summary.notes["release_id"] = append_release(spark, context, *moved).notes["release_id"]
        reason = f"users were erased from {', '.join(names)}; release {moved[-1].release_id} shows the rest"
        summary.notes["withdrawn"] = withdraw(spark, context, pinned_before(releases, versions), reason)
    for name in names:
        gone = retention.forget_history(spark, root, name)
        LOGGER.info("%d old files of %s are deleted", gone, name)
    return versions


def releases_to_carry(
    spark: SparkSession, context: JobContext, releases: Sequence[Release], names: Sequence[str]
) -> list[Release]:
    """Returns the release that a rollback would go to, if the newest versions still hold its rows, and the current one.

    Raises:
        AuditMissingError: the newest versions show other rows than the current release.
    """
    root = context.settings.storage.root
    if not releases:
        return []
    current = find_release(releases, root)
    newest = {name: table_version(spark, root, name) for name in names}

    def can_be_carried(release: Release) -> bool:
        return has_same_rows(spark, root, release, repin(release, newest))

    if not can_be_carried(current):
        raise AuditMissingError(
            day=str(current.day),
            record=audit_path(context.settings.storage.artifacts, str(current.day)),
            problem=f"they have changed since release {current.release_id}, whose versions an erasure deletes",
        )
    try:
        previous = find_previous(releases, root)
    except NoReleaseError:
        return [current]
    return [previous, current] if can_be_carried(previous) else [current]


def repin(release: Release, versions: Mapping[str, int]) -> Release:
    """Returns the release with other versions of the tables that it pins."""
    pinned = {name: versions.get(name, version) for name, version in release.table_versions.items()}
    return replace(release, table_versions=pinned)


def kept_folders(context: JobContext) -> list[Path]:
    """Returns the folders beside the tables that are searched: artefacts, and those of runs where they lie in files."""
    settings = context.settings
    return [
        Path(name)
        for name in (settings.storage.artifacts, settings.mlflow.artifact_root)
        if "://" not in name
    ]


def trainings_with(context: JobContext, names: Sequence[str]) -> list[str]:
    """Returns the days of the trainings that pinned a table in which the users were found."""
    folder = Path(context.settings.storage.artifacts) / "training"
    return [
        path.parent.name
        for path in sorted(folder.glob("*/training.json"))
        if set(json.loads(path.read_text())["pins"]) & set(names)
    ]


def save_record(context: JobContext, summary: JobSummary, places: Sequence[str]) -> Path:
    """Writes what was found before and after; it names no user."""
    path = Path(context.settings.storage.artifacts) / "erasures" / f"{context.run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "run_id": context.run_id,
        "is_complete": not places,
        "versions": summary.tables,
        **summary.notes,
    }
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(unfinished, path)
    return path
