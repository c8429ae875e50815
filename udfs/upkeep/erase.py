"""Removes users from all stored data: tables with all their versions, quarantine, audits, reports, artefacts.

    python -m udfs erase --user ID [--user ID] [--users FILE]

The job deletes their rows from every table that names them. Then a version without them becomes the table's first one,
since Delta's old files and its log would still hold the ids (`etl/delta/retention.py`). The current release and the one
before it are published again from the table versions that they showed, so readers see the same rows except the erased
ones. Older releases are withdrawn, since their versions are deleted. Finally all data is searched again. The counts
before and after are kept in `{storage.artifacts}/erasures/RUN_ID.json`, without the ids.

The plan is written first (`etl/delta/erasure_plan.py`): the same command finishes a run that was killed, and the record
covers all attempts together. The digests of the ids stay in `erased_users`, so that an export which still holds the
users does not bring them back. Model weights are not changed: the record names the trainings that read the rows, and a
file in the folder of each training says so.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from conf.cli import JobContext, JobSummary
from conf.errors import (
    CorruptInputError,
    ErasureIncompleteError,
    MissingInputError,
    NoReleaseError,
    SettingsError,
)
from conf.files import ERASURES_FILE, read_json, write_json
from conf.releases import Release, find_current, find_previous
from conf.tables import ERASED_USERS, FEATURE_TABLES, TABLES
from etl.delta import erasure, retention
from etl.delta.contracts import spark_schema
from etl.delta.erased_users import clean_text, digest_user
from etl.delta.erasure_plan import Plan, end_plan, load_plan, save_plan
from etl.delta.storage import append_log, read_table, table_exists, table_version
from etl.spark.session import local_frame, open_session
from udfs.releases.publish import append_release
from udfs.releases.release_log import load_releases
from udfs.releases.withdrawals import pinned_before, withdraw
from udfs.upkeep.erase_files import FoundFiles, erase_files, find_files

LOGGER = logging.getLogger(__name__)
Places = dict[str, erasure.Found]
"""By table, the places that hold the users."""
CARRIED = tuple(name for name in FEATURE_TABLES if "user_id" in TABLES[name].column_names)
"""Tables of which a carried release keeps the version that it shows; of its input tables it pins the newest."""


def run_erase(context: JobContext) -> JobSummary:
    """Erases users and verifies that nothing is left.

    Raises:
        SettingsError: no user was named.
        ErasureUnfinishedError: an erasure of other users was begun and has not ended.
        ErasureIncompleteError: a table or file still holds them.
    """
    users, settings = read_users(context), context.settings
    root, artifacts = settings.storage.root, settings.storage.artifacts
    plan = load_plan(artifacts, [digest_user(user) for user in users], run_id=context.run_id)
    context = replace(context, run_id=plan.run_id)
    spark = open_session(settings, "spacetime-gr erase")
    frame = erasure.as_frame(spark, users).localCheckpoint()
    folders = kept_folders(context)
    extend_plan(spark, root, plan, search(spark, root, frame), find_files(folders, users))
    summary = JobSummary(
        rows_in=len(users), rows_dropped=sum(counts["rows"] for counts in plan.before.values())
    )
    summary.notes |= {
        "users": len(users),
        "not_found": report_unknown(users, plan),
        "before": {"tables": plan.before, "files": plan.files},
        "attempts": plan.attempts,
    }
    if context.dry_run:
        return summary
    save_plan(artifacts, plan)
    # Digests are stored before a row is deleted: no delivery after the erasure brings the users back.
    keep_digests(spark, context, users)
    erase_tables(spark, context, plan, frame)
    publish_carried(spark, context, plan)
    # Old versions are deleted only now: until `publish_carried` is done the current release still pins them.
    for name in plan.tables:
        num_deleted = retention.forget_history(spark, root, name, plan.starts[name])
        LOGGER.info("%d old files of %s are deleted", num_deleted, name)
    files = find_files(folders, users)
    erase_files(files, users)
    summary.tables = {name: plan.versions[name][str(plan.latest[name])] for name in plan.tables}
    if plan.releases:
        summary.notes["release_id"] = plan.releases[-1]["release_id"]
        summary.notes["withdrawn"] = plan.withdrawn
    after, left = search(spark, root, frame), find_files(folders, users)
    places = [f"table {name} ({hits.describe()})" for name, hits in after.items() if not hits.is_clean]
    places += [str(path) for path in (*left.explanations, *left.samples, *left.texts, *left.others)]
    summary.notes |= {
        "after": {"tables": sum(not hits.is_clean for hits in after.values()), "files": len(left)}
    }
    summary.notes["trainings"] = mark_trainings(context, plan)
    record = Path(artifacts) / "erasures" / f"{plan.run_id}.json"
    content = {"run_id": plan.run_id, "is_complete": not places, "versions": summary.tables, **summary.notes}
    write_json(record, content)
    # The plan is removed last: after a kill before the record is complete, the next attempt still has the plan.
    end_plan(artifacts)
    if places:
        raise ErasureIncompleteError(run_id=plan.run_id, places=places, record=record)
    return summary


def read_users(context: JobContext) -> list[str]:
    """Returns the distinct normalised ids from the command line and the file.

    Raises:
        MissingInputError: there is no such file.
        CorruptInputError: the file is not UTF-8 text.
        SettingsError: no user was named.
    """
    users, path = list(context.options.user), context.options.users
    if path is not None:
        if not path.is_file():
            raise MissingInputError(what="the list of users", where=str(path), needed_by="The erasure",
                                    remedy="Check --users; it is a text with one id a line.")  # fmt: skip
        try:
            # Editors may put a byte order mark before the first id. `splitlines` would split at more than line ends.
            users += path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise CorruptInputError(
                path=str(path), expected="a text in UTF-8 with one id a line", cause=str(error)
            ) from error
    user_ids = sorted({clean_text(user) for user in users} - {""})
    if not user_ids:
        raise SettingsError(where="the command line", key="--user", problem="no user is named")
    return user_ids


def search(spark: SparkSession, root: str, users: DataFrame) -> Places:
    """Searches for the users in every existing table that can hold one."""
    names = [name for name in erasure.user_tables() if table_exists(spark, root, name)]
    return {name: erasure.find_users(spark, root, name, users) for name in names}


def extend_plan(spark: SparkSession, root: str, plan: Plan, tables: Places, files: FoundFiles) -> None:
    """Adds the current findings to the plan; counts of an earlier attempt stay unchanged."""
    plan.attempts += 1
    plan.files = max(plan.files, len(files))
    plan.found = sorted({*plan.found, *(user for places in tables.values() for user in places.users)})
    for name, places in tables.items():
        plan.before.setdefault(name, places.describe())
        if not places.is_clean and name not in plan.tables:
            plan.tables.append(name)
    for name in plan.tables:
        plan.latest.setdefault(name, table_version(spark, root, name))
    if plan.attempts == 1 and plan.tables:
        plan.carried = [asdict(release) for release in releases_to_carry(spark, root)]


def report_unknown(users: Sequence[str], plan: Plan) -> int:
    """Logs the users that no table holds, and returns their number; stored records have counts only."""
    unknown = [user for user in users if digest_user(user) not in plan.found]
    for user in unknown:
        LOGGER.warning(
            "no table holds user %r: ids are compared letter by letter, without blanks around them", user
        )
    return len(unknown)


def releases_to_carry(spark: SparkSession, root: str) -> list[Release]:
    """Returns the release that a rollback would go to, if there is one, and the current one."""
    releases = load_releases(spark, root)
    current = find_current(releases)
    if current is None:
        return []
    try:
        return [find_previous(releases, root), current]
    except NoReleaseError:
        return [current]


def keep_digests(spark: SparkSession, context: JobContext, users: Sequence[str]) -> None:
    """Stores the digests of users that are not stored yet, so that no later delivery brings them back."""
    root = context.settings.storage.root
    stored = set()
    if table_exists(spark, root, ERASED_USERS.name):
        stored = {row["user_digest"] for row in read_table(spark, root, ERASED_USERS.name).collect()}
    new = sorted({digest_user(user) for user in users} - stored)
    if new:
        now = time.time_ns() // 1_000_000
        rows = [(digest, now, context.run_id) for digest in new]
        frame = local_frame(spark, rows, spark_schema(ERASED_USERS))
        day = datetime.now(UTC).date()
        append_log(frame, ERASED_USERS.name, root, run_id=context.run_id, job=context.job, day=day)


def erase_tables(spark: SparkSession, context: JobContext, plan: Plan, users: DataFrame) -> None:
    """Erases the users from every table of the plan, the versions that carried releases show included."""
    root = context.settings.storage.root
    for name in plan.tables:
        if name in plan.starts:
            continue
        latest = plan.latest[name]
        # Each version without the users is written before the new history starts, since its commit names what it
        # removes. Afterwards the clean versions are shown once more, and those commits name no user.
        clean: dict[int, int] = {}
        for version in (*shown_versions(plan, name), latest):
            if version != table_version(spark, root, name):
                retention.show_version(spark, root, name, version)
            erasure.delete_users(spark, root, name, users)
            clean[version] = table_version(spark, root, name)
        start = retention.restart_history(spark, root, name)
        shown = {
            version: retention.show_version(spark, root, name, clean[version])
            for version in clean
            if version != latest
        }
        # The latest is shown last, since readers that name no version read the table's last commit.
        shown[latest] = retention.show_version(spark, root, name, start) if shown else start
        plan.versions[name] = {str(version): shown_as for version, shown_as in shown.items()}
        plan.starts[name] = start
        save_plan(context.settings.storage.artifacts, plan)
        LOGGER.info("users are erased from %s; its history starts with version %d", name, start)


def shown_versions(plan: Plan, name: str) -> list[int]:
    """Returns the versions of a table that carried releases show and that are not the latest one, oldest first."""
    shown = {release["table_versions"][name] for release in plan.carried} if name in CARRIED else set()
    return sorted(shown - {plan.latest[name]})


def publish_carried(spark: SparkSession, context: JobContext, plan: Plan) -> None:
    """Publishes the carried releases with the versions that show them now, and withdraws those that pin old ones."""
    if not plan.tables or not plan.carried:
        return
    root = context.settings.storage.root
    releases = load_releases(spark, root)
    planned = [load_release(row) for row in plan.releases]
    known = {release.release_id: release for release in releases}
    is_published = all(
        release.release_id in known and release.has_content_of(known[release.release_id])
        for release in planned
    )
    if not planned or not is_published:
        first = max(release.release_id for release in releases) + 1
        planned = [
            repin(load_release(row), plan, release_id=first + number)
            for number, row in enumerate(plan.carried)
        ]
        plan.releases = [asdict(release) for release in planned]
        save_plan(context.settings.storage.artifacts, plan)
        append_release(spark, context, *planned)
    reason = (
        f"users were erased from {', '.join(plan.tables)}; release {planned[-1].release_id} shows the rest"
    )
    plan.withdrawn = sorted(
        {*plan.withdrawn, *withdraw(spark, context, pinned_before(releases, plan.starts), reason)}
    )
    save_plan(context.settings.storage.artifacts, plan)


def load_release(row: Mapping[str, Any]) -> Release:
    """Builds a release from a row of a plan."""
    return Release(**{**row, "day": date.fromisoformat(str(row["day"]))})


def repin(release: Release, plan: Plan, *, release_id: int) -> Release:
    """Returns the release under a new number, with the versions that show its rows now."""
    pinned = dict(release.table_versions)
    for name in plan.tables:
        if name in pinned:
            shown = plan.versions[name]
            pinned[name] = shown.get(str(pinned[name]), shown[str(plan.latest[name])])
    return replace(
        release, release_id=release_id, table_versions=pinned, rollback_of=None, run_id=plan.run_id
    )


def kept_folders(context: JobContext) -> list[Path]:
    """Returns the folders that are searched besides the tables: artefacts, and MLflow artefacts kept in files."""
    settings = context.settings
    return [
        Path(name)
        for name in (settings.storage.artifacts, settings.mlflow.artifact_root)
        if "://" not in name
    ]


def mark_trainings(context: JobContext, plan: Plan) -> list[str]:
    """Marks the trainings that pinned a table that held the users, and returns their days."""
    folder, days = Path(context.settings.storage.artifacts) / "training", []
    for path in sorted(folder.glob("*/training.json")):
        try:
            pins = read_json(path, expected="the record of a training")["pins"]
        except (CorruptInputError, KeyError) as error:
            # Everything else of the erasure is done; what the training read is not known, so it counts as affected.
            LOGGER.warning(
                "%s is damaged, so the training counts as one that read the users: %s", path, error
            )
            pins = {name: {"version": None} for name in plan.tables}
        versions = {name: pins[name]["version"] for name in sorted(set(pins) & set(plan.tables))}
        if versions:
            mark = path.with_name(ERASURES_FILE)
            earlier = read_json(mark, expected="a list of erasures") if mark.is_file() else {}
            write_json(mark, {**earlier, plan.run_id: {"versions": versions, "users": len(plan.users)}})
            days.append(path.parent.name)
    return days
