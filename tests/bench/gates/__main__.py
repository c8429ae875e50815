"""Tries the gates on clean nights and planted faults.

    python -m tests.bench.gates [--group tune|count] [--work FOLDER]

Records `gate-mutants-caught` (share of the harmful faults of the list `count` that the gate of a new model or the audit
of a night refuses) and `gate-false-alarms` (clean nights of 30, and new models, that they refuse). A fault that is not
shown to harm is not counted. With `--group tune` nothing is recorded: thresholds may be looked at on that list.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from conf.errors import SpacetimeError
from conf.results import record
from etl.spark.session import open_session
from models.config import load_recipe
from models.evaluation.impressions import Impressions
from models.jobs import DEFAULT_RECIPE
from models.registry.gate import judge_bundle
from models.registry.held_out import find_evaluation_rows, read_impressions
from models.serving.bundle import ModelBundle, load_bundle
from models.training.pipeline import open_training
from tests.bench.gates import input_mutants, model_mutants, night_mutants
from tests.bench.gates.mutant_list import Mutant, read_mutants
from tests.bench.gates.world import (
    FEATURES,
    NUM_NIGHTS,
    RECIPE,
    RETRAINED,
    World,
    day_of,
    live_through,
    make_world,
)

COMMAND = "make bench-gates"
Outcome = dict[str, object]


def say(text: str) -> None:
    """Prints progress."""
    print(text, file=sys.stderr, flush=True)


def try_models(world: World, mutants: list[Mutant]) -> Iterator[tuple[str, Outcome]]:
    """Plants faults in the model that was trained last and asks the gate, first as if there were no champion."""
    settings = world.settings
    recipe = load_recipe(DEFAULT_RECIPE, RECIPE)
    training = open_training(settings, str(day_of(RETRAINED)), recipe, needs_validation=True)
    clean = load_bundle(training.bundle_folder)
    samples, test = read_impressions(training, "val"), read_impressions(training, "test")
    rows, test_rows = (find_evaluation_rows(training, split, clean) for split in ("val", "test"))
    assert rows is not None
    assert test_rows is not None
    assert test is not None
    held_out = model_mutants.HeldOut(test_rows, Impressions.from_samples(test.combine_chunks()))
    usual = model_mutants.measure(clean, held_out)
    say(f"clean model: {usual}, {judge_bundle(rows, samples, clean, {}).reasons}")
    for mutant in mutants:
        bundle = model_mutants.plant(clean, mutant, world.folder / "mutant-bundle")
        harm = model_mutants.tell_harm(usual, model_mutants.measure(bundle, held_out))
        champions: list[dict[str, ModelBundle]] = [{}, {"gates/2": clean}]
        reasons: tuple[str, ...] = ()
        alone = True
        for known in champions:
            reasons = judge_bundle(rows, samples, bundle, known).reasons
            if reasons:
                break
            alone = False
        yield mutant.name, {"harm": harm, "caught": bool(reasons), "alone": alone, "by": list(reasons)}


def try_nights(world: World, mutants: list[Mutant]) -> Iterator[tuple[str, Outcome]]:
    """Plants faults in the features of the last night, or of the one that makes all POI vectors, and audits it."""
    for mutant in mutants:
        night = RETRAINED if mutant.severity.get("table") == "poi_embeddings" else NUM_NIGHTS
        changed = World(world.folder / FEATURES[night]).copy(world.folder / "mutant")
        spark = open_session(changed.settings, "gates")
        try:
            wrong = night_mutants.plant(changed, spark, mutant, day_of(night))
            failures = audit(changed, night)
        except SpacetimeError as error:  # the table's own contract did not take it
            wrong, failures = {"refused by the contract": 1.0}, [str(error)]
        harm = {table: share for table, share in wrong.items() if share >= night_mutants.WRONG_SHARE}
        yield mutant.name, {"harm": harm, "caught": bool(failures), "by": [text[:160] for text in failures]}


def try_inputs(world: World, mutants: list[Mutant]) -> Iterator[tuple[str, Outcome]]:
    """Plants faults in the delivery of the last night, runs it, and audits it."""
    for mutant in mutants:
        changed = World(world.folder / "eve").copy(world.folder / "mutant")
        spark = open_session(changed.settings, "gates")
        failures: list[str]
        try:
            changed.deliver(NUM_NIGHTS, input_mutants.change_of(mutant, changed, spark))
            changed.run("udfs", "features", "--day", str(day_of(NUM_NIGHTS)))
            failures = audit(changed, NUM_NIGHTS)
        except RuntimeError as error:  # a job of the night stopped
            failures = [str(error)]
        wrong = input_mutants.share_wrong(changed, World(world.folder / "features"))
        harm = {"actions": round(wrong, 4)} if wrong >= night_mutants.WRONG_SHARE else {}
        yield mutant.name, {"harm": harm, "caught": bool(failures), "by": [text[:160] for text in failures]}


def audit(world: World, night: int) -> list[str]:
    """Audits a night and returns what failed."""
    world.audit(night)
    path = world.folder / "artifacts" / "audits" / f"{day_of(night)}.json"
    failures: list[str] = json.loads(path.read_text())["failures"]
    return failures


def try_all(world: World, group: str, levels: Sequence[str]) -> dict[str, Outcome]:
    """Tries the faults of a list that were not tried yet in this folder; returns by fault what came of it."""
    path = world.folder / f"outcomes-{group}.json"
    outcomes: dict[str, Outcome] = json.loads(path.read_text()) if path.is_file() else {}
    for level, attempt in (("model", try_models), ("night", try_nights), ("input", try_inputs)):
        chosen = [each for each in read_mutants(group) if each.level == level and each.name not in outcomes]
        for name, outcome in attempt(world, chosen) if level in levels and chosen else ():
            say(f"{name}: {outcome}")
            outcomes[name] = outcome
            path.write_text(json.dumps(outcomes, indent=1))
    return outcomes


def count(outcomes: Mapping[str, Outcome]) -> tuple[int, int, list[str]]:
    """Returns the harmful faults, those of them that were caught, and the names of those that were not."""
    harmful = {name: outcome for name, outcome in outcomes.items() if outcome["harm"]}
    missed = [name for name, outcome in harmful.items() if not outcome["caught"]]
    return len(harmful), len(harmful) - len(missed), missed


def main() -> int:
    """Measures, records, and returns 0 if both bars are reached."""
    parser = argparse.ArgumentParser(
        description="Records what the gates catch, and what they refuse wrongly."
    )
    parser.add_argument("--group", choices=["tune", "count"], default="count")
    parser.add_argument(
        "--levels", nargs="+", choices=["model", "night", "input"], default=["model", "night", "input"]
    )
    parser.add_argument("--work", type=Path, help="folder that keeps the city, so that a stopped run goes on")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gates-") as temporary:
        world = make_world(options.work or Path(temporary))
        nights = live_through(world, say)
        alarms = {each["night"]: each["refused"] for each in nights if each["refused"]}
        outcomes = try_all(world, options.group, options.levels)
    harmful, caught, missed = count(outcomes)
    share = caught / harmful if harmful else 0.0
    unharmed = [name for name, outcome in outcomes.items() if not outcome["harm"]]
    notes = (
        f"simulated city of 300 users; {caught} of {harmful} harmful faults, missed {missed or 'none'}; "
        f"without harm and not counted: {unharmed or 'none'}"
    )
    warned = sum(1 for each in nights if each["warnings"])
    clean = (
        f"of {len(nights) - 1} clean nights and 2 trainings refused: {alarms or 'none'}; "
        f"nights with warnings: {warned}"
    )
    print(f"gate-mutants-caught {share:.3f}: {notes}\ngate-false-alarms {len(alarms)}: {clean}")
    if options.group == "tune" or len(options.levels) < 3:
        return 0
    done = [
        record("gate-mutants-caught", round(share, 4), "", ">= 0.95", COMMAND, notes, options.results),
        record("gate-false-alarms", len(alarms), "nights", "== 0", COMMAND, clean, options.results),
    ]
    return 0 if all(each.holds for each in done) else 1


if __name__ == "__main__":
    sys.exit(main())
