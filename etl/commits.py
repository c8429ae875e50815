"""What the commits of a table tell: which days it holds, what each was made from, and which of them are behind.

A day of `cleaned_actions` is made from the days before it too (redelivered ids, homes), one of `action_sequences` from
the days up to it. So every commit notes the versions that it has read. A day is behind if a day that it is made from
has been committed since: after a correction or a backfill of an older day, or after a kill between the two.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from etl import storage

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
        version: version of the table that it made.
        read: version of every source that it was made from.
        as_of: end of the catalogue that a replay was judged with; null for the day itself.
    """

    version: int
    read: Mapping[str, int]
    as_of: date | None


def table_version_of_day(spark: SparkSession, root: str, name: str, day: date) -> int:
    """Returns the version of a table that runs strictly forward (`poi_index`) as it stood at the end of a day.

    It is the version before the first commit of a later day; so a backfill sees what the night saw.
    """
    noted = F.get_json_object("userMetadata", "$.day").cast("date")
    later = storage.table_history(spark, root, name).where(noted > F.lit(day))
    row = later.agg(F.min("version").alias("version")).first()
    first_later = None if row is None else row["version"]
    return storage.table_version(spark, root, name) if first_later is None else max(int(first_later) - 1, 0)


def note_of(spark: SparkSession, root: str, name: str, *, as_of: date | None = None) -> dict[str, object]:
    """Returns what a commit of `name` has to note; taken before anything is read."""
    read = {
        source: storage.table_version(spark, root, source)
        if storage.table_exists(spark, root, source)
        else NEVER
        for source in SOURCES[name]
    }
    return {"read": read, **({"as_of": str(as_of)} if as_of else {})}


def last_commits(spark: SparkSession, root: str, name: str) -> dict[date, DayCommit]:
    """Returns the last commit of every day, as far back as the table's log reaches; empty without the table."""
    if not storage.table_exists(spark, root, name):
        return {}
    history = storage.table_history(spark, root, name).where("userMetadata IS NOT NULL")
    found: dict[date, DayCommit] = {}
    for row in history.select("version", "userMetadata").orderBy("version").collect():
        note = json.loads(row["userMetadata"])
        as_of = note.get("as_of")
        found[date.fromisoformat(note["day"])] = DayCommit(
            row["version"], note.get("read", {}), date.fromisoformat(as_of) if as_of else None
        )
    return found


def days_from(spark: SparkSession, root: str, name: str, since: date) -> list[date]:
    """Returns the days from `since` on that the table holds rows of or was committed for, in order."""
    if not storage.table_exists(spark, root, name):
        return []
    of_day = storage.read_table(spark, root, name).where(F.col("day") >= since).select("day").distinct()
    stored = {row["day"] for row in of_day.collect()}
    return sorted(stored | {day for day in last_commits(spark, root, name) if day >= since})


def days_behind(spark: SparkSession, root: str, name: str, days: Sequence[date]) -> list[date]:
    """Returns those of the days of `name` that one of their sources has left behind, in order."""
    if not days:
        return []
    made = last_commits(spark, root, name)
    changed = {source: last_commits(spark, root, source) for source in SOURCES[name]}

    def is_behind(day: date) -> bool:
        read = made[day].read if day in made else {}
        for source, reach in SOURCES[name].items():
            seen = read.get(source, NEVER)
            for other, commit in changed[source].items():
                if commit.version > seen and (other < day or (other == day and reach == "up to")):
                    return True
        return False

    return [day for day in sorted(days) if is_behind(day)]
