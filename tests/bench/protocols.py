"""Trains and scores the public next-POI protocols and records their figures.

    python -m tests.bench.protocols --data FOLDER --work FOLDER

FOLDER of --data holds the check-in folders (`fsq_nyc`, `fsq_nyc_table6`, `fsq_charlotte`, `fsq_calgary`,
`gowalla_nyc`, `gowalla_ca_exact`, `gowalla_ca_table6`); a folder that is not there is passed over, and its numbers stay
as they are. Every figure is the mean over the seeds; trained models stay in the folder of --work, so that a second run
only ranks.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from conf.results import record
from models.config import load_recipe
from models.evaluation.evaluate import print_figures, save_figures
from models.evaluation.figures import Figures
from models.protocols.run import MEAN, evaluate_protocol

RECIPE = "conf/models/checkins.yaml"
COMMAND = "make bench-protocols DATA=FOLDER"
FOLDERS = {
    "nyc-table6": "fsq_nyc",
    "nyc-table6-all": "fsq_nyc",
    "nyc-table6-notime": "fsq_nyc",
    "nyc-lim-all": "fsq_nyc",
    "nyc-lim-last": "fsq_nyc",
    "charlotte": "fsq_charlotte",
    "calgary": "fsq_calgary",
    "gowalla-nyc": "gowalla_nyc",
    "nyc-table6-true": "fsq_nyc_table6",
    "nyc-table6-history": "fsq_nyc",
    "ca-exact-all": "gowalla_ca_exact",
    "ca-exact-last": "gowalla_ca_exact",
    "ca-table6": "gowalla_ca_table6",
}
KERNEL = "recency-weighted visit baseline"
"""A bar that is this baseline's figure on the same rows."""
BASELINE_TITLES = {"kernel_counter": KERNEL, "visit_counter": "visit counts", "popularity": "popularity"}
BARS: dict[tuple[str, str], float | str] = {
    ("nyc-table6", "acc1"): 0.44,
    ("nyc-table6-all", "acc1"): 0.40,
    ("nyc-table6-notime", "acc1"): 0.318,
    ("ca-exact-all", "acc1"): 0.335,
    ("ca-table6", "acc1"): 0.28,
}
CITIES = ("charlotte", "calgary", "gowalla-nyc")
KEYS = {"acc1": "hr_at_1", "acc10": "hr_at_10", "mrr": "mrr"}
NEW_PLACES = {"nyc-table6-all": "nyc", "ca-exact-all": "ca-exact"}
"""Protocols whose new places have figures of their own, and what their names begin with."""
NEW_BARS = {
    "nyc-discoveries-acc10": ">= 0.055",
    "nyc-discoveries-all-acc10": ">= 0.78",
    "nyc-discoveries-conditional-acc10": ">= 0.155",
    "nyc-pnew-auc": ">= 0.87",
    "ca-exact-discoveries-acc10": ">= 0.32",
}
MINUTES_BAR = "<= 30"


def record_protocol(name: str, figures: Figures, folder: str) -> None:
    """Records the figures of one protocol."""
    notes = describe_run(figures)
    for short, key in KEYS.items():
        if name in CITIES and short != "acc1":
            continue
        wanted = BARS.get((name, short), KERNEL)
        baseline = mean_figure(figures, "kernel_counter", "all", key)
        bar = f">= {wanted}" if isinstance(wanted, float) else f">= {baseline:.4f}"
        value = mean_figure(figures, MEAN, "all", key)
        told = f"{notes}; {describe_baselines(figures, key)}; {describe_difference(figures, key)}"
        record(f"{name}-{short}", round(value, 4), "", bar, COMMAND, told, folder)


def record_new_places(name: str, figures: Figures, validation: Figures, folder: str) -> None:
    """Records what a protocol says of new places, at the shift that validation rows choose; nothing if none is new."""
    found, chosen_on = figures["new_places"], validation["new_places"]
    assert isinstance(found, dict)
    assert isinstance(chosen_on, dict)
    if not found["among_new"]["rows"]:
        return
    logit = choose_logit(chosen_on["curve"])
    point = next(point for point in found["curve"] if point["new_logit"] == logit)
    curve = "; ".join(
        f"{own['new_logit']:g}: {own['all']:.4f} {own['new']:.4f} {own['returns']:.4f}"
        for own in found["curve"]
    )
    among = found["among_new"]
    beside = ", ".join(
        f"{title} {own['hr_at_10']:.4f} (difference {own['difference']['value']:+.4f}, 95 % by users "
        f"{own['difference']['low']:+.4f} to {own['difference']['high']:+.4f})"
        for title, own in among["baselines"].items()
    )
    shift = f"logit {logit:g}, with the best Acc@10 of all validation rows"
    mixed = f"POIs new to their user among all POIs; {shift}; logit: Acc@10 of all, new and returned: {curve}"
    alone = f"{among['rows']} POIs new to their user, among those that are; on the same rows without training: {beside}"
    odds = (
        f"share of new {found['share_new']:.4f}, mean P(new) {found['mean_p_new']:.4f}, "
        f"calibration error {found['calibration']['expected_error']:.4f}"
    )
    told = {
        "discoveries-acc10": (point["new"], mixed),
        "discoveries-all-acc10": (point["all"], f"all rows; {shift}"),
        "discoveries-conditional-acc10": (among["hr_at_10"]["value"], alone),
        "pnew-auc": (found["p_new_auc"], odds),
    }
    for short, (value, notes) in told.items():
        full = f"{NEW_PLACES[name]}-{short}"
        notes = f"{notes}; {describe_run(figures)}"
        record(full, round(value, 4), "", NEW_BARS.get(full, ""), COMMAND, notes, folder)


def choose_logit(curve: Sequence[Mapping[str, float]]) -> float:
    """Returns the shift with the best Acc@10 of all rows; of equal ones, the largest."""
    return max((point["all"], point["new_logit"]) for point in curve)[1]


def mean_figure(figures: Figures, method: str, group: str, key: str) -> float:
    """Returns one figure of one method."""
    methods = figures["methods"]
    assert isinstance(methods, dict)
    return float(methods[method][group][key])


def describe_run(figures: Figures) -> str:
    """Says rows, digest, seeds and what each seed gave."""
    trainings = figures["trainings"]
    assert isinstance(trainings, dict)
    seeds = [method.removeprefix("model_seed_") for method in trainings]
    each = [f"{mean_figure(figures, method, 'all', 'hr_at_1'):.4f}" for method in trainings]
    return (
        f"{figures['rows']} rows of {figures['users']} users, digest {figures['digest']}; "
        f"mean of seeds {', '.join(seeds)} (acc1 {', '.join(each)}); recipe checkins"
    )


def describe_baselines(figures: Figures, key: str, group: str = "all") -> str:
    """Says what the baselines give on the same rows."""
    told = [
        f"{BASELINE_TITLES[name]} {mean_figure(figures, name, group, key):.4f}" for name in BASELINE_TITLES
    ]
    return "baselines on the same rows: " + ", ".join(told)


def describe_difference(figures: Figures, key: str) -> str:
    """Says how far the mean of the seeds is from the recency-weighted visit baseline, with its interval."""
    differences = figures["minus_kernel_counter"]
    assert isinstance(differences, dict)
    own = differences[MEAN][key]
    return f"minus recency-weighted visits {own['value']:+.4f}, 95 % by users {own['low']:+.4f} to {own['high']:+.4f}"


def record_minutes(work: Path, threads: int, folder: str) -> None:
    """Records the longest training on New York check-ins among the evaluations that the work folder holds."""
    minutes: dict[str, float] = {}
    for name in (name for name, data in FOLDERS.items() if data == "fsq_nyc"):
        path = work / f"{name}-test.json"
        if path.is_file():
            trainings = json.loads(path.read_text())["next_poi"]["trainings"]
            minutes[name] = max(own["seconds"] for own in trainings.values()) / 60
    if minutes:
        longest = max(minutes, key=lambda name: minutes[name])
        notes = f"longest of the trainings on New York check-ins ({longest}), {threads} CPU threads"
        record("nyc-train-minutes", round(minutes[longest], 2), "min", MINUTES_BAR, COMMAND, notes, folder)


def main() -> int:
    """Evaluates the protocols whose folders are there; returns 2 if none is."""
    parser = argparse.ArgumentParser(description="Records the figures of the public protocols in results/.")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=Path(".demo/protocols"), metavar="FOLDER")
    parser.add_argument("--protocols", default=",".join(FOLDERS), metavar="LIST")
    parser.add_argument("--seeds", default="0,1,2", metavar="LIST")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    recipe, seeds = load_recipe(options.recipe), [int(seed) for seed in options.seeds.split(",")]
    found = [name for name in options.protocols.split(",") if (options.data / FOLDERS[name]).is_dir()]
    for name in found:
        folder = options.data / FOLDERS[name]
        figures = evaluate_protocol(name, folder, recipe=recipe, seeds=seeds, work=options.work)
        evaluation = {"protocol": name, "split": "test", "next_poi": figures}
        print_figures(evaluation)
        save_figures(evaluation, options.work / f"{name}-test.json")
        record_protocol(name, figures, options.results)
        if name in NEW_PLACES:
            validation = evaluate_protocol(
                name, folder, split="val", recipe=recipe, seeds=seeds, work=options.work
            )
            record_new_places(name, figures, validation, options.results)
    record_minutes(options.work, options.threads, options.results)
    return 0 if found else 2


if __name__ == "__main__":
    sys.exit(main())
