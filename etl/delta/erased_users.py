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


def digest_user(user: str) -> str:
    """Returns the digest that identifies an erased user: SHA-256 of the normalised id."""
    return hashlib.sha256(clean_text(user).encode()).hexdigest()


def digest_of(user: Column) -> Column:
    """Returns the same digest for a column of delivered ids."""
    return F.sha2(clean_id(user), 256)


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
    known = F.broadcast(erased.withColumn(IS_ERASED, F.lit(True)))
    # No anti join: the summary reports the number of omitted rows, so they are counted first.
    marked = rows.join(known, digest_of(F.col("user_id")) == F.col("user_digest"), "left")
    return marked.drop("user_digest").fillna(False, [IS_ERASED])


def leave_out(rows: DataFrame, erased: DataFrame | None) -> DataFrame:
    """Leaves out the rows of erased users from a table that has users."""
    if erased is None or "user_id" not in rows.columns:
        return rows
    return rows.join(F.broadcast(erased), digest_of(F.col("user_id")) == F.col("user_digest"), "left_anti")
