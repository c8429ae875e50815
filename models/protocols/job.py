"""The job of `evaluate --protocol NAME --data FOLDER`: trains, ranks, prints, saves, logs to MLflow."""

from pathlib import Path

import torch

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError, SettingsError
from conf.settings import CONF_DIR
from models.config import load_recipe
from models.evaluation.evaluate import RELEASE_SPLIT, headline, log_figures, print_figures, save_figures
from models.evaluation.figures import Figures
from models.protocols.run import evaluate_protocol
from models.protocols.splits import PROTOCOLS
from models.tracking import open_training_run

CHECKINS_RECIPE = CONF_DIR / "models" / "checkins.yaml"


def run_protocol_job(context: JobContext) -> JobSummary:
    """Trains on a public protocol, ranks, prints and saves the figures, and logs them to MLflow."""
    options = context.options
    if options.protocol not in PROTOCOLS:
        raise SettingsError(
            where="--protocol",
            key=options.protocol,
            problem="no such protocol",
            known=(RELEASE_SPLIT, *PROTOCOLS),
        )
    if not options.data:
        raise MissingInputError(
            what="the folder of check-ins", where="--data", needed_by=f"Protocol {options.protocol}",
            remedy="Give the folder that holds checkins.parquet with --data.",
        )  # fmt: skip
    torch.set_num_threads(options.threads or torch.get_num_threads())
    recipe = load_recipe(options.recipe or CHECKINS_RECIPE, options.set_recipe)
    folder = Path(options.out or Path(context.settings.storage.artifacts) / "evaluations")
    seeds = [] if context.dry_run else [int(seed) for seed in options.seeds.split(",") if seed]
    figures = evaluate_protocol(
        options.protocol, Path(options.data), split=options.split, recipe=recipe, seeds=seeds, work=folder
    )
    evaluation: Figures = {"protocol": options.protocol, "split": options.split, "next_poi": figures}
    evaluation["recipe"] = recipe.model_dump(mode="json")
    print_figures(evaluation)
    if not context.dry_run:
        saved = save_figures(evaluation, folder / f"{options.protocol}-{options.split}.json")
        _log_run(context, evaluation, saved)
    return JobSummary(rows_in=int(str(figures["rows"])), notes=headline(evaluation))


def _log_run(context: JobContext, evaluation: Figures, saved: Path) -> None:
    """Logs figures, recipe and the JSON file to MLflow, as a separate run."""
    name, recipe, next_poi = saved.stem, evaluation["recipe"], evaluation["next_poi"]
    assert isinstance(recipe, dict)
    assert isinstance(next_poi, dict)
    tags = {"run_id": context.run_id, "digest": str(next_poi["digest"])}
    folder = saved.parent / "runs" / context.run_id
    with open_training_run(context.settings.mlflow, folder, name=f"evaluation {name}", tags=tags) as log:
        log.log_params({"decoder": recipe["decoder"], "pretrain": recipe["pretrain"]})
        log_figures(evaluation, log)
        log.log_file(saved)
