"""Releases as rows of the log table `releases`: which one is current, which one a rollback goes back to.

Reads through Spark if a session is given, else through the `deltalake` library; nothing of the model is
imported, so that a reader of features stays light.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from pyspark.sql import SparkSession

from conf.errors import MissingInputError, NoReleaseError, ReleaseWithdrawnError
from conf.settings import CATALOG_PREFIX
from etl.delta.storage import read_table, table_exists, table_location


@dataclass(frozen=True)
class Release:
    """One row of `releases`; see its contract."""

    release_id: int
    day: date
    published_ts_ms: int
    table_versions: dict[str, int]
    model_version: str
    index_version: int
    rollback_of: int | None
    run_id: str
    is_simulated: bool
    withdrawn: str = ""
    """Why it can no longer be read; empty if it can. Kept in table `withdrawals`, as the log never changes a row."""

    def has_content_of(self, other: "Release") -> bool:
        """Tells whether readers see the same rows through both releases, by versions alone."""
        mine = (self.day, self.table_versions, self.model_version, self.index_version)
        return mine == (other.day, other.table_versions, other.model_version, other.index_version)


def load_releases(spark: SparkSession | None, root: str) -> list[Release]:
    """Reads all releases, oldest first; empty if none was ever published."""
    reasons = {row["release_id"]: row["reason"] for row in _load_log(spark, root, "withdrawals")}
    releases = [
        Release(**row, withdrawn=reasons.get(row["release_id"], ""))
        for row in _load_log(spark, root, "releases")
    ]
    return sorted(releases, key=lambda release: release.release_id)


def find_release(releases: Sequence[Release], root: str, release_id: int | None = None) -> Release:
    """Returns the current release, or the one asked for.

    Raises:
        NoReleaseError: there is none, or none of this number.
        ReleaseWithdrawnError: the one asked for can no longer be read.
    """
    readable = [release for release in releases if not release.withdrawn]
    if readable and release_id is None:
        return readable[-1]
    for release in releases:
        if release.release_id == release_id:
            if release.withdrawn:
                raise ReleaseWithdrawnError(root=root, release_id=release_id, reason=release.withdrawn)
            return release
    wanted = "the current release" if release_id is None else f"release {release_id}"
    raise NoReleaseError(root=root, wanted=wanted, known=[release.release_id for release in releases])


def find_current(releases: Sequence[Release]) -> Release | None:
    """Returns what readers see: the last release that was not withdrawn."""
    return next((release for release in reversed(releases) if not release.withdrawn), None)


def find_taken_back(releases: Sequence[Release]) -> list[Release]:
    """Returns the releases that a rollback took back, as they were first published.

    One that was published again since, by a rollback to it or by `publish --replace`, is not among them.
    """
    by_id = {release.release_id: release for release in releases}
    taken: dict[int, Release] = {}
    for release in releases:
        taken.pop(_origin(release, releases).release_id, None)
        if release.rollback_of is not None:
            first = _origin(by_id[release.rollback_of], releases)
            taken[first.release_id] = first
    return list(taken.values())


def find_previous(releases: Sequence[Release], root: str) -> Release:
    """Returns the release that a rollback goes to: the last readable one before the current that was not taken back.

    Raises:
        NoReleaseError: there is nothing to go back to.
    """
    current = _origin(find_release(releases, root), releases)
    taken_back = {release.release_id for release in find_taken_back(releases)}
    earlier = [
        release
        for release in releases
        if release.rollback_of is None
        and release.release_id < current.release_id
        and release.release_id not in taken_back
        and not release.withdrawn
    ]
    if not earlier:
        known = [release.release_id for release in releases]
        raise NoReleaseError(
            root=root, wanted=f"a release before {current.release_id} to roll back to", known=known
        )
    return earlier[-1]


def read_arrow(
    root: str, name: str, *, version: int | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Reads a table without Spark.

    Raises:
        MissingInputError: the table has never been written, or lies in a metastore that only Spark can open.
    """
    location = table_location(root, name)
    if root.startswith(CATALOG_PREFIX):
        raise MissingInputError(
            what=f"table {name}",
            where=location,
            needed_by="A reader without Spark",
            remedy="A metastore needs Spark: pass a session, or give the folder of the tables as root.",
        )
    try:
        return DeltaTable(location, version=version).to_pyarrow_table(
            columns=list(columns) if columns else None
        )
    except TableNotFoundError as error:
        raise MissingInputError(
            what=f"table {name}",
            where=location,
            needed_by="A reader without Spark",
            remedy="Check the table root.",
        ) from error


def _load_log(spark: SparkSession | None, root: str, name: str) -> list[dict[str, Any]]:
    """Reads all rows of a log table; none if it was never written."""
    if spark is not None:
        if not table_exists(spark, root, name):
            return []
        return [row.asDict() for row in read_table(spark, root, name).collect()]
    try:
        rows: list[dict[str, Any]] = read_arrow(root, name).to_pylist(maps_as_pydicts="strict")
    except MissingInputError:
        return []
    return rows


def _origin(release: Release, releases: Sequence[Release]) -> Release:
    """Returns the first release of this content: itself, or the one that a rollback went back to."""
    return next(
        first for first in releases if first.release_id == release.release_id
        or (first.rollback_of is None and first.has_content_of(release))
    )  # fmt: skip
