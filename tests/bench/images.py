"""What pictures of POIs add to ranking SFT beside texts, on simulated cities whose pictures alone show a look.

    python -m tests.bench.images --work FOLDER --seeds 501,502,503

The configuration `conf/bench/images.yaml` was committed before the first run; the recipe was not changed for it.
Ranking SFT is trained with nothing, texts, pictures, both, and as a control texts with the pictures of other POIs; all
start from the same pre-trained weights. A finished step is not repeated.
"""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from conf.results import record
from models.config import load_recipe
from models.evaluation.metrics import auc, bootstrap_auc_difference
from models.serving.inference import score_candidates
from tests.bench.posttraining_cells import Cells
from tests.bench.posttraining_city import City, make_city, open_city, read_requests
from tests.bench.posttraining_scores import read_catalogue, read_stretch

CONFIG = Path("conf/bench/images.yaml")
RECIPE = "conf/models/posttraining.yaml"
COMMAND = "make bench-images"
SEEDS = "501,502,503"
NEITHER, TEXTS, PICTURES, BOTH, CONTROL = (
    "pretrained", "multimodal", "pictures", "texts-and-pictures", "texts-and-shuffled",
)  # fmt: skip
KINDS = (NEITHER, TEXTS, PICTURES, BOTH, CONTROL)
PAIRS = {"gain": (BOTH, TEXTS), "pictures alone": (PICTURES, NEITHER), "control": (CONTROL, TEXTS)}
LOGGER = logging.getLogger(__name__)
Figures = dict[str, object]


def measure_city(city: City, recipe: str) -> Figures:
    """Measures a city; what its folder has already is not measured again."""
    path = city.folder / "images.json"
    if path.is_file():
        figures: Figures = json.loads(path.read_text())
        return figures
    make_city(city)
    cells = Cells(city, load_recipe(recipe))
    stretch = read_stretch(city, read_catalogue(city), "test")
    scores = {kind: _score(cells, kind) for kind in KINDS}
    labels, users = stretch.exposures.labels, stretch.exposures.users
    assert stretch.oracle is not None
    figures = {
        "config_hash": city.config_hash,
        "rows": len(labels),
        "auc": {kind: auc(values, labels) for kind, values in scores.items()}
        | {"oracle": auc(stretch.oracle, labels)},
        "differences": {},
    }
    for name, (kind, other) in PAIRS.items():
        difference = bootstrap_auc_difference(scores[kind], scores[other], labels, users)
        figures["differences"][name] = [difference.value, difference.low, difference.high]  # type: ignore[index]
    LOGGER.info("%s: %s", city.folder.name, figures)
    path.write_text(json.dumps(figures, indent=1))
    return figures


def _score(cells: Cells, kind: str) -> np.ndarray:
    """Returns the click logit of every exposure of the test days by ranking SFT of a kind."""
    stages = {"pretrain": cells.pretrained / "model", "sft_ranking": cells.sft("sft_ranking", kind) / "model"}
    bundle = cells.gather(f"ranking-{kind}", stages)
    batches = read_requests(cells.city, "test").combine_chunks().to_batches()
    logits = np.concatenate([np.concatenate(score_candidates(bundle, part)) for part in batches])
    LOGGER.info("%s: scored %s", cells.city.folder.name, kind)
    return logits.astype(np.float64)


def record_gain(cities: Mapping[int, Figures], folder: str) -> None:
    """Records the gain in points of AUC, the mean over the cities, and the lowest end of their intervals."""
    gains = {seed: [100 * value for value in _difference(found, "gain")] for seed, found in cities.items()}
    each = "; ".join(
        f"seed {seed}: {gain[0]:.2f} ({gain[1]:.2f} to {gain[2]:.2f} by user)" for seed, gain in gains.items()
    )
    table = "; ".join(
        f"{kind} " + ", ".join(f"{_auc(found, kind):.4f}" for found in cities.values())
        for kind in (*KINDS, "oracle")
    )
    control = ", ".join(f"{100 * _difference(found, 'control')[0]:.2f}" for found in cities.values())
    hashes = sorted({str(found["config_hash"]) for found in cities.values()})
    notes = (
        f"ranking SFT on test requests, texts and pictures over texts: {each}; AUC: {table}; texts with pictures of "
        f"other POIs over texts: {control}; the default descriptor (classical); simulated cities, configuration "
        f"{', '.join(hashes)}, one training each"
    )
    mean = math.fsum(gain[0] for gain in gains.values()) / len(gains)
    record("image-gain-ranking", round(mean, 4), "points", "> 0", COMMAND, notes, folder)
    lowest = min(gain[1] for gain in gains.values())
    record(
        "image-gain-ranking-low", round(lowest, 4), "points", "> 0", COMMAND, f"lowest end; {notes}", folder
    )


def _auc(found: Figures, kind: str) -> float:
    return float(found["auc"][kind])  # type: ignore[index]


def _difference(found: Figures, name: str) -> Sequence[float]:
    values: Sequence[float] = found["differences"][name]  # type: ignore[index]
    return values


def main() -> int:
    """Measures and records."""
    parser = argparse.ArgumentParser(description="What pictures add to ranking SFT, on simulated cities.")
    parser.add_argument("--work", type=Path, default=Path(".demo/images"), metavar="FOLDER")
    parser.add_argument("--seeds", default=SEEDS, metavar="LIST")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--results", default="results", metavar="FOLDER", help="empty = record nothing")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("models").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    cities = {
        int(seed): measure_city(open_city(int(seed), options.work, CONFIG), options.recipe)
        for seed in options.seeds.split(",")
    }
    if options.results:
        record_gain(cities, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
