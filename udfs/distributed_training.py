"""Training on a Spark cluster: TorchDistributor starts one process per barrier task, and they train as one.

    python -m udfs train --day 2026-01-31 --processes 4

Each process runs `python -m models train`: the first leads, the rest follow (`models.data.parallel`). All processes
must reach the tables and artifacts. The environment must have the same path on every machine. A process gets a GPU
where the settings ask for `spark.task.resource.gpu.amount`, else `spark.task.cpus` cores.
https://spark.apache.org/docs/latest/api/python/reference/api/pyspark.ml.torch.distributor.TorchDistributor.html
"""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from pyspark.ml.torch.distributor import TorchDistributor

from conf.cli import JobContext, JobSummary
from conf.settings import Settings
from etl.spark.session import open_session

GPU_AMOUNT, TASK_CPUS = "spark.task.resource.gpu.amount", "spark.task.cpus"


def run_training(context: JobContext) -> JobSummary:
    """Trains all stages, evaluates and registers; returns the summary of the first process."""
    settings = context.settings
    open_session(settings, f"training {context.day}")
    # Spark's barrier mode fails at once where the cluster has fewer free slots than processes.
    distributor = TorchDistributor(
        num_processes=context.options.processes, local_mode=False, use_gpu=GPU_AMOUNT in settings.spark.conf
    )
    options = Namespace(**vars(context.options))  # every option of `models train`, whatever there is
    options.threads = options.threads or int(settings.spark.conf.get(TASK_CPUS, "1"))
    if options.recipe:
        options.recipe = options.recipe.absolute()
    summary = distributor.run(
        train_here, replace(context, settings=_with_absolute_paths(settings), options=options)
    )
    assert isinstance(summary, JobSummary), "the first process returned no summary"
    return summary


def train_here(context: JobContext) -> JobSummary:
    """Runs the training in this process, one of several."""
    from models.jobs import run_train_job  # imported here, so that the driver does not load torch

    return run_train_job(context)


def _with_absolute_paths(settings: Settings) -> Settings:
    """Makes local folders absolute, since each executor has its own working directory."""
    storage = settings.storage
    absolute = {
        name: value if ":" in value else str(Path(value).absolute())
        for name, value in (("root", storage.root), ("artifacts", storage.artifacts))
    }
    return settings.model_copy(update={"storage": storage.model_copy(update=absolute)})
