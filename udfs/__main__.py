"""Feature jobs on the command line: `python -m udfs JOB --day D`.

python -m udfs features --day 2026-03-01       all four feature tables, one session, one model
python -m udfs audit --day 2026-03-01          may the tables of this day be published?
python -m udfs publish --day 2026-03-01        one row of releases makes it visible
python -m udfs release --day 2026-03-01        these three in one session
python -m udfs rollback                        back to the release before
python -m udfs releases                        what was published when
python -m udfs backfill --from D --to D        features of past days by one model, to train on
python -m udfs export --out FOLDER             Parquet and a FAISS index of a release
python -m udfs vacuum                          frees what no release and no training pins
python -m udfs erase --user ID                 removes a user from every table, log and file
python -m udfs train --day D --processes 4     trains on the cluster, as python -m models train does on one machine
"""

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from conf.cli import Job, JobContext, JobSummary, calendar_day, hours, main, positive, run_later
from conf.errors import SettingsError
from models.__main__ import add_train

FEATURES = ("user_embeddings", "poi_embeddings", "ranking_scores", "poi_candidates")
"""Feature tables in the order in which `features` builds them."""


def add_model_option(parser: ArgumentParser) -> None:
    """Adds `--model`."""
    parser.add_argument(
        "--model",
        default="",
        metavar="URI",
        help="models:/NAME@ALIAS, models:/NAME/VERSION or the folder of a bundle; empty for features.model",
    )


def add_publish_option(parser: ArgumentParser) -> None:
    """Adds `--replace`."""
    parser.add_argument(
        "--replace",
        action="store_true",
        help="publish although readers see a newer day, or although these rows were rolled back",
    )


def add_release_options(parser: ArgumentParser) -> None:
    """Adds `--model` and `--replace`."""
    add_model_option(parser)
    add_publish_option(parser)


def add_rollback_option(parser: ArgumentParser) -> None:
    """Adds `--to`."""
    parser.add_argument(
        "--to", type=positive, metavar="N", help="release to go back to; default: the one before"
    )


def add_export_options(parser: ArgumentParser) -> None:
    """Adds `--release`, `--out` and `--index`."""
    parser.add_argument(
        "--release", type=positive, metavar="N", help="release to export; default: the current one"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="replaced if it is an export"
    )
    parser.add_argument(
        "--index",
        default="HNSW32,Flat",
        metavar="SPEC",
        help="FAISS index factory string; 'none' for Parquet only",
    )


def add_age_option(parser: ArgumentParser) -> None:
    """Adds `--max-age-hours`."""
    parser.add_argument(
        "--max-age-hours",
        type=hours,
        metavar="H",
        help="fail if the current release was published, or its day ended, more than H hours ago; empty: any age",
    )


def add_vacuum_options(parser: ArgumentParser) -> None:
    """Adds `--hours` and `--keep-releases`."""
    parser.add_argument(
        "--hours",
        type=hours,
        default=168.0,
        help="keep versions that were current within the last H hours",
    )
    parser.add_argument(
        "--keep-releases",
        type=positive,
        metavar="N",
        help="withdraw all but the last N releases; empty: keep all",
    )


def add_backfill_options(parser: ArgumentParser) -> None:
    """Adds `--from`, `--to` and `--model`."""
    for flag, name, which in (("--from", "first", "first"), ("--to", "last", "last")):
        parser.add_argument(
            flag,
            dest=name,
            type=calendar_day,
            required=True,
            metavar="YYYY-MM-DD",
            help=f"{which} UTC day of the requests to compute features for",
        )
    add_model_option(parser)


def add_user_options(parser: ArgumentParser) -> None:
    """Adds `--user` and `--users`."""
    parser.add_argument("--user", action="append", default=[], metavar="ID", help="user to erase; repeatable")
    parser.add_argument("--users", type=Path, metavar="FILE", help="file of users to erase, one id a line")


def add_training_options(parser: ArgumentParser) -> None:
    """Adds `--processes` and the options of `python -m models train`."""
    parser.add_argument(
        "--processes",
        type=positive,
        default=2,
        metavar="N",
        help="number of processes that share each batch, one barrier task each",
    )
    add_train(parser)


def feature_job(*names: str) -> Callable[[JobContext], JobSummary]:
    """Returns a job that makes the named feature tables; torch and pyspark are imported when it runs."""

    def run(context: JobContext) -> JobSummary:
        from udfs.features.runner import run_features

        return run_features(context, names)

    return run


def candidates_job(context: JobContext) -> JobSummary:
    """Generates POIs for the requests of the day, or for those of `--requests`."""
    if context.options.requests:
        return run_later("udfs.features.given_requests", "run_given_requests")(context)
    for option in ("out", "top", "new_logit"):
        if getattr(context.options, option, None) is not None:
            raise SettingsError(
                where="the command line",
                key=f"--{option.replace('_', '-')}",
                problem="it goes with --requests; the requests of the day follow the settings `features`",
            )
    return feature_job("poi_candidates")(context)


def add_candidates_options(parser: ArgumentParser) -> None:
    """Adds `--model` and the options for requests of another table or file."""
    add_model_option(parser)
    parser.add_argument(
        "--requests",
        default="",
        metavar="PATH",
        help="requests to answer instead of the day's: Parquet, a Delta folder or a table with request_id, user_id, "
        "request_ts_ms and optionally user_lon, user_lat, tz_offset_min, action_type; needs --out",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where candidates/ and refused/ of --requests go, as Parquet",
    )
    parser.add_argument(
        "--top", type=positive, metavar="N", help="POIs per request of --requests; empty: features.top_k"
    )
    parser.add_argument(
        "--new-logit",
        type=float,
        metavar="T",
        help="with --requests: added to the log-odds of POIs that are new to the user; empty: features.new_logit",
    )


def run_release(context: JobContext) -> JobSummary:
    """Runs features, audit and publish for one day; their summaries are in the notes."""
    total = JobSummary()
    for name in ("features", "audit", "publish"):
        summary = JOBS[name].run(replace(context, job=name))
        total.rows_in = total.rows_in or summary.rows_in
        total.rows_out = total.rows_out or summary.rows_out
        total.take(summary, name)
        total.notes[name] = summary.notes
    return total


JOBS = {
    "user_embeddings": Job(
        help="action_sequences -> user_embeddings: users who acted since their last vector",
        run=feature_job("user_embeddings"),
        add_options=add_model_option,
        access="shared",
    ),
    "poi_embeddings": Job(
        help="poi_index -> poi_embeddings: POIs that are new or changed",
        run=feature_job("poi_embeddings"),
        add_options=add_model_option,
        access="shared",
    ),
    "poi_vectors": Job(
        help="poi_index -> poi_vectors: the text of POIs that are new or changed, as vectors for post-training",
        run=run_later("udfs.vectors.poi_vectors", "run_poi_vectors"),
        access="shared",
    ),
    "poi_image_vectors": Job(
        help="raw_poi_images -> poi_image_vectors: pictures that are new or changed, as vectors for post-training",
        run=run_later("udfs.vectors.poi_image_vectors", "run_poi_image_vectors"),
        access="shared",
    ),
    "ranking_scores": Job(
        help="ranking_requests -> ranking_scores: a click probability per request and candidate",
        run=feature_job("ranking_scores"),
        add_options=add_model_option,
        access="shared",
    ),
    "poi_candidates": Job(
        help="ranking_requests -> poi_candidates: the top-k live POIs per request; or any requests (--requests)",
        run=candidates_job,
        add_options=add_candidates_options,
        access="shared",
    ),
    "features": Job(
        help="all four feature tables in one session with one model",
        run=feature_job(*FEATURES),
        add_options=add_model_option,
        access="shared",
    ),
    "audit": Job(
        help="checks the day's feature tables and their inputs; exit 3 if they must not be published",
        run=run_later("udfs.releases.audit", "run_audit"),
        add_options=add_model_option,
        access="shared",
    ),
    "publish": Job(
        help="audited feature tables of the day -> one row of releases",
        run=run_later("udfs.releases.publish", "run_publish"),
        add_options=add_publish_option,
        access="shared",
    ),
    "release": Job(
        help="features, audit and publish in one session; stops at the first that fails",
        run=run_release,
        add_options=add_release_options,
        access="shared",
    ),
    "rollback": Job(
        help="shows the release before the current one again",
        run=run_later("udfs.releases.publish", "run_rollback"),
        add_options=add_rollback_option,
        needs_day=False,
        access="shared",
    ),
    "backfill": Job(
        help="features of past days by one model, to train a ranking model on (read_training_set); publishes nothing",
        run=run_later("udfs.features.backfill", "run_backfill"),
        add_options=add_backfill_options,
        needs_day=False,
        access="shared",
    ),
    "export": Job(
        help="one release -> Parquet of its feature tables and a FAISS index of its POI vectors",
        run=run_later("udfs.releases.export", "run_export"),
        add_options=add_export_options,
        needs_day=False,
        access="shared",
    ),
    "vacuum": Job(
        help="deletes files of tables that neither a release nor a training pins; may withdraw old releases first",
        run=run_later("udfs.upkeep.vacuum", "run_vacuum"),
        add_options=add_vacuum_options,
        needs_day=False,
        access="alone",
    ),
    "erase": Job(
        help="removes users from every table, version, log, report and artefact, then searches for them again",
        run=run_later("udfs.upkeep.erase", "run_erase"),
        add_options=add_user_options,
        needs_day=False,
        access="alone",
    ),
    "train": Job(
        help="sample tables -> trained, evaluated and registered model, by several processes on the cluster",
        run=run_later("udfs.distributed_training", "run_training"),
        add_options=add_training_options,
    ),
    "releases": Job(
        help="lists what was published; exit 3 if the current release is older than --max-age-hours",
        run=run_later("udfs.releases.list_releases", "run_releases"),
        add_options=add_age_option,
        needs_day=False,
    ),
}

if __name__ == "__main__":
    sys.exit(main("udfs", __doc__ or "", JOBS))
