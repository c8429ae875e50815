"""Erased users, who must not come back: digests of their ids, and filters for their rows in a delivery.

A cumulative export still holds a user after the erasure. `erased_users` keeps the digest of every erased id. Readers
leave out the rows of such users and count them. The setting `source.readmit_erased` readmits them.
"""

import hashlib

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import Settings
from conf.tables import ERASED_USERS
from etl.columns.judging import clean_id
from etl.columns.refusal import BLANKS
from etl.delta import storage

IS_ERASED = "_is_erased"
"""Column that `mark_erased` adds."""
BROKEN = r"\p{Cc}\p{Cf}\x{FFFD}"
"""What damage leaves in an id: control characters and the sign of an undecodable byte. Other symbols, unassigned code
points among them, may be what an id consists of; so may a blank between two words."""
AROUND = rf"[{BROKEN}\s\x{{A0}}\x{{3000}}]"
"""What damage leaves around an id: the same, and blanks."""


def digest_user(user: str) -> str:
    """Returns the digest that identifies an erased user: SHA-256 of the normalised id."""
    return hashlib.sha256(clean_text(user).encode()).hexdigest()


def digests_of(user: Column) -> list[Column]:
    """Returns the digests under which a delivered id may be known: of the id, and of what damage has left of it.

    An erasure deletes raw rows whose id has broken characters around it or within, so the next export must not bring
    them back. What is left are the id without damage around it, and the parts before the first and after the last one.
    """
    parts = F.split(bare_id(user), f"[{BROKEN}]+")
    is_damaged = user.rlike(f"[{BROKEN}]")
    left = (bare_id(user), F.element_at(parts, 1), F.element_at(parts, -1))
    return [F.sha2(clean_id(user), 256), *(F.when(is_damaged, F.sha2(text, 256)) for text in left)]


def bare_id(user: Column) -> Column:
    """Returns the normalised id without broken characters around it."""
    return clean_id(F.regexp_replace(user, f"^{AROUND}+|{AROUND}+$", ""))


def clean_text(user: str) -> str:
    """Normalises an id as `judging.clean_id` does in columns."""
    return user.strip(BLANKS)


def read_erased(spark: SparkSession, settings: Settings) -> DataFrame | None:
    """Returns the digests of users whose rows are left out; None if there are none, or if the settings readmit them."""
    root = settings.storage.root
    if settings.source.readmit_erased or not storage.table_exists(spark, root, ERASED_USERS.name):
        return None
    return storage.read_table(spark, root, ERASED_USERS.name).select("user_digest")


def mark_erased(rows: DataFrame, erased: DataFrame | None) -> DataFrame:
    """Adds `_is_erased`: whether the row belongs to an erased user.

    Args:
        rows: with `user_id`, as delivered.
        erased: result of `read_erased`.
    """
    if erased is None:
        return rows.withColumn(IS_ERASED, F.lit(False))
    # No anti join: the summary reports the number of omitted rows, so they are counted first.
    digests = digests_of(F.col("user_id"))
    marked, found = rows, [f"_erased_{number}" for number in range(len(digests))]
    for name, digest in zip(found, digests, strict=True):
        # A join each: one join on either digest would compare every row with every erased user.
        marked = marked.join(
            F.broadcast(erased.withColumnRenamed("user_digest", name)), digest == F.col(name), "left"
        )
    is_erased = F.coalesce(*found).isNotNull()
    return marked.withColumn(IS_ERASED, is_erased).drop(*found)


def leave_out(rows: DataFrame, erased: DataFrame | None) -> DataFrame:
    """Leaves out the rows of erased users from a table that has users."""
    if erased is None or "user_id" not in rows.columns:
        return rows
    for digest in digests_of(F.col("user_id")):
        rows = rows.join(F.broadcast(erased), digest == F.col("user_digest"), "left_anti")
    return rows
