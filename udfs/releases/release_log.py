"""Reads the log of releases: through Spark if the tables are in a metastore, otherwise through Arrow."""

from typing import Any

from pyspark.sql import SparkSession

from conf import releases
from conf.releases import Release
from conf.settings import CATALOG_PREFIX
from etl.delta.storage import read_table, table_exists


def load_releases(spark: SparkSession | None, root: str) -> list[Release]:
    """Reads all releases, oldest first; empty if none was ever published.

    Args:
        spark: open session; may be None unless the root is a metastore.
        root: table root.
    """
    if spark is None or not root.startswith(CATALOG_PREFIX):
        return releases.load_releases(root)
    return releases.join_log(_read_log(spark, root, "releases"), _read_log(spark, root, "withdrawals"))


def _read_log(spark: SparkSession, root: str, name: str) -> list[dict[str, Any]]:
    """Reads all rows of a log table; none if it was never written."""
    if not table_exists(spark, root, name):
        return []
    return [row.asDict() for row in read_table(spark, root, name).collect()]
