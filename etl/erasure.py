"""Which rows tell of a user, and how they leave a table for good: from its rows, its old versions and its log.

A table of the contract with a column `user_id` holds users; so does `quarantined_rows`, whose payload is the refused
row. Raw rows name users as they were delivered, with blanks or broken characters around the id, or within a text that
could not be parsed; those count too. The tables of places and of figures about tables hold no user.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from delta.tables import DeltaTable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import CATALOG_PREFIX
from conf.tables import QUARANTINED_ROWS, TABLES
from etl import retention, storage
from etl.contracts import spark_schema
from etl.session import local_frame

FORMAT_CHECK = "spark.databricks.delta.formatCheck.enabled"
"""Delta's guard against reading a Delta table as Parquet, which shows rows of all versions: here that is wanted."""
UNPARSED, RECORD = "corrupt_record", "record"
"""Columns of raw tables that hold a record as its file did: one that could not be parsed, and any."""
STATISTICS_LENGTH = 32
SHORTEST_PLAIN_ID = 5
"""Shorter ids, and those of digits only, may be part of anything."""
_NOT_OF_ID = r"[^\p{L}\p{N}]"
_BROKEN = r"[\p{C}\p{So}\s]"
"""Control characters, the sign that stands for an undecodable byte, blanks."""


@dataclass(frozen=True)
class Found:
    """Where a table names the users.

    Attributes:
        rows: rows of the latest version.
        kept_rows: rows of all data files that lie there, whatever version they are of.
        log_files: files of the log.
    """

    rows: int = 0
    kept_rows: int = 0
    log_files: int = 0

    @property
    def is_clean(self) -> bool:
        return not (self.kept_rows or self.log_files)


def user_tables() -> list[str]:
    """Returns the tables that hold users, in the order of the contracts."""
    return [
        name
        for name, table in TABLES.items()
        if "user_id" in table.column_names or name == QUARANTINED_ROWS.name
    ]


def conditions(name: str, erased: Column) -> list[Column]:
    """Returns the conditions under which a row of the table tells of the user `erased`; none or one of them holds.

    They are apart, since equality is a hash join and a search in a text is not.
    """
    if name == QUARANTINED_ROWS.name:
        fields = (F.get_json_object("payload", f"$.{field}") for field in ("user_id", UNPARSED, RECORD))
        return _as_delivered(erased, *fields)
    if TABLES[name].raw:
        known = TABLES[name].column_names
        texts = (
            F.col(field) if field in known else F.lit(None).cast("string") for field in (UNPARSED, RECORD)
        )
        return _as_delivered(erased, F.col("user_id"), *texts)
    return [F.col("user_id") == erased]


def find_users(spark: SparkSession, root: str, name: str, users: DataFrame) -> Found:
    """Counts where a table tells of the users; `users` has one column, `erased_id`."""
    # Statistics hold the first 32 characters of a text.
    pattern = id_pattern([row["erased_id"][:STATISTICS_LENGTH] for row in users.collect()])
    path = retention.table_path(spark, root, name)
    with _as_parquet(spark):
        kept = spark.read.option("__globPaths__", "false").schema(spark_schema(TABLES[name])).parquet(path)
        kept_rows = _count(kept, name, users)
    in_log = sum(bool(pattern.search(content)) for content in retention.read_log(path))
    return Found(_count(storage.read_table(spark, root, name), name, users), kept_rows, in_log)


def id_pattern(users: Sequence[str]) -> re.Pattern[bytes]:
    """Returns what finds ids in a text or a log, each as a word.

    An id that could be any number or word counts only after the name of a column of users, in the group `said`.
    """
    plain = [user for user in users if len(user) >= SHORTEST_PLAIN_ID and not user.isdigit()]
    others = sorted(set(users) - set(plain))
    parts = [rb"(?<!\w)(?:" + _any_of(plain) + rb")(?!\w)"] if plain else []
    # Up to the id the text may hold quotes, also as HTML spells them.
    said = rb"(?P<said>(?:user|sample)_id(?:\W|&quot;|&#34;){1,24})"
    parts += [said + rb"(?:" + _any_of(others) + rb")(?!\w)"] if others else []
    return re.compile(b"|".join(parts))


def delete_users(spark: SparkSession, root: str, name: str, users: DataFrame) -> None:
    """Deletes the rows that tell of the users; the ids come from a frame, so that no commit spells them out."""
    location = storage.table_location(root, name)
    is_named = root.startswith(CATALOG_PREFIX)
    table = DeltaTable.forName(spark, location) if is_named else DeltaTable.forPath(spark, location)
    for condition in conditions(name, F.col("erased_id")):
        table.alias("target").merge(F.broadcast(users), condition).whenMatchedDelete().execute()


def _any_of(users: Sequence[str]) -> bytes:
    return b"|".join(re.escape(user.encode()) for user in users)


def _count(rows: DataFrame, name: str, users: DataFrame) -> int:
    total = 0
    for condition in conditions(name, F.col("erased_id")):
        total += rows.join(F.broadcast(users), condition, "left_semi").count()
    return total


def _as_delivered(erased: Column, user: Column, unparsed: Column, record: Column) -> list[Column]:
    """The id with blanks around it; the id among broken characters, or in a record of which no user could be read."""
    in_text = (user.rlike(_BROKEN) & _names(user, erased)) | _names(unparsed, erased)
    in_text |= user.isNull() & _names(record, erased)
    return [_bare(user) == erased, in_text & ~_bare(user).eqNullSafe(erased)]


def _bare(text: Column) -> Column:
    """The id without what is no letter and no digit around it."""
    return F.regexp_replace(text, f"^{_NOT_OF_ID}+|{_NOT_OF_ID}+$", "")


def _names(text: Column, erased: Column) -> Column:
    """Does the text hold the id as a word."""
    quoted = F.concat(F.lit(r"(?<![\p{L}\p{N}_])\Q"), erased, F.lit(r"\E(?![\p{L}\p{N}_])"))
    return text.isNotNull() & F.regexp(text, quoted)


@contextlib.contextmanager
def _as_parquet(spark: SparkSession) -> Iterator[None]:
    before = spark.conf.get(FORMAT_CHECK, None)
    spark.conf.set(FORMAT_CHECK, "false")
    try:
        yield
    finally:
        if before is None:
            spark.conf.unset(FORMAT_CHECK)
        else:
            spark.conf.set(FORMAT_CHECK, before)


def as_frame(spark: SparkSession, users: Sequence[str]) -> DataFrame:
    """Returns the ids as a frame of one column, `erased_id`, each once."""
    return local_frame(spark, [(user,) for user in sorted(set(users))], "erased_id string")
