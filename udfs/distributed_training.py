"""Training on a Spark cluster: TorchDistributor starts one process per barrier task, and they train as one.

    python -m udfs train --day 2026-01-31 --processes 4

What a process runs is `python -m models train`: the first leads, the others follow (`models.data.parallel`). Tables and
artifacts must lie where all processes can reach them, the environment at the same path on every machine. A job of the
cluster is a GPU each where the settings ask for `spark.task.resource.gpu.amount`, else `spark.task.cpus` cores.
https://spark.apache.org/docs/latest/api/python/reference/api/pyspark.ml.torch.distributor.TorchDistributor.html
"""

import json
from argparse import Namespace
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from pyspark.ml.torch.distributor import TorchDistributor

from conf.cli import JobContext, JobSummary
from conf.settings import Settings
from etl.spark.session import open_session

GPU_AMOUNT, TASK_CPUS = "spark.task.resource.gpu.amount", "spark.task.cpus"


def run_training(context: JobContext) -> JobSummary:
    """Trains all stages, evaluates and registers; the summary is the first process's."""
    options, settings = context.options, _with_absolute_paths(context.settings)
    open_session(settings, f"training {context.day}")
    # Spark's barrier mode fails at once where the cluster has fewer free slots than processes.
    distributor = TorchDistributor(
        num_processes=options.processes, local_mode=False, use_gpu=GPU_AMOUNT in settings.spark.conf
    )
    told = {
        "recipe": str(options.recipe.absolute()) if options.recipe else "",
        "set_recipe": options.set_recipe,
        "threads": int(settings.spark.conf.get(TASK_CPUS, "1")),
        "strict": options.strict,
        "run_id": context.run_id,
        "day": str(context.day),
        "dry_run": context.dry_run,
    }
    found = distributor.run(train_here, settings.model_dump_json(), told)
    assert isinstance(found, str), "the first process returned no summary"
    return JobSummary(**json.loads(found))


def train_here(settings: str, told: dict[str, Any]) -> str:
    """Runs the training in this process, one of several; returns its summary as JSON."""
    from models.jobs import run_train_job  # imported where it runs: the driver need not load torch

    options = Namespace(
        recipe=Path(told["recipe"]) if told["recipe"] else None,
        set_recipe=told["set_recipe"],
        threads=told["threads"],
        strict=told["strict"],
        model="",
        split="test",
    )
    context = JobContext(
        "train",
        date.fromisoformat(told["day"]),
        Settings.model_validate_json(settings),
        told["run_id"],
        told["dry_run"],
        options,
    )
    return json.dumps(asdict(run_train_job(context)), default=str)


def _with_absolute_paths(settings: Settings) -> Settings:
    """Makes local folders absolute: executors work in folders of their own."""
    storage = settings.storage
    found = {
        name: value if ":" in value else str(Path(value).absolute())
        for name, value in (("root", storage.root), ("artifacts", storage.artifacts))
    }
    return settings.model_copy(update={"storage": storage.model_copy(update=found)})
