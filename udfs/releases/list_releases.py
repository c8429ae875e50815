"""Shows the log of releases as a table: what was published when, from which versions, and what was rolled back."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table

from conf.cli import JobContext, JobSummary
from conf.errors import StaleReleaseError
from conf.releases import Release, find_current, find_release
from conf.settings import CATALOG_PREFIX
from etl.spark.session import open_session
from udfs.releases.release_log import load_releases

LOG_WIDTH = 140
"""Columns of the table where it is not printed in a terminal."""


def run_releases(context: JobContext) -> JobSummary:
    """Prints all releases to stderr, the current one marked.

    Raises:
        NoReleaseError: a maximum age was given, and there is no release.
        StaleReleaseError: the current release is older than the maximum age.
    """
    root = context.settings.storage.root
    # A folder is read without Spark, whose start takes as long as everything else here.
    is_folder = "://" not in root and not root.startswith(CATALOG_PREFIX)
    spark = None if is_folder else open_session(context.settings, "spacetime-gr releases")
    releases = load_releases(spark, root)
    width = None if sys.stderr.isatty() else LOG_WIDTH
    Console(file=sys.stderr, width=width).print(build_listing(releases))
    current = find_current(releases)
    max_age = context.options.max_age_hours
    if max_age is not None:
        refuse_old(find_release(releases, root), max_age_hours=max_age, now_ms=time.time_ns() // 1_000_000)
    return JobSummary(rows_in=len(releases), notes={"current": current.release_id if current else None})


def refuse_old(current: Release, *, max_age_hours: float, now_ms: int) -> None:
    """Raises StaleReleaseError if the release was published, or its day ended, too long ago."""
    ended = datetime.combine(current.day + timedelta(days=1), datetime.min.time(), UTC)
    published_hours = (now_ms - current.published_ts_ms) / 3_600_000
    data_hours = (now_ms - ended.timestamp() * 1000) / 3_600_000
    if not max(published_hours, data_hours) <= max_age_hours:
        raise StaleReleaseError(
            release_id=current.release_id,
            day=str(current.day),
            published_hours=published_hours,
            data_hours=data_hours,
            max_age_hours=max_age_hours,
        )


def build_listing(releases: Sequence[Release]) -> Table:
    """Builds the table of all releases for the terminal."""
    listing = Table(
        "release", "day", "published (UTC)", "model", "index", "takes back", "simulated", "tables at version"
    )
    current = find_current(releases)
    for release in releases:
        mark = " (current)" if release == current else " (withdrawn)" if release.withdrawn else ""
        published = datetime.fromtimestamp(release.published_ts_ms / 1000, UTC)
        listing.add_row(
            f"{release.release_id}{mark}",
            str(release.day),
            f"{published:%Y-%m-%d %H:%M:%S}",
            release.model_version,
            str(release.index_version),
            str(release.rollback_of or ""),
            "yes" if release.is_simulated else "no",
            "\n".join(f"{name} {version}" for name, version in sorted(release.table_versions.items())),
        )
    return listing
