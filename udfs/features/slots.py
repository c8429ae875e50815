"""Slots of the POI index as of a day or a request: which are known, which are live.

A slot is live from `valid_from` up to, not including, `valid_to`. Columns in, columns out; nothing is read
here.
"""

from datetime import date

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F


def keep_known(slots: DataFrame, *, day: date, index_version: int) -> DataFrame:
    """Keeps the slots of one index version held at the end of `day`, closings of later days undone."""
    closed_later = F.coalesce(F.col("closed_day") > F.lit(day), F.lit(False))
    known = slots.where((F.col("index_version") == index_version) & (F.col("indexed_day") <= F.lit(day)))
    return known.withColumn("valid_to", F.when(~closed_later, F.col("valid_to")))


def is_live(on: Column) -> Column:
    """Tells whether a slot (`valid_from`, `valid_to`) is live on a date."""
    return (F.col("valid_from") <= on) & (F.col("valid_to").isNull() | (F.col("valid_to") > on))
