"""The model stages: python -m models STAGE --day D --recipe conf/models/tiny.yaml.

`train` runs all of them with one parent run in MLflow. A stage that was interrupted goes on where it stopped; a
stage that is finished and whose rows have not changed is not trained again. Several processes share each batch:
torchrun --nproc-per-node 2 -m models train ..., or on a Spark cluster: python -m udfs train ...
"""

import argparse
import sys
from pathlib import Path

from conf.cli import Job, main, positive, run_later

MAX_TARGETS = 5_000


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        type=Path,
        default=None,
        metavar="PATH",
        help="shape of the model and how it is trained; default conf/models/tiny.yaml, for public protocols "
        "conf/models/checkins.yaml",
    )
    parser.add_argument(
        "--set-recipe",
        action="append",
        default=[],
        metavar="a.b=value",
        help="one key of the recipe; repeatable",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="CPU threads of torch; 0 = the cores, shared out to the processes",
    )


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        default="release-split",
        help="rows to score: release-split; time-split for any folder of check-ins; or a public protocol such as"
        " nyc-table6, which names the columns that it needs",
    )
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="held-out split; select on val only"
    )
    parser.add_argument(
        "--max-targets",
        type=positive,
        default=MAX_TARGETS,
        metavar="N",
        help="targets of the next POI, and requests, that are ranked at most, evenly drawn, since exact ranks among "
        "all POIs cost as much as the training; public protocols rank all of theirs",
    )
    parser.add_argument("--data", default="", metavar="FOLDER", help="check-in folder of a public protocol")
    parser.add_argument("--model", default="", metavar="URI", help="bundle; empty = the day's training")


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        default="0,1,2",
        metavar="LIST",
        help="public protocols: one training per seed, kept and used again; empty = baselines only",
    )
    parser.add_argument(
        "--out", default="", metavar="FOLDER", help="public protocols: folder for figures and trained models"
    )


def _add_register(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    _add_strict(parser)


def _add_strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="fail if the model is not promoted")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    _add_evaluation(parser)
    _add_protocol(parser)


def add_train(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `train`, here and of `python -m udfs train`."""
    _add_recipe(parser)
    parser.add_argument(
        "--allow-unvalidated",
        action="store_true",
        help="train although there are no validation or test rows: every stage runs its steps to the end, figures that "
        "cannot be had are left out by name, and the gate promotes nothing that it could not judge; without this an "
        "empty split is an error",
    )
    _add_evaluation(parser)
    _add_strict(parser)


def _add_lift(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("--model", default="", metavar="URI", help="bundle; empty = the day's training")
    parser.add_argument(
        "--own-columns",
        type=Path,
        metavar="FILE",
        help="further base features: Parquet with request_id, poi_id and numeric columns",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON file of the figures; empty = the artifacts"
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    for flag, whose in (("--ours", "the system that is judged"), ("--theirs", "the system to compare with")):
        parser.add_argument(
            flag,
            type=Path,
            required=True,
            metavar="FILE",
            help=f"lists of {whose}: Parquet with request_id, rank, poi_id",
        )
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="POIs of each list that count")
    parser.add_argument(
        "--values",
        type=Path,
        metavar="FILE",
        help="judge by the value of every POI: request_id, poi_id, value",
    )
    parser.add_argument(
        "--margin", type=float, default=0.01, help="with --values: lists within this share of theirs are even"
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write an HTML page on which people judge blindly"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="write prompts for a language model, JSON lines"
    )
    parser.add_argument(
        "--choices", type=Path, metavar="FILE", help="count the choices of people or of a model"
    )
    parser.add_argument(
        "--requests", type=Path, metavar="FILE", help="with --page and --prompts: the requests, as Parquet"
    )
    parser.add_argument("--seed", type=int, default=1, help="decides which list is shown on the left")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--release", type=int, default=None, metavar="ID", help="release; default = the last one of the day"
    )


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", required=True, metavar="USER_ID", help="user whose request is explained")
    parser.add_argument(
        "--model",
        default="",
        metavar="URI",
        help="bundle; empty = the model of the current release, else of the day's training",
    )
    parser.add_argument(
        "--at",
        default="",
        metavar="EPOCH_MS_OR_ISO",
        help="time of the request, UTC unless it says otherwise; empty = one usual gap after the last action",
    )
    parser.add_argument(
        "--place", default="", metavar="LON,LAT", help="where the user is; empty = at the last action's POI"
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="POIs to list")
    parser.add_argument(
        "--out", default="", metavar="FOLDER", help="folder of the picture; empty = the artifacts"
    )


JOBS = {
    "pretrain": Job(
        "pretrain_samples -> pre-trained decoder", run_later("models.jobs", "run_stage_job"), _add_recipe
    ),
    "sft_embedding": Job(
        "ranking_samples -> user and POI towers", run_later("models.jobs", "run_stage_job"), _add_recipe
    ),
    "sft_ranking": Job(
        "ranking_samples -> click logits of candidates",
        run_later("models.jobs", "run_stage_job"),
        _add_recipe,
    ),
    "align_dpo": Job(
        "preference_pairs -> aligned generator", run_later("models.jobs", "run_stage_job"), _add_recipe
    ),
    "evaluate": Job(
        "figures of baselines and model on the same held-out rows: of a day, or of a public protocol",
        run_later("models.jobs", "run_evaluate_job"),
        _add_evaluate,
        needs_day=False,
    ),
    "register": Job(
        "bundle -> registered model version, champion if the gate lets it pass",
        run_later("models.jobs", "run_register_job"),
        _add_register,
    ),
    "lift": Job(
        "held-out requests -> what the features give a ranking model: AUC, GAUC, NDCG@5 with and without them",
        run_later("models.jobs", "run_lift_job"),
        _add_lift,
        access="shared",
    ),
    "train": Job(
        "all stages, evaluate, register, in one parent run",
        run_later("models.jobs", "run_train_job"),
        add_train,
    ),
    "explain": Job(
        "one request -> a text and a picture of the actions that its prediction depends on",
        run_later("models.jobs", "run_explain_job"),
        _add_explain,
        access="shared",
    ),
    "compare": Job(
        "lists of two systems -> win, even, lose by a judge: known values, people (a blind page), or a language model",
        run_later("models.judging.job", "run_compare"),
        _add_compare,
        needs_day=False,
        access="shared",
    ),
    "report": Job(
        "release -> one HTML file", run_later("models.jobs", "run_report_job"), _add_report, access="shared"
    ),
}


if __name__ == "__main__":
    sys.exit(main("models", __doc__.splitlines()[0], JOBS))
