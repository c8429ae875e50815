"""A small simulated city whose nights, training and releases run as on the command line, in this process.

What the benches of operations stand on: one settings layer that keeps everything in one folder, and `run`, which takes
the words of a command line. One process and one Spark session, since sixteen starts would take most of the time.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import yaml
from pyspark.sql import SparkSession

from conf.cli import main
from etl.__main__ import JOBS as ETL_JOBS
from models.__main__ import JOBS as MODEL_JOBS
from udfs.__main__ import JOBS as UDF_JOBS

PROGRAMS = {"etl": ETL_JOBS, "models": MODEL_JOBS, "udfs": UDF_JOBS}
DAYS = tuple(date(2026, 1, number) for number in (18, 19, 20))
STAGES = ("pretrain", "sft_embedding", "sft_ranking", "align_dpo")
RECIPE_KEYS = ("decoder.hidden_dim=16", "decoder.ffn_dim=32", *(f"{stage}.max_steps=4" for stage in STAGES))
"""A real model of the real shape, as small and as briefly trained as can be."""
Words = Sequence[str]


def write_settings(
    folder: Path, *, num_users: int, num_pois: int = 300, spark: dict[str, object] | None = None
) -> Path:
    """Writes a settings layer that keeps everything in one folder, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "storage": {"root": str(folder / "warehouse"), "artifacts": str(folder / "artifacts")},
        "mlflow": {"tracking_uri": f"sqlite:///{folder / 'mlflow.db'}", "artifact_root": str(folder / "mlruns")},
        "spark": {
            "driver_memory": "1500m",
            "shuffle_partitions": 2,
            "quick_start": True,
            "conf": {"spark.python.daemon.module": "udfs.worker_daemon"},
            **(spark or {}),
        },
        "city": {
            "num_users": num_users, "num_pois": num_pois, "num_actions": 12 * num_users, "num_requests": 2 * num_users,
            "num_days": 20, "dirty_share": 0.03, "kept_dirt_share": 0.02,
        },
        "samples": {"val_days": 3, "test_days": 3},
        # So brief a training stays challenger: the gate sees that it has learnt nothing.
        "features": {"top_k": 10, "model": "models:/spacetime-gr@challenger"},
    }  # fmt: skip
    layer = folder / "settings.yaml"
    layer.write_text(yaml.safe_dump(content))
    return layer


def run(layer: Path, program: str, *words: str, code: int = 0) -> dict[str, object]:
    """Runs one command in this process and returns its summary line.

    Raises:
        RuntimeError: it ended with another exit code.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        ended = main(program, "", PROGRAMS[program], [words[0], "--conf", str(layer), *words[1:]])
    summary: dict[str, object] = json.loads(out.getvalue().splitlines()[-1])
    if ended != code:
        raise RuntimeError(
            f"python -m {program} {' '.join(words)} ended with {ended}: {summary.get('message')}"
        )
    return summary


def close_spark() -> None:
    """Ends the session that is open, if there is one: the next command starts Spark with settings of its own."""
    session = SparkSession.getActiveSession()
    if session is not None:
        session.stop()


def night(number: int) -> list[Words]:
    """Returns the commands of one night up to its sequences."""
    day = str(DAYS[number])
    since = ("--set", f"source.since={DAYS[number - 1]}") if number else ()
    return [("etl", "night", "--source", "synthetic", "--day", day, *since)]


def training() -> list[Words]:
    """Returns the commands that train and register a model on the first night."""
    day = str(DAYS[0])
    smaller = [word for key in RECIPE_KEYS for word in ("--set-recipe", key)]
    return [("etl", "samples", "--day", day), ("models", "train", "--day", day, *smaller)]
