"""Training on a Spark cluster: TorchDistributor starts one process per barrier task, and they train as one.

    python -m udfs train --day 2026-01-31 --processes 4

Each process runs `python -m models train`: the first leads, the rest follow (`models.data.parallel`). All processes
must reach the tables and artifacts. The environment must have the same path on every machine. A process gets a GPU
where the settings ask for `spark.task.resource.gpu.amount`, else `spark.task.cpus` cores.
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
    """Trains all stages, evaluates and registers; returns the summary of the first process."""
    options, settings = context.options, _with_absolute_paths(context.settings)
    open_session(settings, f"training {context.day}")
    # Spark's barrier mode fails at once where the cluster has fewer free slots than processes.
    distributor = TorchDistributor(
        num_processes=options.processes, local_mode=False, use_gpu=GPU_AMOUNT in settings.spark.conf
    )
    arguments = {
        "recipe": str(options.recipe.absolute()) if options.recipe else "",
        "set_recipe": options.set_recipe,
        "threads": int(settings.spark.conf.get(TASK_CPUS, "1")),
        "strict": options.strict,
        "run_id": context.run_id,
        "day": str(context.day),
        "dry_run": context.dry_run,
    }
    summary = distributor.run(train_here, settings.model_dump_json(), arguments)
    assert isinstance(summary, str), "the first process returned no summary"
    return JobSummary(**json.loads(summary))


def train_here(settings: str, arguments: dict[str, Any]) -> str:
    """Runs the training in this process, one of several; returns its summary as JSON."""
    from models.jobs import run_train_job  # imported here, so that the driver does not load torch

    options = Namespace(
        recipe=Path(arguments["recipe"]) if arguments["recipe"] else None,
        set_recipe=arguments["set_recipe"],
        threads=arguments["threads"],
        strict=arguments["strict"],
        model="",
        split="test",
    )
    context = JobContext(
        "train",
        date.fromisoformat(arguments["day"]),
        Settings.model_validate_json(settings),
        arguments["run_id"],
        arguments["dry_run"],
        options,
    )
    return json.dumps(asdict(run_train_job(context)), default=str)


def _with_absolute_paths(settings: Settings) -> Settings:
    """Makes local folders absolute, since each executor has its own working directory."""
    storage = settings.storage
    absolute = {
        name: value if ":" in value else str(Path(value).absolute())
        for name, value in (("root", storage.root), ("artifacts", storage.artifacts))
    }
    return settings.model_copy(update={"storage": storage.model_copy(update=absolute)})
