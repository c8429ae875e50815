"""Spark jobs of the data half: python -m etl JOB --day D (see --help).

Every day: a source (synthetic, checkins, tsmc, getnext or actions), then poi_index, clean_actions and action_sequences;
`night` runs all four in one session. Before a training: pretrain_samples, ranking_samples and preference_pairs;
`samples` runs all three. Models that copy from the crowd also need training_others.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import Job, JobContext, JobSummary, calendar_day, load_function, main
from conf.tables import TABLES

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SOURCES = {
    "synthetic": ("etl.city.source", "deliver", "a planted city, seeded, of any size (settings city.*)"),
    "checkins": (
        "etl.sources.checkins",
        "deliver",
        "a folder with checkins.parquet and pois.parquet (source.path)",
    ),
    "tsmc": (
        "etl.sources.public_files",
        "deliver_tsmc",
        "the raw 8-column TSMC2014 Foursquare TSV (source.path)",
    ),
    "getnext": ("etl.sources.public_files", "deliver_getnext", "the check-in CSV of GETNext (source.path)"),
    "actions": (
        "etl.sources.paper_actions",
        "deliver",
        "JSON or Parquet actions in the paper's form (source.path)",
    ),
}
"""Source -> module and function that writes the raw tables of a day, and what it reads."""

NIGHT_STEPS = {
    "poi_index": ("etl.jobs.index_pois", "index_pois"),
    "clean_actions": ("etl.jobs.recompute", "clean_days"),
    "action_sequences": ("etl.jobs.recompute", "sequence_days"),
}
SAMPLE_STEPS = {
    "pretrain_samples": ("etl.jobs.samples", "sample_windows"),
    "ranking_samples": ("etl.jobs.samples", "sample_requests"),
    "preference_pairs": ("etl.jobs.samples", "sample_pairs"),
}
Step = Callable[[JobContext, "SparkSession"], JobSummary]


def run_one(module: str, function: str) -> Callable[[JobContext], JobSummary]:
    """Returns a job of one step; pyspark is imported when it runs, so that --help is quick."""

    def run(context: JobContext) -> JobSummary:
        return load_function(module, function)(context, _open(context))

    return run


def run_forward(module: str, function: str) -> Callable[[JobContext], JobSummary]:
    """Returns a job of one step that takes the warehouse to a day, after a look at the day."""

    def run(context: JobContext) -> JobSummary:
        return load_function(module, function)(context, _open_for_day(context))

    return run


READERS_ONLY = ("digest", "outline")
"""Jobs that write no table."""


def run_night(context: JobContext) -> JobSummary:
    """Runs a source, if one is given, and the three daily jobs in one session."""
    source = context.options.source
    steps = {**({source: SOURCES[source][:2]} if source else {}), **NIGHT_STEPS}
    return _run_steps(context, steps, _open_for_day(context))


def run_samples(context: JobContext) -> JobSummary:
    """Runs the three sample jobs in one session."""
    return _run_steps(context, SAMPLE_STEPS, _open(context))


def run_docs(context: JobContext) -> JobSummary:
    """Writes the table pages generated from the contracts."""
    from etl.setup.tables_page import write_page

    written = write_page(context.options.readme, check=context.dry_run)
    return JobSummary(rows_out=len(TABLES), notes={"file": str(context.options.readme), "changed": written})


def run_digest(context: JobContext) -> JobSummary:
    """Digests the tables of a day: equal digests, equal tables."""
    from etl.delta.digests import digest_tables

    wanted = context.options.tables or list(TABLES)
    digests = digest_tables(_open(context), context.settings.storage.root, wanted, day=context.day)
    return JobSummary(rows_out=len(digests), notes={"digests": digests})


def _run_steps(context: JobContext, steps: dict[str, tuple[str, str]], spark: "SparkSession") -> JobSummary:
    """Runs steps in order and puts their summaries together; rows in are those of the first one."""
    total = JobSummary()
    for number, (name, (module, function)) in enumerate(steps.items()):
        done = load_function(module, function)(replace(context, job=name), spark)
        total.rows_in = done.rows_in if number == 0 else total.rows_in
        total.rows_out = done.rows_out
        total.take(done, name)
        rows = {
            "in": done.rows_in,
            "out": done.rows_out,
            "refused": done.rows_refused,
            "dropped": done.rows_dropped,
        }
        total.notes[name] = {"rows": rows, **done.notes}
    return total


def _open(context: JobContext) -> "SparkSession":
    from etl.delta.erasure_plan import refuse_unfinished_erasure
    from etl.spark.session import open_session

    # The erasure goes on from the versions that it has planned: what is committed meanwhile would be lost.
    if context.job not in READERS_ONLY:
        refuse_unfinished_erasure(context.settings.storage.artifacts)
    return open_session(context.settings, f"etl {context.job} {context.day}")


def _open_for_day(context: JobContext) -> "SparkSession":
    from etl.jobs.day_bounds import refuse_unlikely_day

    spark = _open(context)
    refuse_unlikely_day(context, spark)
    return spark


def _add_day_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--any-day",
        action="store_true",
        help="take a day after today, or over 31 days after the last delivery",
    )


def _add_source_option(parser: argparse.ArgumentParser) -> None:
    _add_day_option(parser)
    parser.add_argument(
        "--source",
        choices=tuple(SOURCES),
        help="source that delivers the raw tables first; without it they must exist",
    )


def _add_outline_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        choices=tuple(name for name in SOURCES if name != "synthetic"),
        help="reader to use; without it the shape of the files decides",
    )
    parser.add_argument(
        "--next-day",
        type=calendar_day,
        metavar="YYYY-MM-DD",
        help="day of the second delivery; derived if not given, as is --day, the day of the first",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="layer of settings (YAML) with the path and the splits"
    )


def _add_replay_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--as-of",
        type=calendar_day,
        help="judge with the catalogue as it stood at the end of this day; without it, with today's catalogue",
    )


def _add_docs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--readme", type=Path, default=Path("etl/README.md"), help="file that holds the table pages"
    )


def _add_digest_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tables", nargs="*", choices=tuple(TABLES), metavar="TABLE", help="tables to digest; all if none"
    )


JOBS: dict[str, Job] = {
    **{
        name: Job(
            f"{reads} -> raw_actions, raw_pois, raw_profiles, raw_impressions, ranking_requests",
            run_forward(module, function),
            _add_day_option,
            access="shared",
        )
        for name, (module, function, reads) in SOURCES.items()
    },
    "poi_index": Job(
        "raw_pois -> poi_index, blocks, categories: every POI gets a block and an inner id, append-only; "
        "runs strictly forward, a rerun of the last day gives the same ids",
        run_forward(*NIGHT_STEPS["poi_index"]),
        _add_day_option,
        access="shared",
    ),
    "clean_actions": Job(
        "raw_actions + poi_index -> cleaned_actions, user_places, quarantined_rows: rows in = accepted + "
        "quarantined + exact duplicates dropped, or the job fails (exit code 3); reasons: conf/rules.py",
        run_one(*NIGHT_STEPS["clean_actions"]),
        access="shared",
    ),
    "replay": Job(
        "clean_actions of a day once more, with the catalogue of today or of --as-of: takes in actions whose POI "
        "was delivered later; rows stay conserved, and a second run changes nothing",
        run_one("etl.jobs.replay", "replay_day"),
        _add_replay_options,
        access="shared",
    ),
    "action_sequences": Job(
        "cleaned_actions + user_places -> action_sequences: the history of every user active on the day, "
        "its richness and pattern",
        run_one(*NIGHT_STEPS["action_sequences"]),
        access="shared",
    ),
    "pretrain_samples": Job(
        "action_sequences -> pretrain_samples: windows in train, val and test by time",
        run_one(*SAMPLE_STEPS["pretrain_samples"]),
        access="shared",
    ),
    "training_others": Job(
        "cleaned_actions -> training_visits, training_transitions: what each user did in the training period, for "
        "models that copy from the crowd (decoder.crowd)",
        run_one("etl.jobs.samples", "count_others"),
        access="shared",
    ),
    "ranking_samples": Job(
        "raw_impressions + cleaned_actions -> ranking_samples: requests with the history before each",
        run_one(*SAMPLE_STEPS["ranking_samples"]),
        access="shared",
    ),
    "preference_pairs": Job(
        "ranking_samples -> preference_pairs: clicked POIs, each paired with one shown and not clicked",
        run_one(*SAMPLE_STEPS["preference_pairs"]),
        access="shared",
    ),
    "night": Job(
        "a source (--source, optional), then poi_index, clean_actions, action_sequences in one Spark session",
        run_night,
        _add_source_option,
        access="shared",
    ),
    "samples": Job(
        "pretrain_samples, ranking_samples, preference_pairs in one Spark session",
        run_samples,
        access="shared",
    ),
    "outline": Job(
        "files of any known shape -> what they hold, and the days and splits that fit them; writes no table",
        run_one("etl.sources.outline", "run_outline"),
        _add_outline_options,
        needs_day=False,
    ),
    "docs": Job(
        "conf/tables.py and conf/rules.py -> the table pages of etl/README.md",
        run_docs,
        _add_docs_options,
        needs_day=False,
    ),
    "digest": Job(
        "prints a digest of every table's rows of the day: equal digests, equal tables",
        run_digest,
        _add_digest_options,
    ),
}


if __name__ == "__main__":
    assert __doc__ is not None
    sys.exit(main("etl", __doc__, JOBS))
