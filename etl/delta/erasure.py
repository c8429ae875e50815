"""Finds the rows about a user and deletes them for good: from a table's rows, its old versions and its log.

A table of the contract with a column `user_id` holds users. So does `quarantined_rows`, whose payload is the refused
row. Raw rows name users as delivered: with blanks or broken characters around the id, or within a text that could not
be parsed. Such rows count too. The tables of POIs and of figures about tables hold no users.
"""

import contextlib
import html
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import CATALOG_PREFIX
from conf.tables import QUARANTINED_ROWS, TABLES
from etl.columns.judging import clean_id
from etl.delta import retention, storage
from etl.delta.contracts import spark_schema
from etl.delta.erased_users import BROKEN, bare_id, digest_user
from etl.spark.session import local_frame

LOGGER = logging.getLogger(__name__)
FORMAT_CHECK = "spark.databricks.delta.formatCheck.enabled"
"""Delta's guard against reading a Delta table as Parquet, which shows rows of all versions: here that is wanted."""
UNPARSED, RECORD = "corrupt_record", "record"
"""Columns of raw tables that hold a record as its file did: one that could not be parsed, and any."""
STATISTICS_LENGTH = 32
SHORTEST_PLAIN_ID = 5
"""Shorter ids, and those of digits only, may be part of anything."""


@dataclass(frozen=True)
class Found:
    """Where a table names the users.

    Attributes:
        rows: rows of the latest version.
        kept_rows: rows of all stored data files, of any version.
        log_files: files of the log.
        leftovers: damaged data files that the latest version does not need, for example of a killed write. It is
            unknown which users they name.
        users: digests of the users that were found.
    """

    rows: int = 0
    kept_rows: int = 0
    log_files: int = 0
    leftovers: int = 0
    users: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not (self.kept_rows or self.log_files or self.leftovers)

    def describe(self) -> dict[str, int]:
        """Returns the counts, for summaries and records."""
        counts = {"rows": self.rows, "kept_rows": self.kept_rows, "log_files": self.log_files}
        return counts | ({"leftovers": self.leftovers} if self.leftovers else {})


def user_tables() -> list[str]:
    """Returns the tables that hold users, in the order of the contracts."""
    return [
        name
        for name, table in TABLES.items()
        if "user_id" in table.column_names or name == QUARANTINED_ROWS.name
    ]


def conditions(name: str) -> list[Column]:
    """Returns the conditions under which a row names a user of `as_frame`; at most one of them holds.

    They are separate, since equality is a hash join and a search in a text is not.
    """
    if name == QUARANTINED_ROWS.name:
        fields = (F.get_json_object("payload", f"$.{field}") for field in ("user_id", UNPARSED, RECORD))
        return _as_delivered(*fields)
    if TABLES[name].raw:
        known = TABLES[name].column_names
        texts = (
            F.col(field) if field in known else F.lit(None).cast("string") for field in (UNPARSED, RECORD)
        )
        return _as_delivered(F.col("user_id"), *texts)
    # Ids are normalised here too: an earlier version of the rules may have let padded ids into the table.
    return [clean_id(F.col("user_id")) == F.col("erased_id")]


def find_users(spark: SparkSession, root: str, name: str, users: DataFrame) -> Found:
    """Counts the places where a table names the users; `users` is the result of `as_frame`.

    Raises:
        CorruptInputError: a data file that the latest version needs is damaged.
    """
    path = retention.table_path(spark, root, name)
    rows = storage.read_table(spark, root, name)
    pattern = id_pattern(_as_in_statistics(rows, name, users))
    kept_rows, digests, leftovers = _find_in_files(spark, path, name, users)
    in_log = sum(bool(pattern.search(content)) for content in retention.read_log(path)) if pattern else 0
    # The latest rows are among those that are kept.
    return Found(_count(rows, name, users) if kept_rows else 0, kept_rows, in_log, leftovers, digests)


def _find_in_files(
    spark: SparkSession, path: str, name: str, users: DataFrame
) -> tuple[int, tuple[str, ...], int]:
    """Searches all data files of a table; returns rows, digests of the users, and damaged files that nothing needs."""
    reader = spark.read.option("__globPaths__", "false").schema(spark_schema(TABLES[name]))
    leftovers: list[str] = []
    with _as_parquet(spark):
        try:
            num_rows = _count(reader.parquet(path), name, users)
        except (PySparkException, Py4JJavaError):
            leftovers = retention.damaged_files(path)
            if not leftovers:
                raise
            LOGGER.warning(
                "%s: %d damaged files that the latest version does not need, for example %s; an erasure deletes them, "
                "since they may hold anyone", name, len(leftovers), leftovers[0],
            )  # fmt: skip
            reader = reader.option("ignoreCorruptFiles", "true")
            num_rows = _count(reader.parquet(path), name, users)
        digests = sorted(_named(reader.parquet(path), name, users)) if num_rows else []
    return num_rows, tuple(digests), len(leftovers)


def _as_in_statistics(rows: DataFrame, name: str, users: DataFrame) -> list[str]:
    """Returns the ids as statistics hold them, cut to 32 characters, except beginnings that other users share."""
    ids = [row["erased_id"] for row in users.collect()]
    long = {user[:STATISTICS_LENGTH] for user in ids if len(user) > STATISTICS_LENGTH}
    if long and "user_id" in TABLES[name].column_names:
        others = rows.where(F.substring("user_id", 1, STATISTICS_LENGTH).isin(*long))
        others = others.join(
            F.broadcast(users), clean_id(F.col("user_id")) == F.col("erased_id"), "left_anti"
        )
        long -= {
            row[0] for row in others.select(F.substring("user_id", 1, STATISTICS_LENGTH)).distinct().collect()
        }
    return sorted({user for user in ids if len(user) <= STATISTICS_LENGTH} | long)


def id_pattern(users: Sequence[str]) -> re.Pattern[bytes] | None:
    """Returns a pattern that finds ids in a text or a log, each as a word; None for no ids.

    The pattern finds an id literally and as JSON and HTML spell it. An id that could be any number or word counts only
    after the name of a column of users, or the word "user", in the group `said`.
    """
    if not users:
        return None
    plain = [user for user in users if len(user) >= SHORTEST_PLAIN_ID and not user.isdigit()]
    ambiguous = sorted(set(users) - set(plain))
    parts = [rb"(?<!\w)(?:" + _any_of(plain) + rb")(?!\w)"] if plain else []
    # Quotes may stand before the id, also as HTML spells them.
    column_name = rb"(?P<said>(?:user|sample)_id(?:\W|&quot;|&#34;){1,24}|\buser )"
    parts += [column_name + rb"(?:" + _any_of(ambiguous) + rb")(?!\w)"] if ambiguous else []
    return re.compile(b"|".join(parts))


def delete_users(spark: SparkSession, root: str, name: str, users: DataFrame) -> None:
    """Deletes the rows about the users; the ids come from a frame, so that no commit contains them."""
    location = storage.table_location(root, name)
    is_named = root.startswith(CATALOG_PREFIX)
    table = DeltaTable.forName(spark, location) if is_named else DeltaTable.forPath(spark, location)
    for condition in conditions(name):
        table.alias("target").merge(F.broadcast(users), condition).whenMatchedDelete().execute()


def _any_of(users: Sequence[str]) -> bytes:
    spellings = {spelling for user in users for spelling in _spellings(user)}
    # Longer ids first: an id that is a prefix of another must not match in its place.
    return b"|".join(re.escape(text) for text in sorted(spellings, key=lambda text: (-len(text), text)))


def _spell_in_json(text: str) -> set[str]:
    """Returns the id with and without escapes; a number also as a float of earlier versions: 1.0126086E7."""
    spelt = {json.dumps(text, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
    if re.fullmatch(r"[1-9]\d{7,15}", text):
        digits = text.rstrip("0")
        spelt.add(f"{digits[0]}.{digits[1:] or '0'}E{len(text) - 1}")
    return spelt


def _spellings(user: str) -> set[bytes]:
    """Returns an id in UTF-8, in JSON with and without escapes, both nested in a JSON string, and all in HTML."""
    once = _spell_in_json(user)
    plain = {user} | once | {text for spelling in once for text in _spell_in_json(spelling)}
    return {text.encode() for text in plain | {html.escape(text) for text in plain}}


def _count(rows: DataFrame, name: str, users: DataFrame) -> int:
    parts = [
        rows.join(F.broadcast(users), condition, "left_semi").select(F.lit(1))
        for condition in conditions(name)
    ]
    return reduce(DataFrame.unionAll, parts).count()


def _named(rows: DataFrame, name: str, users: DataFrame) -> set[str]:
    """Returns the digests of the users that the rows name."""
    digests: set[str] = set()
    for condition in conditions(name):
        named = F.broadcast(users).join(rows, condition).select("user_digest").distinct()
        digests |= {row["user_digest"] for row in named.collect()}
    return digests


def _as_delivered(user: Column, unparsed: Column, record: Column) -> list[Column]:
    """Returns two conditions: the id with blanks around it; the id in broken text or in a record without a user."""
    erased = F.col("erased_id")
    in_text = (user.rlike(f"[{BROKEN}]") & _names(user)) | _names(unparsed)
    in_text |= user.isNull() & _names(record)
    is_user = (clean_id(user) == erased) | (bare_id(user) == erased)
    # Null-safe: a row without a readable user would otherwise meet neither condition.
    return [bare_id(user) == erased, (in_text | is_user) & ~bare_id(user).eqNullSafe(erased)]


def _names(text: Column) -> Column:
    """Tells whether the text holds the id as a word, literally or as JSON spells it."""
    return text.isNotNull() & F.exists("spellings", lambda word: _has_word(text, word))


def _has_word(text: Column, word: Column) -> Column:
    # An id may hold \E, which would end the quotation. So the quotation is closed there and reopened after the \E.
    literal = F.concat(F.lit(r"\Q"), F.replace(word, F.lit(r"\E"), F.lit(r"\E\\E\Q")), F.lit(r"\E"))
    # Not \b: next to an id that begins or ends with a sign, it would require a letter around the id.
    quoted = F.concat(F.lit(r"(?<![\p{L}\p{N}_])"), literal, F.lit(r"(?![\p{L}\p{N}_])"))
    return F.regexp(text, quoted)


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
    """Returns the distinct ids as a frame.

    Columns: `erased_id`; `user_digest` as `erased_users` keeps it; `spellings`, how a record may write the id.
    """
    rows = [(user, digest_user(user), sorted({user, *_spell_in_json(user)})) for user in sorted(set(users))]
    return local_frame(spark, rows, "erased_id string, user_digest string, spellings array<string>")
