"""Deletes table files that no release, no training and no running job reads any more.

    python -m udfs vacuum [--hours 168] [--keep-releases 30] [--dry-run]

The job keeps the latest version of every table, every version that a readable release shows, every version that a
training under `{storage.artifacts}/training` has pinned, and every version that was the latest within the last hours.
With `--keep-releases N` all but the last N releases are withdrawn first, so that their versions can be deleted. Use
this instead of Spark's VACUUM, which considers only the age of files.
"""

import logging
from pathlib import Path

from conf.cli import JobContext, JobSummary
from conf.files import read_json
from conf.releases import Release
from conf.tables import TABLES
from etl.delta.erasure_plan import refuse_unfinished_erasure
from etl.delta.retention import vacuum_table
from etl.delta.storage import table_exists
from etl.spark.session import open_session
from udfs.releases.release_log import load_releases
from udfs.releases.withdrawals import withdraw

LOGGER = logging.getLogger(__name__)
Pins = dict[str, set[int]]
"""Versions that stay readable, by table."""


def run_vacuum(context: JobContext) -> JobSummary:
    """Deletes files that no release and no training pins.

    Raises:
        ErasureUnfinishedError: an erasure was begun and has not ended; it still needs old versions.
        CorruptInputError: the record of a training is damaged; what it pins is not known.
    """
    refuse_unfinished_erasure(context.settings.storage.artifacts)
    root, options = context.settings.storage.root, context.options
    spark = open_session(context.settings, "spacetime-gr vacuum")
    releases = load_releases(spark, root)
    surplus = releases_beyond(releases, options.keep_releases)
    summary = JobSummary(notes={"withdrawn": [release.release_id for release in surplus]})
    kept = [release for release in releases if not release.withdrawn and release not in surplus]
    # Read first: a damaged record of a training ends the job before anything is withdrawn.
    pins = pinned_versions(kept, Path(context.settings.storage.artifacts))
    # Withdrawn before a file is deleted: a kill may leave surplus files, but no unreadable release.
    if surplus and not context.dry_run:
        withdraw(spark, context, surplus, f"only the last {options.keep_releases} releases are kept")
    deleted: dict[str, int] = {}
    for name in TABLES:
        if table_exists(spark, root, name):
            files = vacuum_table(
                spark,
                root,
                name,
                keep_versions=sorted(pins.get(name, ())),
                hours=options.hours,
                dry_run=context.dry_run,
            )
            deleted[name] = len(files)
    LOGGER.info("%d files deleted, %d releases kept", sum(deleted.values()), len(kept))
    summary.notes |= {
        "files_deleted": {name: n for name, n in deleted.items() if n},
        "releases_kept": len(kept),
    }
    return summary


def releases_beyond(releases: list[Release], number: int | None) -> list[Release]:
    """Returns the readable releases before the last `number`, and never the current one."""
    readable = [release for release in releases if not release.withdrawn]
    return [] if number is None else readable[: -max(number, 1)]


def pinned_versions(releases: list[Release], artifacts: Path) -> Pins:
    """Returns the versions that releases show and those that trainings have read."""
    pins: Pins = {}
    for release in releases:
        for name, version in release.table_versions.items():
            pins.setdefault(name, set()).add(version)
    for path in sorted(artifacts.glob("training/*/training.json")):
        for name, pin in read_json(path, expected="the record of a training")["pins"].items():
            pins.setdefault(name, set()).add(pin["version"])
    return pins
