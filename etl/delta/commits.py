"""The commits of a table: the days that it holds, the source versions of each day, and the stale days.

A day of `cleaned_actions` also depends on the days before it (redelivered ids, homes), a day of `action_sequences` on
all days up to it. So the metadata of every commit hold the versions that it has read. A day is stale if one of its
source days has been committed since: after a correction or a backfill of an older day, or after a kill between the two.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from etl.delta import storage

NEVER = -1
"""Version of a table that was not there."""
SOURCES = {
    "cleaned_actions": {"cleaned_actions": "before"},
    "action_sequences": {"cleaned_actions": "up to", "raw_profiles": "up to"},
}
"""Table -> tables whose days before a day, or up to it, the day is made from."""


@dataclass(frozen=True)
class DayCommit:
    """The last commit of one day of a table.

    Attributes:
        version: version of the table that it created.
        read: version of every source that it was computed from.
        as_of: day whose catalogue a replay was judged with; null for the day itself.
    """

    version: int
    read: Mapping[str, int]
    as_of: date | None


@dataclass(frozen=True)
class Commits:
    """The state of the logs of a table and of its sources at one moment.

    Attributes:
        name: the table.
        days: requested days for which it holds rows or was committed, in order.
        last: table -> day -> its last commit.
    """

    name: str
    days: list[date]
    last: Mapping[str, Mapping[date, DayCommit]]

    def of_day(self, day: date) -> DayCommit | None:
        """Returns the last commit of a day; None if the log has none."""
        return self.last[self.name].get(day)

    def find_stale(self, days: Sequence[date]) -> list[date]:
        """Returns the days that one of their sources has made stale, in order."""
        return [day for day in sorted(days) if self._is_stale(day)]

    def _is_stale(self, day: date) -> bool:
        last_commit = self.of_day(day)
        for source, reach in SOURCES[self.name].items():
            version_read = NEVER if last_commit is None else last_commit.read.get(source, NEVER)
            for other, commit in self.last.get(source, {}).items():
                if commit.version > version_read and (other < day or (other == day and reach == "up to")):
                    return True
        return False


def table_version_of_day(spark: SparkSession, root: str, name: str, day: date) -> int:
    """Returns the version of a table that runs strictly forward (`poi_index`) as it stood at the end of a day.

    It is the version before the first commit of a later day, so a backfill reads the same rows as the original run.
    """
    commit_day = F.get_json_object("userMetadata", "$.day").cast("date")
    later = storage.table_history(spark, root, name).where(commit_day > F.lit(day))
    row = later.agg(F.min("version").alias("version")).first()
    first_later = None if row is None else row["version"]
    return storage.table_version(spark, root, name) if first_later is None else max(int(first_later) - 1, 0)


def commit_metadata(
    spark: SparkSession, root: str, name: str, *, as_of: date | None = None
) -> dict[str, object]:
    """Returns the metadata that a commit of `name` needs; call it before anything is read."""
    versions = {
        source: storage.table_version(spark, root, source)
        if storage.table_exists(spark, root, source)
        else NEVER
        for source in SOURCES[name]
    }
    return {"read": versions, **({"as_of": str(as_of)} if as_of else {})}


def read_commits(spark: SparkSession, root: str, name: str, *, since: date) -> Commits:
    """Reads the logs of `name` and of its sources.

    Args:
        spark: session.
        root: table root.
        name: table that has sources.
        since: first requested day; if the table has neither this nor a later day, the sources are not read.
    """
    day_commits, is_whole = _read_log(spark, root, name)
    days = {day for day in day_commits if day >= since}
    if not is_whole and storage.table_exists(spark, root, name):
        # Delta has dropped the oldest commits; the days themselves are still in the table.
        of_day = storage.read_table(spark, root, name).where(F.col("day") >= since).select("day").distinct()
        days |= {row["day"] for row in of_day.collect()}
    others = [source for source in SOURCES[name] if source != name and days]
    sources = {source: last_commits(spark, root, source) for source in others}
    return Commits(name, sorted(days), {**sources, name: day_commits})


def last_commits(spark: SparkSession, root: str, name: str) -> dict[date, DayCommit]:
    """Returns the last commit of every day, as far back as the table's log reaches; empty without the table."""
    return _read_log(spark, root, name)[0]


def _read_log(spark: SparkSession, root: str, name: str) -> tuple[dict[date, DayCommit], bool]:
    """Returns the last commit of every day, and whether the log reaches back to the beginning."""
    if not storage.table_exists(spark, root, name):
        return {}, True
    day_commits: dict[date, DayCommit] = {}
    history = storage.table_history(spark, root, name).select("version", "userMetadata").collect()
    for row in sorted(history, key=lambda row: row["version"]):
        # Commits that create, alter or restore a table carry no metadata and belong to no day.
        if row["userMetadata"] is not None:
            metadata = json.loads(row["userMetadata"])
            as_of = metadata.get("as_of")
            day_commits[date.fromisoformat(metadata["day"])] = DayCommit(
                row["version"], metadata.get("read", {}), date.fromisoformat(as_of) if as_of else None
            )
    return day_commits, any(row["version"] == 0 for row in history)
