"""The only reader of releases: their log, the current release, and the release that a rollback goes back to.

It reads the tables `releases` and `withdrawals` through Arrow, so that the report, readers of features and Spark jobs
see the same rows in the same way. Only a root that is a metastore needs Spark (`udfs/releases/release_log.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from conf.errors import MissingInputError, NoReleaseError, ReleaseWithdrawnError
from conf.settings import CATALOG_PREFIX


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

    @property
    def published(self) -> datetime:
        """The time at which it became visible, UTC."""
        return datetime.fromtimestamp(self.published_ts_ms / 1000, tz=UTC)

    def has_content_of(self, other: "Release") -> bool:
        """Tells whether readers see the same rows through both releases; compares versions only."""
        mine = (self.day, self.table_versions, self.model_version, self.index_version)
        return mine == (other.day, other.table_versions, other.model_version, other.index_version)


def load_releases(root: str) -> list[Release]:
    """Reads all releases, oldest first; empty if none was ever published.

    Raises:
        MissingInputError: the root is a metastore, which only Spark can open.
    """
    logs: list[list[dict[str, Any]]] = []
    for name in ("releases", "withdrawals"):
        location = table_location(root, name)
        is_written = DeltaTable.is_deltatable(location)
        logs.append(read_table(root, name).to_pylist(maps_as_pydicts="strict") if is_written else [])
    return join_log(*logs)


def join_log(
    releases: Iterable[Mapping[str, Any]], withdrawals: Iterable[Mapping[str, Any]]
) -> list[Release]:
    """Builds the releases from the rows of the two log tables, oldest first."""
    reasons = {row["release_id"]: row["reason"] for row in withdrawals}
    joined = [Release(**row, withdrawn=reasons.get(row["release_id"], "")) for row in releases]
    return sorted(joined, key=lambda release: release.release_id)


def find_release(releases: Sequence[Release], root: str, release_id: int | None = None) -> Release:
    """Returns the current release, or the one with the given number.

    Raises:
        NoReleaseError: there is none, or none with this number.
        ReleaseWithdrawnError: the release with this number can no longer be read.
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


def find_release_of_day(releases: Sequence[Release], root: str, day: date) -> Release:
    """Returns the last readable release of a day.

    Raises:
        NoReleaseError: the day has no release.
        ReleaseWithdrawnError: the day had releases, but none can be read any more.
    """
    of_day = [release for release in releases if release.day == day]
    if not of_day:
        known = [release.release_id for release in releases]
        raise NoReleaseError(root=root, wanted=f"a release of {day}", known=known)
    readable = [release for release in of_day if not release.withdrawn]
    if not readable:
        raise ReleaseWithdrawnError(root=root, release_id=of_day[-1].release_id, reason=of_day[-1].withdrawn)
    return readable[-1]


def find_before(releases: Sequence[Release], release: Release) -> Release | None:
    """Returns the last readable release before another one; None if there is none."""
    earlier = [each for each in releases if each.release_id < release.release_id]
    return find_current(earlier)


def find_current(releases: Sequence[Release]) -> Release | None:
    """Returns the release that readers see: the last one that was not withdrawn."""
    return next((release for release in reversed(releases) if not release.withdrawn), None)


def find_taken_back(releases: Sequence[Release]) -> list[Release]:
    """Returns the releases that a rollback took back, as they were first published.

    A release that was published again since, by a rollback to it or by `publish --replace`, is not among them.
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
    """Returns the target of a rollback: the last readable release before the current one that was not taken back.

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


def read_table(
    root: str, name: str, *, version: int | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Reads a table without Spark.

    Raises:
        MissingInputError: the table has never been written, or lies in a metastore that only Spark can open.
    """
    location = table_location(root, name)
    try:
        table = DeltaTable(location, version=version)
    except TableNotFoundError as error:
        raise MissingInputError(
            what=f"table {name}",
            where=location,
            needed_by="A reader without Spark",
            remedy="Check the table root.",
        ) from error
    return table.to_pyarrow_table(columns=list(columns) if columns else None)


def table_location(root: str, name: str) -> str:
    """Returns the folder or URI of a table.

    Raises:
        MissingInputError: the root is a metastore.
    """
    if root.startswith(CATALOG_PREFIX):
        raise MissingInputError(
            what=f"table {name}",
            where=root,
            needed_by="A reader without Spark",
            remedy="A metastore needs Spark: pass a session, or give the folder of the tables as storage.root.",
        )
    return f"{root.rstrip('/') if '://' in root else Path(root).absolute()}/{name}"


def _origin(release: Release, releases: Sequence[Release]) -> Release:
    """Returns the first release with this content: itself, or the one that a rollback went back to."""
    return next(
        first for first in releases if first.release_id == release.release_id
        or (first.rollback_of is None and first.has_content_of(release))
    )  # fmt: skip
