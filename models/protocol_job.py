"""The job behind `python -m models evaluate --protocol NAME --data FOLDER`: trains, ranks, prints, saves."""

from pathlib import Path

import torch

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError, SettingsError
from conf.settings import CONF_DIR
from models.config import load_recipe
from models.evaluate import RELEASE_SPLIT, headline, print_figures, save_figures
from models.figures import Figures
from models.protocol_run import evaluate_protocol
from models.protocols import PROTOCOLS

CHECKINS_RECIPE = CONF_DIR / "models" / "checkins.yaml"


def run_protocol_job(context: JobContext) -> JobSummary:
    """Trains on a public protocol, ranks, prints and saves the figures."""
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
        save_figures(evaluation, folder / f"{options.protocol}-{options.split}.json")
    return JobSummary(rows_in=int(str(figures["rows"])), notes=headline(evaluation))
