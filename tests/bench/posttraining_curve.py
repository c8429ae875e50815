"""Table 8 as a curve: what pre-training is worth to both SFTs, by the number of labelled requests.

    python -m tests.bench.posttraining_curve --work FOLDER --seeds 401,402,403

For every number of SFT requests both SFTs are trained from scratch and from pre-trained weights, by one rule of
stopping. Baselines are rankers on the base features of Table 4, trained on the same requests: without more, with latent
classes of their clicks, and with latent classes of the visits of the pre-training days, the upper bound. Slices are
users without an SFT request, and POIs that were shown fewer than five times. Every city is simulated. A finished step
is not repeated.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from models.config import Recipe, load_recipe
from models.data.arrays import BoolArray, Float64Array, IntArray
from models.data.catalogue import Catalogue, day_ms
from models.data.dataset import read_table
from models.evaluation.metrics import auc, bootstrap_auc_difference
from models.evaluation.probes import embed_pois, probe_attribute, probe_classes
from models.lift.features import BASE_FEATURES, Exposures, History, build_base_features
from models.lift.ranker import NUM_RESAMPLES, Rows, candidate_configs, train_ranker
from models.network.checkpoint import load_stage
from models.serving.inference import POI_COLUMNS, encode_pois, encode_user_requests
from tests.bench.latent_classes import Classes, fit_classes
from tests.bench.posttraining_cells import Cells
from tests.bench.posttraining_city import MS_PER_DAY, City, make_city, open_city, read_requests
from tests.bench.posttraining_curve_page import (
    STAGES,
    STARTS,
    Curves,
    Figures,
    record_curve,
    write_page,
)
from tests.bench.posttraining_scores import embed, read_catalogue, read_history, score

LOGGER = logging.getLogger(__name__)
RECIPE = "conf/models/posttraining.yaml"
PAGE = Path("docs/posttraining-curve.md")
SEEDS = "401,402,403"
NUMBERS = (500, 2_000, 8_000, 0)
"""SFT requests; 0 = all."""
STRETCHES = ("sft", "sft-val", "test")
NUM_CLASSES = 12
FOLDS = 5
FEW_SHOWN = 5
"""A POI that the SFT requests show fewer times is cold."""


@dataclass(frozen=True)
class Shown:
    """Exposures with numbers of users and POIs.

    Attributes:
        exposures: one row per shown POI.
        base: (rows, features), the base features of Table 4.
        users: (rows,), number of the user.
    """

    exposures: Exposures
    base: Float64Array
    users: IntArray

    def rows(self, features: Float64Array) -> Rows:
        """Rows of the ranker."""
        own = self.exposures
        return Rows(features, own.labels, own.users, own.requests)


class Parts(NamedTuple):
    """The requests that a ranker trains on, stops on and is tested on."""

    train: Shown
    val: Shown
    test: Shown


class Curve:
    """The curve of one city."""

    def __init__(self, cells: Cells) -> None:
        self.cells, self.city = cells, cells.city
        self.catalogue = read_catalogue(self.city)
        self.groups = _group(self.catalogue)
        self.history = read_history(self.city, self.catalogue)
        asked = [
            read_requests(self.city, name)["user_id"].to_numpy(zero_copy_only=False) for name in STRETCHES
        ]
        visitors, _ = read_visits(self.city, self.catalogue)
        # Sorted: the first guess of the latent classes must not depend on what is measured first.
        self.users = np.unique(np.concatenate([*asked, visitors]).astype(str))

    def _describe(self, exposures: Exposures, history: History) -> Shown:
        base = build_base_features(exposures, self.catalogue, history)
        return Shown(exposures, base, self._number(exposures.users))

    def _number(self, users: np.ndarray) -> IntArray:
        return np.searchsorted(self.users, users).astype(np.int64)

    def measure(self, number: int) -> Figures:
        """Measures one number of SFT requests, 0 = all."""
        parts = self._read_parts(number)
        train, test = parts.train, parts.test
        cold = self._cold(train, test)
        found: Figures = {
            "requests": train.exposures.samples.num_rows,
            "cold_rows": {name: int(part.sum()) for name, part in cold.items()},
        }
        predictions = self._rankers(parts)
        for start in STARTS:
            users, pois = embed(self.cells, start, "test", self.catalogue, number)
            predictions[f"embedding-{start}"] = (users * pois).sum(axis=1)
            predictions[f"ranking-{start}"] = score(self.cells, start, "test", number)
        labels, people = test.exposures.labels, test.exposures.users
        for name, scores in predictions.items():
            found[name] = {"auc": auc(scores, labels)} | {
                part: auc(scores[rows], labels[rows]) for part, rows in cold.items()
            }
            LOGGER.info("%s, %s requests, %s: %s", self.city.folder.name, number or "all", name, found[name])
        for stage in STAGES:
            gain = bootstrap_auc_difference(
                predictions[f"{stage}-pretrained"], predictions[f"{stage}-scratch"], labels, people,
                num_resamples=NUM_RESAMPLES,
            )  # fmt: skip
            found[f"{stage}-gain"] = {"value": gain.value, "low": gain.low, "high": gain.high}
        return found

    def _read_parts(self, number: int) -> Parts:
        """Reads the requests that SFT trains on and chooses by, and those of the test.

        Base features count clicks and exposures of the training requests alone: others would add labels that SFT lacks.
        """
        train, val = self._read_split(number, "train", "sft"), self._read_split(number, "val", "sft-val")
        history = only_shown(self.history, train)
        test = Exposures.from_samples(read_requests(self.city, "test"), self.catalogue)
        return Parts(*(self._describe(own, history) for own in (train, val, test)))

    def _read_split(self, number: int, split: str, stretch: str) -> Exposures:
        chosen = read_table(self.city.few_sft_samples(number), ("request_id", "split"))
        ids = chosen.filter(pc.equal(chosen["split"], split))["request_id"]
        samples = read_requests(self.city, stretch)
        kept = samples.filter(pc.is_in(samples["request_id"], ids.combine_chunks()))
        return Exposures.from_samples(kept, self.catalogue)

    def _cold(self, train: Shown, test: Shown) -> dict[str, BoolArray]:
        times = np.bincount(train.exposures.rows, minlength=len(self.catalogue))
        return {
            "cold_users": ~np.isin(test.users, train.users),
            "cold_pois": times[test.exposures.rows] < FEW_SHOWN,
        }

    def _rankers(self, parts: Parts) -> dict[str, Float64Array]:
        none = [np.zeros((len(shown.base), 0)) for shown in parts]
        return {
            "base": self._rank(parts, none),
            "labels alone": self._rank(parts, self._classes_of_labels(parts)),
            "visits": self._rank(parts, self._classes_of_visits(parts)),
        }

    def _rank(self, parts: Parts, added: Sequence[Float64Array]) -> Float64Array:
        train, val, test = (
            shown.rows(np.hstack([shown.base, more])) for shown, more in zip(parts, added, strict=True)
        )
        names = (*BASE_FEATURES, *(f"classes_{n}" for n in range(added[0].shape[1])))
        rankers = [train_ranker(train, val, names, config) for config in candidate_configs()]
        best = min(rankers, key=lambda ranker: ranker.val_loss)
        return best.predict(test.features)

    def _classes_of_labels(self, parts: Parts) -> list[Float64Array]:
        """Classes of clicked POIs; those for a fold of the training rows are fitted on the other folds."""
        train = parts.train
        folds = train.exposures.requests % FOLDS
        own = np.zeros((len(train.base), 1))
        clicked = train.exposures.labels == 1
        for fold in range(FOLDS):
            classes = self._fit(
                train.users[clicked & (folds != fold)], train.exposures.rows[clicked & (folds != fold)]
            )
            own[folds == fold] = self._ratios(classes, train)[folds == fold]
        classes = self._fit(train.users[clicked], train.exposures.rows[clicked])
        return [own, self._ratios(classes, parts.val), self._ratios(classes, parts.test)]

    def _classes_of_visits(self, parts: Parts) -> list[Float64Array]:
        users, pois = read_visits(self.city, self.catalogue)
        classes = self._fit(self._number(users), pois)
        return [self._ratios(classes, shown) for shown in parts]

    def _fit(self, users: IntArray, pois: IntArray) -> Classes:
        known = pois >= 0
        pairs = np.unique(np.stack([users[known], pois[known]]), axis=1)
        return fit_classes(pairs[0], pairs[1], self.groups, NUM_CLASSES)

    def _ratios(self, classes: Classes, shown: Shown) -> Float64Array:
        return classes.log_ratios(shown.users, shown.exposures.rows)[:, None]


def only_shown(history: History, shown: Exposures) -> History:
    """Returns a history in which nothing else was shown."""
    times = shown.samples["request_ts_ms"].to_numpy().astype(np.int64)[shown.requests]
    return replace(history, shown_rows=shown.rows, shown_times=times, shown_labels=shown.labels)


def _group(catalogue: Catalogue) -> IntArray:
    keys = catalogue.category_ids.astype(np.int64) << 32 | catalogue.block_ids
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def measure_probes(cells: Cells, catalogue: Catalogue) -> Figures:
    """Measures how well pre-training alone predicts the planted attribute, who likes it, and clicks."""
    city = cells.city
    pretrained = cells.pretrained / "model"
    decoder = load_stage(pretrained).eval()
    index = read_table(city.table("poi_index"), (*POI_COLUMNS, "text"))
    probe = probe_attribute(decoder, index)
    slots = catalogue.take(np.arange(len(catalogue)))
    vectors = embed_pois(decoder, slots)
    users, pois = read_visits(city, catalogue)
    names, rows = np.unique(users, return_inverse=True)
    visits = np.unique(np.stack([rows, pois])[:, pois >= 0], axis=1)
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, visits[0], vectors[visits[1]])
    sums /= np.sqrt(np.bincount(visits[0], minlength=len(names)).clip(min=1))[:, None]
    likings = pq.read_table(city.folder / "likings.parquet")
    likes = dict(zip(likings["user_id"].to_pylist(), likings["likes"].to_pylist(), strict=True))
    liking = probe_classes(sums, np.array([likes[name] for name in names.tolist()]))
    bundle = cells.gather("before-sft", {"pretrain": pretrained, "sft_embedding": pretrained})
    exposures = Exposures.from_samples(read_requests(city, "test"), catalogue)
    batches = exposures.samples.combine_chunks().to_batches()
    asked = np.concatenate([encode_user_requests(bundle, part) for part in batches])
    shown = encode_pois(bundle, slots)
    towers = (asked[exposures.requests] * shown[exposures.rows]).sum(axis=1)
    found: Figures = {"attribute": probe, "liking": liking, "towers_auc": auc(towers, exposures.labels)}
    LOGGER.info("%s: probes %s", city.folder.name, found)
    return found


def read_visits(city: City, catalogue: Catalogue) -> tuple[np.ndarray, IntArray]:
    """Reads user and catalogue row of every action of the pre-training days; row -1 = no slot of the catalogue."""
    names = ("user_id", "block_id", "inner_id", "action_ts_ms")
    actions = read_table(city.table("cleaned_actions"), names)
    early = actions["action_ts_ms"].to_numpy() < day_ms(city.days.pretrain) + MS_PER_DAY
    blocks, inners = (actions[name].to_numpy().astype(np.int64)[early] for name in names[1:3])
    users = actions["user_id"].to_numpy(zero_copy_only=False).astype(str)[early]
    return users, catalogue.find_rows(blocks, inners)


def measure_city(city: City, recipe: Recipe, numbers: Sequence[int]) -> Figures:
    """Measures the curve of a city; what its folder has already is not measured again."""
    path = city.folder / f"curve-{recipe.name}.json"
    figures: Figures = json.loads(path.read_text()) if path.is_file() else {"config_hash": city.config_hash}
    make_city(city)
    cells = Cells(city, recipe)
    curve: Curve | None = None
    for name in ("probes", *map(str, numbers)):
        if name in figures:
            continue
        curve = curve or Curve(cells)
        if name == "probes":
            figures[name] = measure_probes(cells, curve.catalogue)
        else:
            figures[name] = curve.measure(int(name))
        path.write_text(json.dumps(figures, indent=1))
    return figures


def main() -> int:
    """Measures, records and writes the page."""
    parser = argparse.ArgumentParser(description="Table 8 as a curve over SFT requests, on simulated cities.")
    parser.add_argument("--work", type=Path, default=Path(".demo/posttraining"), metavar="FOLDER")
    parser.add_argument("--seeds", default=SEEDS, metavar="LIST")
    parser.add_argument(
        "--numbers", default=",".join(map(str, NUMBERS)), metavar="LIST", help="0 = all requests"
    )
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("models").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    numbers = [int(number) for number in options.numbers.split(",")]
    recipe = load_recipe(options.recipe)
    cities = {
        int(seed): measure_city(open_city(int(seed), options.work), recipe, numbers)
        for seed in options.seeds.split(",")
    }
    curves = Curves(cities, numbers)
    record_curve(curves, options.results)
    write_page(curves, options.page, options.recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
