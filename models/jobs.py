"""The jobs of `python -m models`: settings and options in, a summary out; the work is done elsewhere."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.dataset as pds
import torch

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError, NoLiftError
from conf.settings import CONF_DIR
from models.config import load_recipe
from models.data.dataset import read_table
from models.data.parallel import joined_group, process_rank, threads_of_process
from models.data.pins import pin_table
from models.evaluation.evaluate import (
    EVALUATION_FILE,
    RELEASE_SPLIT,
    evaluate_new_places,
    evaluate_next_poi,
    evaluate_ranking,
    headline,
    log_figures,
    print_figures,
    save_figures,
)
from models.evaluation.figures import Figures, without_nan
from models.evaluation.generator_choice import GeneratorChoice
from models.evaluation.probes import probe_attribute
from models.evaluation.release_split import EvaluationRows, draw_evenly
from models.lift.show import LIFT_FILE, print_lift
from models.lift.show import headline as lift_headline
from models.protocols.job import run_protocol_job
from models.registry.champions import find_champions
from models.registry.gate import judge_bundle
from models.registry.held_out import add_finder, find_evaluation_rows, find_lift_rows, read_impressions
from models.registry.lift_gate import judge_lift
from models.registry.register import register_bundle
from models.registry.training_bundle import make_bundle
from models.serving.bundle import ModelBundle, load_bundle, resolve_model
from models.serving.inference import POI_COLUMNS
from models.tracking import RunLog, open_training_run
from models.training.followers import follow
from models.training.pipeline import (
    Training,
    open_training,
    refuse_erased,
    train_all,
    train_stage,
)
from models.training.stage import TrainResult
from models.training.stage_tables import STAGE_TABLES, tables_of

DEFAULT_RECIPE = CONF_DIR / "models" / "tiny.yaml"
"""Default recipe of a training."""
LOGGER = logging.getLogger(__name__)
T = TypeVar("T")


def run_stage_job(context: JobContext) -> JobSummary:
    """Trains the stage of the job's name, and rebuilds the bundle."""
    training = _open(context)
    if context.dry_run:
        return _plan(training, (context.job,))
    with joined_group():
        if process_rank() > 0:
            return _summarise(training, follow(training, (context.job,)))
        with _open_run(context, training) as log:
            result = train_stage(training, context.job, log)
            make_bundle(training)
    return _summarise(training, {context.job: result})


def run_train_job(context: JobContext) -> JobSummary:
    """Trains all stages, evaluates and registers, in one parent run."""
    training = _open(context)
    if context.dry_run:
        return _plan(training, tuple(STAGE_TABLES))
    with joined_group():
        if process_rank() > 0:
            return _summarise(training, follow(training, tuple(STAGE_TABLES)))
        return _lead_training(context, training)


def _lead_training(context: JobContext, training: Training) -> JobSummary:
    steps: dict[str, float] = {}
    with _open_run(context, training) as log:
        results = _timed(steps, "stages", lambda: train_all(training, log))
        held_out, choice = _timed(steps, "bundle", lambda: make_bundle(training))
        evaluation = _timed(steps, "evaluate", lambda: _evaluate(context, training, log))
        registration = _timed(steps, "register", lambda: _register(context, training, log, held_out, choice))
    summary = _summarise(training, results)
    summary.steps |= steps
    summary.notes |= {**headline(evaluation), **registration}
    return summary


def run_evaluate_job(context: JobContext) -> JobSummary:
    """Evaluates a bundle on the day's held-out rows, or separately trained models on a public protocol."""
    if context.options.protocol != RELEASE_SPLIT:
        return run_protocol_job(context)
    if context.options.day is None:
        raise MissingInputError(
            what="the day", where="--day", needed_by="Evaluating a day's training",
            remedy="Give it with --day YYYY-MM-DD, or name a public protocol with --protocol.",
        )  # fmt: skip
    training = _open(context)
    refuse_erased(training)
    with _open_run(context, training) as log:
        evaluation = _evaluate(context, training, log)
    return JobSummary(notes=headline(evaluation))


def run_register_job(context: JobContext) -> JobSummary:
    """Registers the bundle of the day's training."""
    training = _open(context)
    refuse_erased(training)
    with _open_run(context, training) as log:
        return JobSummary(notes=_register(context, training, log))


def run_lift_job(context: JobContext) -> JobSummary:
    """Measures what a model's features give a ranking model, on the requests that a day's training held out.

    Raises:
        NoLiftError: there are too few such requests.
    """
    training = _open(context)
    refuse_erased(training)
    bundle = _load_for_evaluation(context, training)
    held_out = find_lift_rows(training, bundle, context.options.own_columns)
    verdict = judge_lift(held_out, bundle, {})
    if verdict.missing:
        raise NoLiftError(day=training.day, reason=verdict.missing)
    print_lift(verdict.figures)
    path = context.options.out or Path(context.settings.storage.artifacts) / "lift" / f"{training.day}.json"
    if not context.dry_run:
        save_figures(verdict.figures, path)
    return JobSummary(notes={**lift_headline(verdict.figures), "file": str(path)})


def run_report_job(context: JobContext) -> JobSummary:
    """Writes the report of a release."""
    from models.report.build import run_report  # plots take a second to import, and only this job needs them

    return run_report(context)


def run_explain_job(context: JobContext) -> JobSummary:
    """Explains one request of one user."""
    from models.explain.job import run_explain

    return run_explain(context)


def _open(context: JobContext) -> Training:
    torch.set_num_threads(context.options.threads or threads_of_process())
    recipe = load_recipe(context.options.recipe or DEFAULT_RECIPE, context.options.set_recipe)
    needs_validation = not getattr(context.options, "allow_unvalidated", False)
    return open_training(context.settings, str(context.day), recipe, needs_validation=needs_validation)


def _open_run(context: JobContext, training: Training) -> AbstractContextManager[RunLog]:
    tags = {"day": training.day, "run_id": context.run_id, "recipe": training.recipe.name}
    return open_training_run(
        context.settings.mlflow, training.folder, name=f"training {training.day}", tags=tags
    )


def _evaluate(context: JobContext, training: Training, log: RunLog) -> Figures:
    options, split = context.options, context.options.split
    bundle = _load_for_evaluation(context, training)
    rows = find_evaluation_rows(training, split, bundle)
    num_targets = 0 if rows is None else len(rows.requests)
    skipped: dict[str, str] = {}
    evaluation: Figures = {
        "protocol": RELEASE_SPLIT,
        "split": split,
        "day": training.day,
        "model": str(options.model or bundle.folder),
        "is_simulated": bundle.is_simulated or (rows is not None and rows.is_simulated),
        "skipped": skipped,
    }
    impressions = read_impressions(training, split)
    num_requests = 0 if impressions is None else impressions.num_rows
    if rows is None:
        skipped |= dict.fromkeys(("next_poi", "ranking"), f"no {split} row of pretrain_samples")
    elif impressions is None:
        skipped["ranking"] = f"no {split} row of ranking_samples"
    if rows is not None:
        next_poi = evaluate_next_poi(rows.draw(options.max_targets), bundle)
        evaluation["next_poi"] = next_poi | {"drawn_of": num_targets}
        if num_targets:
            evaluation["new_places"] = evaluate_new_places(rows.draw(options.max_targets), bundle)
    if rows is not None and impressions is not None:
        drawn = impressions.take(draw_evenly(num_requests, options.max_targets))
        learns_interests = training.recipe.pretrain.interests.enabled and "pretrain" in bundle.stage_names
        ranking = evaluate_ranking(drawn, rows.count_visits(), bundle, towers_before_sft=learns_interests)
        evaluation["ranking"] = ranking | {"requests": drawn.num_rows, "requests_drawn_of": num_requests}
    if evaluation["is_simulated"] and "pretrain" in bundle.stage_names:
        decoder = bundle.model("pretrain", "cpu")
        is_version = pds.field("index_version") == decoder.config.index_version
        index = read_table(training.table("poi_index"), (*POI_COLUMNS, "text"), is_version)
        if not np.isnan(probe := probe_attribute(decoder, index)):
            evaluation["attribute_probe"] = probe
    for task, reason in skipped.items():
        LOGGER.warning("%s is not evaluated: %s", task, reason)
        log.log_tags({f"not_evaluated.{task}": reason})
    print_figures(evaluation)
    if not context.dry_run:
        log.log_file(save_figures(evaluation, training.folder / EVALUATION_FILE))
        log_figures(evaluation, log)
    return evaluation


def _load_for_evaluation(context: JobContext, training: Training) -> ModelBundle:
    uri = context.options.model or str(training.bundle_folder)
    return load_bundle(resolve_model(uri, context.settings)[0])


def _register(
    context: JobContext,
    training: Training,
    log: RunLog,
    held_out: EvaluationRows | None = None,
    choice: GeneratorChoice | None = None,
) -> dict[str, object]:
    bundle = load_bundle(training.bundle_folder)
    champions = find_champions(context.settings, bundle.layout.index_version)
    rows = held_out or find_evaluation_rows(training, "val", bundle)
    if rows is not None:
        for champion in champions.values():
            rows = add_finder(rows, training, champion)
    verdict = judge_bundle(
        rows,
        read_impressions(training, "val"),
        bundle,
        champions,
        choice=choice,
        held_out=find_lift_rows(training, bundle),
    )
    assert verdict.lift is not None
    found: dict[str, object] = {
        "gate": asdict(verdict.next_poi) | {"reasons": verdict.reasons},
        "click_gate": without_nan(asdict(verdict.clicks)) if verdict.clicks else None,
        "embedding_gate": without_nan(asdict(verdict.embeddings)) if verdict.embeddings else None,
        "lift_gate": without_nan(asdict(replace(verdict.lift, figures={}))),
    }
    if verdict.lift.figures:
        print_lift(verdict.lift.figures)
        found |= lift_headline(verdict.lift.figures)
    if context.dry_run:
        return found
    # Also if there is no lift: the figures of an earlier model of the day are not this one's.
    save_figures(verdict.lift.figures or {"missing": verdict.lift.missing}, training.folder / LIFT_FILE)
    log.log_file(training.folder / LIFT_FILE)
    strict = getattr(context.options, "strict", False)
    registration = register_bundle(bundle, verdict, context.settings, log, strict=strict)
    return {"model_version": registration.model_version, "is_champion": registration.is_champion, **found}


def _plan(training: Training, stages: tuple[str, ...]) -> JobSummary:
    """Returns the inputs that would be read; trains and writes nothing."""
    root = training.settings.storage.root
    names = dict.fromkeys(name for stage in stages for name in tables_of(stage, training.recipe))
    pins = {name: pin_table(root, name, training.day, training.pins.get(name)) for name in names}
    rows = sum(pins[name].num_rows for name in dict.fromkeys(STAGE_TABLES[stage][0] for stage in stages))
    notes: dict[str, object] = {"folder": str(training.folder), "recipe": training.recipe.name}
    return JobSummary(rows_in=rows, tables={name: pin.version for name, pin in pins.items()}, notes=notes)


def _summarise(training: Training, results: dict[str, TrainResult]) -> JobSummary:
    rows = sum(training.pins[STAGE_TABLES[stage][0]].num_rows for stage in results)
    notes: dict[str, object] = {"bundle": str(training.bundle_folder), "simulated": training.is_simulated}
    for stage, result in results.items():
        value, config = result.best_value, getattr(training.recipe, stage)
        notes[f"{stage}_val_{config.criterion}"] = "no validation rows" if value is None else round(value, 4)
    if training.skipped:
        notes["skipped"] = dict(training.skipped)
    steps = {stage: result.seconds for stage, result in results.items()}
    return JobSummary(rows_in=rows, notes=notes, steps=steps)


def _timed(steps: dict[str, float], name: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    try:
        return work()
    finally:
        steps[name] = time.perf_counter() - started
