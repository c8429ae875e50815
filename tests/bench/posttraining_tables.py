"""Measures Tables 4, 8 and 9 on simulated cities, and that nothing leaks; records the figures.

    python -m tests.bench.posttraining_tables --work FOLDER

The configuration `conf/bench/posttraining.yaml` was committed before; figures are means over the seeds, which were not
used while developing (of those that the configuration names, 101 was: a rate was put right by it, so 104 stands in for
it; the file stays as it is, since its hash goes with the figures). Writes a page beside the ledger. Cities and cells
stay in the folder of --work: what is done is not done again, so a run can be stopped at any time.
"""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from conf.results import record
from models.config import load_recipe
from tests.bench.posttraining_cells import Cells
from tests.bench.posttraining_city import City, make_city, make_null_city, open_city
from tests.bench.posttraining_page import write_page
from tests.bench.posttraining_scores import measure_meal_rule, measure_table4, measure_table8, measure_table9

PARTS = ("table8", "table4", "table9", "meal_rule", "null")
NULL_KINDS = ("multimodal",)
"""The SFT stages of the null city: those that table 4 takes."""
SEEDS = "102,103,104"
RECIPE = "conf/models/posttraining.yaml"
COMMAND = "make bench-posttraining"
PAGE = Path("docs/posttraining-tables.md")
LOGGER = logging.getLogger(__name__)
Figures = dict[str, object]


def measure_city(city: City, recipe: str, parts: Sequence[str]) -> Figures:
    """Measures parts in one city; returns all of its figures, those of its folder among them, not measured again."""
    path = city.folder / "figures.json"
    figures: Figures = json.loads(path.read_text()) if path.is_file() else {"config_hash": city.config_hash}
    make_city(city)
    cells = Cells(city, load_recipe(recipe))
    measures: dict[str, Callable[[], object]] = {
        "table8": lambda: measure_table8(cells),
        "table4": lambda: measure_table4(cells),
        "table9": lambda: measure_table9(cells),
        "meal_rule": lambda: measure_meal_rule(cells),
        "null": lambda: _measure_null(Cells(make_null_city(city), cells.recipe, pretrained=cells.pretrained)),
    }
    for name in parts:
        if name not in figures:
            figures[name] = measures[name]()
            path.write_text(json.dumps(figures, indent=1))
    return figures


def _measure_null(cells: Cells) -> Figures:
    return {"table4": measure_table4(cells), "table8": measure_table8(cells, NULL_KINDS)}


class Ledger:
    """Records figures, each the mean over the cities."""

    def __init__(self, all_figures: Mapping[int, Figures], folder: str) -> None:
        """Opens the ledger in `folder` for the figures of each seed."""
        self.all_figures, self.folder = all_figures, folder
        hashes = sorted({str(figures["config_hash"]) for figures in all_figures.values()})
        seeds = ", ".join(map(str, all_figures))
        self.about = f"simulated cities of seeds {seeds}, configuration {', '.join(hashes)}"

    def has(self, part: str) -> bool:
        """Was a part measured in every city."""
        return all(part in figures for figures in self.all_figures.values())

    def mean(self, *path: str) -> tuple[float, str]:
        """Returns the mean of a figure, and its values."""
        values = [_get(figures, path) for figures in self.all_figures.values()]
        return math.fsum(values) / len(values), ", ".join(f"{value:.4f}" for value in values)

    def write(self, name: str, value: float, unit: str, bar: str, told: str) -> None:
        """Records one claim."""
        record(name, round(value, 4), unit, bar, COMMAND, f"{told}; {self.about}", self.folder)


def record_tables(all_figures: Mapping[int, Figures], folder: str) -> None:
    """Records the claims of the parts that were measured in every city."""
    ledger = Ledger(all_figures, folder)
    writers = {
        "table4": _record_table4,
        "table8": _record_table8,
        "table9": _record_table9,
        "meal_rule": _record_meal_rule,
    }
    for part, write in writers.items():
        if ledger.has(part):
            write(ledger)


def _record_table4(ledger: Ledger) -> None:
    names = (
        "base", "embedding", "scores", "both", "distance", "popularity", "kernel", "oracle",
    )  # fmt: skip
    auc = {name: ledger.mean("table4", "auc", name) for name in names}
    sets = "; ".join(f"{name} {value:.4f} ({each})" for name, (value, each) in auc.items())
    intervals = [_get_list(figures, ("table4", "lift_interval")) for figures in ledger.all_figures.values()]
    told = f"AUC on test requests, mean and per seed: {sets}; lift intervals by user {intervals}"
    base, both, oracle = (auc[name][0] for name in ("base", "both", "oracle"))
    ledger.write("table4-lift-points", 100 * (both - base), "points", ">= 3.4", told)
    ledger.write("table4-oracle-share", (both - base) / (oracle - base), "", ">= 0.5", told)


def _record_table8(ledger: Ledger) -> None:
    for stage in ("embedding", "ranking"):
        kinds = {kind: ledger.mean("table8", stage, kind) for kind in ("scratch", "pretrained", "multimodal")}
        told = f"AUC of {stage} SFT on test requests: " + "; ".join(
            f"{kind} {value:.4f} ({each})" for kind, (value, each) in kinds.items()
        )
        # What pre-training gives is measured as a curve, by another command (posttraining_curve).
        gain = 100 * (kinds["multimodal"][0] - kinds["pretrained"][0])
        ledger.write(f"table8-multimodal-gain-{stage}", gain, "points", "> 0", told)


def _record_table9(ledger: Ledger) -> None:
    kinds = ("pretrained", "dpo", "s-dpo", "control")
    hits = {kind: tuple(ledger.mean("table9", kind, f"hr_at_{k}") for k in (1, 10)) for kind in kinds}
    told = "hr@1 / hr@10 of later clicked POIs among all live ones: " + "; ".join(
        f"{kind} {hr1[0]:.4f} / {hr10[0]:.4f} ({hr10[1]})" for kind, (hr1, hr10) in hits.items()
    )
    worst = min(hits[kind][1][0] for kind in ("dpo", "s-dpo"))
    gain = worst / hits["pretrained"][1][0] - 1
    told = f"the smaller of DPO and S-DPO, relative; {told}"
    ledger.write("table9-hr10-gain", 100 * gain, "%", ">= 5", told)


def _record_meal_rule(ledger: Ledger) -> None:
    shares = {
        (kind, when): ledger.mean("meal_rule", kind, when)[0]
        for kind in ("pretrained", "meal-time")
        for when in ("meal_times", "other_times")
    }
    moved = {
        when: shares["meal-time", when] - shares["pretrained", when] for when in ("meal_times", "other_times")
    }
    told = (
        "share of places to eat among ten generated POIs, before and after DPO by the meal-time rule: "
        + "; ".join(
            f"{when.replace('_', ' ')} {shares['pretrained', when]:.4f}, {shares['meal-time', when]:.4f}"
            for when in moved
        )
    )
    ledger.write("meal-rule-share-gain", 100 * moved["meal_times"], "points", "> 0", told)
    ledger.write("meal-rule-elsewhere", 100 * abs(moved["other_times"]), "points", "<= 2", told)


def record_null(figures: Figures, seed: int, folder: str) -> None:
    """Records how many scores tell clicks that depend on nothing from the rest."""
    null = figures["null"]
    assert isinstance(null, Mapping)
    found = {
        name: (own["auc"], own["auc_interval"])
        for name, own in null["table4"].items()
        if isinstance(own, Mapping) and "auc_interval" in own
    }
    for stage in ("embedding", "ranking"):
        own = null["table8"][stage]
        found |= {f"{stage} SFT {kind}": (own[kind], own[f"{kind}_interval"]) for kind in NULL_KINDS}
    off = [name for name, (_, (low, high)) in found.items() if not low <= 0.5 <= high]
    told = "; ".join(
        f"{name} {auc:.4f} ({low:.4f} to {high:.4f})" for name, (auc, (low, high)) in found.items()
    )
    notes = (
        f"AUCs whose 95 % interval by user excludes .5, of {len(found)}: {', '.join(off) or 'none'}; {told}"
    )
    notes += (
        f"; simulated city of seed {seed}, configuration {figures['config_hash']}, clicks drawn by chance"
    )
    record("null-city-auc", len(off), "scores", "<= 0", COMMAND, notes, folder)


def _describe(figures: Mapping[int, Figures], recipe: str) -> str:
    hashes = ", ".join(sorted({str(own["config_hash"]) for own in figures.values()}))
    return (
        f"Made by `{COMMAND}`; not written by hand. Cities of seeds {', '.join(map(str, figures))}, configuration "
        f"`conf/bench/posttraining.yaml` (hash {hashes}), recipe `{recipe}`. Every action and click is simulated."
    )


def _get(figures: object, path: Sequence[str]) -> float:
    for part in path:
        assert isinstance(figures, Mapping)
        figures = figures[part]
    assert isinstance(figures, float)
    return figures


def _get_list(figures: object, path: Sequence[str]) -> list[float]:
    for part in path:
        assert isinstance(figures, Mapping)
        figures = figures[part]
    assert isinstance(figures, list)
    return [round(value, 4) for value in figures]


def main() -> int:
    """Measures and records."""
    parser = argparse.ArgumentParser(description="Tables 4, 8 and 9 on simulated cities.")
    parser.add_argument("--work", type=Path, default=Path(".demo/posttraining"), metavar="FOLDER")
    parser.add_argument("--seeds", default=SEEDS, metavar="LIST")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        metavar="LIST",
        help="what to measure; null: of the first seed only",
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("models").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    parts = [name for name in PARTS if name in options.parts.split(",")]
    figures = {
        seed: measure_city(
            open_city(seed, options.work),
            options.recipe,
            parts if number == 0 else [p for p in parts if p != "null"],
        )
        for number, seed in enumerate(seeds)
    }
    record_tables(figures, options.results)
    write_page(
        {f"city {seed}": own for seed, own in figures.items()},
        options.page,
        title="Tables 4, 8 and 9 of the paper, measured again on simulated cities",
        about=_describe(figures, options.recipe),
    )
    if "null" in figures[seeds[0]]:
        record_null(figures[seeds[0]], seeds[0], options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
