"""Withdraws releases that can no longer be read: rows of the log table `withdrawals`, with the reason.

A release is withdrawn when table versions that it pins are deleted, by an erasure or by retention. Rows in the log of
releases itself never change, so it still shows what was published when.
"""

import logging
import time
from collections.abc import Mapping, Sequence

from pyspark.sql import SparkSession

from conf.cli import JobContext
from conf.releases import Release
from conf.tables import WITHDRAWALS
from etl.delta.contracts import spark_schema
from etl.delta.storage import append_log
from etl.spark.session import local_frame

LOGGER = logging.getLogger(__name__)


def withdraw(spark: SparkSession, context: JobContext, releases: Sequence[Release], reason: str) -> list[int]:
    """Records that releases can no longer be read; releases that are already withdrawn keep their reason.

    Returns:
        The numbers of the newly withdrawn releases.
    """
    now = time.time_ns() // 1_000_000
    rows = [
        (release.release_id, now, reason, context.run_id) for release in releases if not release.withdrawn
    ]
    if rows:
        frame = local_frame(spark, rows, spark_schema(WITHDRAWALS))
        root, day = context.settings.storage.root, releases[-1].day
        append_log(frame, WITHDRAWALS.name, root, run_id=context.run_id, job=context.job, day=day)
        LOGGER.warning("releases %s are withdrawn: %s", ", ".join(str(row[0]) for row in rows), reason)
    return [row[0] for row in rows]


def pinned_before(releases: Sequence[Release], first_kept: Mapping[str, int]) -> list[Release]:
    """Returns the releases that pin a version of a table older than the table's first kept version."""
    return [
        release
        for release in releases
        if any(release.table_versions.get(name, start) < start for name, start in first_kept.items())
    ]
