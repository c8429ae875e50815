"""Digests of tables, for comparing a rerun, a backfill or a rebuild. See `contracts.digest_table`."""

from collections.abc import Sequence
from datetime import date

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.tables import TABLES
from etl.delta import contracts, storage


def digest_tables(spark: SparkSession, root: str, names: Sequence[str], *, day: date) -> dict[str, str]:
    """Digests the tables that exist: the rows of the day where a table is written by day, else all rows."""
    digests = {}
    for name in names:
        if storage.table_exists(spark, root, name):
            frame = storage.read_table(spark, root, name)
            rows = frame.where(F.col("day") == day) if TABLES[name].write == "day" else frame
            digests[name] = contracts.digest_table(rows, TABLES[name])
    return digests
