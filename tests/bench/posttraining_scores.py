"""Scores of the cells on later requests, and the figures of Tables 4, 8 and 9 made of them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.units import HOURS_PER_DAY
from etl.tables.preference_pairs import MEAL_HOURS, MEAL_LEVELS
from models.data.arrays import Float64Array
from models.data.catalogue import CATALOGUE_COLUMNS, Catalogue, day_ms
from models.data.dataset import read_table
from models.data.requests import local_hours
from models.evaluation.metrics import bootstrap_mean, hit_values
from models.lift.features import BASE_FEATURES, Exposures, History, build_base_features
from models.lift.held_out import ACTION_NAMES, gather_history
from models.lift.measure import Cut, LiftFeatures, measure_lift
from models.lift.ranker import NUM_RESAMPLES, RankerConfig, Rows, judge
from models.network.checkpoint import load_stage
from models.serving.inference import (
    encode_pois,
    encode_user_requests,
    generate_candidates,
    rank_targets_by_model,
    score_candidates,
)
from tests.bench.posttraining_cells import ALIGNMENTS, SFT_KINDS, Cells, name_cell
from tests.bench.posttraining_city import MS_PER_DAY, SYNTHETIC, City, read_requests

LOGGER = logging.getLogger(__name__)
NUM_GENERATED = 1_000
"""Test requests for which POIs are generated to see what the meal-time rule moves."""
NUM_CLICKS = 4_000
"""Clicked POIs of the test days that Table 9 ranks."""


@dataclass(frozen=True)
class Stretch:
    """Exposures of a stretch with the oracle's log-odds of each; None where nobody knows them."""

    exposures: Exposures
    oracle: Float64Array | None

    @property
    def rows(self) -> Rows:
        """Rows without features."""
        exposures = self.exposures
        return Rows(np.zeros((len(exposures), 0)), exposures.labels, exposures.users, exposures.requests)


def read_catalogue(city: City) -> Catalogue:
    """Reads the slots of the city."""
    return Catalogue.from_arrow(read_table(city.table("poi_index"), CATALOGUE_COLUMNS))


def read_stretch(city: City, catalogue: Catalogue, name: str) -> Stretch:
    """Reads the exposures of a stretch, of a simulated city with the oracle's log-odds."""
    exposures = Exposures.from_samples(read_requests(city, name), catalogue)
    if city.source != SYNTHETIC:
        return Stretch(exposures, None)
    oracle = pq.read_table(city.folder / "oracle.parquet")
    keys = pc.binary_join_element_wise(oracle["request_id"], oracle["poi_id"], "/")
    known = dict(zip(keys.to_pylist(), oracle["logit"].to_pylist(), strict=True))
    ids = exposures.samples["request_id"].to_numpy(zero_copy_only=False)[exposures.requests]
    pois = np.concatenate(exposures.samples["candidate_poi_ids"].to_pylist())
    return Stretch(exposures, np.array([known[f"{one}/{poi}"] for one, poi in zip(ids, pois, strict=True)]))


def measure_table4(cells: Cells) -> dict[str, object]:
    """Trains the ranker with every feature set and judges it on the test requests."""
    catalogue, city = read_catalogue(cells.city), cells.city
    history = read_history(city, catalogue)
    names = ("ranker", "ranker-val", "test")
    stretches = [read_stretch(city, catalogue, name) for name in names]
    lengths = [len(stretch.exposures) for stretch in stretches]
    part = np.repeat(np.arange(len(names)), lengths)
    vectors = [embed(cells, "multimodal", name, catalogue) for name in names]
    features = LiftFeatures(
        base=np.concatenate([build_base_features(own.exposures, catalogue, history) for own in stretches]),
        names=BASE_FEATURES,
        users=np.concatenate([users for users, _ in vectors]),
        pois=np.concatenate([pois for _, pois in vectors]),
        logits=np.concatenate([score(cells, "multimodal", name) for name in names]),
    )
    # Requests are numbered anew in every stretch.
    offsets = np.cumsum([0, *(own.exposures.samples.num_rows for own in stretches[:-1])])
    rows = Rows(
        np.zeros((len(part), 0)),
        np.concatenate([own.exposures.labels for own in stretches]),
        np.concatenate([own.exposures.users for own in stretches]),
        np.concatenate(
            [own.exposures.requests + offset for own, offset in zip(stretches, offsets, strict=True)]
        ),
    )
    oracles = [own.oracle for own in stretches if own.oracle is not None]
    oracle = np.concatenate(oracles) if oracles else None
    lift = measure_lift(features, rows, Cut(part == 0, part == 1, part == 2), [RankerConfig()], oracle=oracle)
    figures: Any = lift.figures
    for label, judged in figures["sets"].items():
        LOGGER.info("%s: table 4, %s: AUC %.4f", city.folder.name, label, judged["auc"])
    difference = figures["differences"]["both"]["auc"]
    everything = figures["sets"] | figures["baselines"]
    return {
        "requests": stretches[-1].exposures.samples.num_rows,
        **everything,
        "lift_interval": [difference["low"], difference["high"]],
        "auc": {name: float(judged["auc"]) for name, judged in everything.items()},
    }


def measure_table8(cells: Cells, kinds: Sequence[str] = SFT_KINDS) -> dict[str, object]:
    """Judges both SFT stages on the test requests: from scratch, pre-trained, and with POI vectors."""
    catalogue = read_catalogue(cells.city)
    exposures = Exposures.from_samples(read_requests(cells.city, "test"), catalogue)
    rows = Stretch(exposures, None).rows
    found: dict[str, dict[str, object]] = {"embedding": {}, "ranking": {}, "gauc": {}}
    for kind in kinds:
        users, pois = embed(cells, kind, "test", catalogue)
        for stage, scores in (
            ("embedding", (users * pois).sum(axis=1)),
            ("ranking", score(cells, kind, "test")),
        ):
            judged = judge(scores, rows)
            found[stage][kind] = judged.auc.value
            found[stage][f"{kind}_interval"] = [judged.auc.low, judged.auc.high]
            found["gauc"][f"{stage}_{kind}"] = judged.gauc
            LOGGER.info("%s: table 8, %s %s: AUC %.4f", cells.city.folder.name, stage, kind, judged.auc.value)
    return dict(found)


def measure_table9(cells: Cells) -> dict[str, object]:
    """Ranks later clicked POIs among all live ones, by the pre-trained model and the aligned ones."""
    catalogue = read_catalogue(cells.city)
    samples = read_requests(cells.city, "test")
    exposures = Exposures.from_samples(samples, catalogue)
    clicked = np.flatnonzero(exposures.labels == 1)
    _, first = np.unique(exposures.requests[clicked], return_index=True)
    chosen = clicked[first]
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(NUM_CLICKS, len(chosen))).astype(np.int64)]
    requests = samples.take(pa.array(exposures.requests[chosen])).combine_chunks().to_batches()[0]
    folders = {"pretrained": cells.pretrained, **{kind: cells.aligned(kind) for kind in ALIGNMENTS}}
    found: dict[str, object] = {"clicks": len(chosen)}
    for kind, folder in folders.items():
        ranks = rank_targets_by_model(
            load_stage(folder / "model"), requests, exposures.rows[chosen], catalogue
        )
        users = exposures.users[chosen]
        hits = {k: bootstrap_mean(hit_values(ranks, k), users, num_resamples=NUM_RESAMPLES) for k in (1, 10)}
        found[kind] = {f"hr_at_{k}": hit.value for k, hit in hits.items()} | {
            f"hr_at_{k}_interval": [hit.low, hit.high] for k, hit in hits.items()
        }
        LOGGER.info("%s: table 9, %s: %s", cells.city.folder.name, kind, found[kind])
    return found


def measure_meal_rule(cells: Cells) -> dict[str, object]:
    """Measures what pairs of the meal-time rule move: the share of places to eat among ten generated POIs.

    Both at meal times, where the rule speaks, and at other times, where nothing should move.
    """
    catalogue = read_catalogue(cells.city)
    samples = read_requests(cells.city, "test")
    picked = np.linspace(0, samples.num_rows - 1, min(NUM_GENERATED, samples.num_rows)).astype(np.int64)
    requests = samples.take(pa.array(picked)).combine_chunks().to_batches()[0]
    times, offsets = (
        requests.column(name).to_numpy().astype(np.int64) for name in ("request_ts_ms", "tz_offset_min")
    )
    hours = np.floor(local_hours(times, offsets)).astype(np.int64) % HOURS_PER_DAY
    is_meal_time = np.any([(hours >= start) & (hours < stop) for start, stop in MEAL_HOURS], axis=0)
    categories = read_table(cells.city.table("categories"), ("category_id", "category_path"))
    levels = [path.split(" > ")[0] for path in categories["category_path"].to_pylist()]
    meals = categories["category_id"].to_numpy()[np.isin(levels, MEAL_LEVELS)]
    is_meal = np.isin(catalogue.category_ids, meals)
    found: dict[str, object] = {"requests": len(picked)}
    for kind, folder in {"pretrained": cells.pretrained, "meal-time": cells.aligned("meal-time")}.items():
        bundle = cells.gather(kind, {"pretrain": folder / "model"})
        top = generate_candidates(bundle, requests, catalogue, top_k=10)
        share = np.array([is_meal[made.pois].mean() for made in top])
        found[kind] = {
            "meal_times": float(share[is_meal_time].mean()),
            "other_times": float(share[~is_meal_time].mean()),
        }
    LOGGER.info("%s: meal-time rule: %s", cells.city.folder.name, found)
    return found


def read_history(city: City, catalogue: Catalogue) -> History:
    """Reads all actions and exposures; transitions as of the last SFT day."""
    shown = Exposures.from_samples(
        read_requests(city, "sft", "sft-val", "ranker", "ranker-val", "test"), catalogue
    )
    actions = read_table(city.table("cleaned_actions"), ACTION_NAMES)
    return gather_history(actions, shown, catalogue, until_ms=day_ms(city.days.sft) + MS_PER_DAY)


def embed(
    cells: Cells, kind: str, stretch: str, catalogue: Catalogue, num_requests: int = 0
) -> tuple[Float64Array, Float64Array]:
    """Returns request-time user vectors and POI vectors of every exposure, (exposures, E) each."""
    name = name_cell(kind, num_requests)
    samples = read_requests(cells.city, stretch)
    exposures = Exposures.from_samples(samples, catalogue)

    def make() -> Float64Array:
        bundle, batch = cells.bundle(kind, num_requests), samples.combine_chunks().to_batches()
        return np.concatenate([encode_user_requests(bundle, part) for part in batch])

    users = _cached(cells.folder / f"users-{name}-{stretch}", make)
    slots = catalogue.take(np.arange(len(catalogue)))
    pois = _cached(
        cells.folder / f"pois-{name}", lambda: encode_pois(cells.bundle(kind, num_requests), slots)
    )
    return users[exposures.requests], pois[exposures.rows]


def score(cells: Cells, kind: str, stretch: str, num_requests: int = 0) -> Float64Array:
    """Returns the click logit of every exposure."""

    def make() -> Float64Array:
        samples = read_requests(cells.city, stretch)
        bundle, batches = cells.bundle(kind, num_requests), samples.combine_chunks().to_batches()
        return np.concatenate([np.concatenate(score_candidates(bundle, part)) for part in batches])

    return _cached(cells.folder / f"logits-{name_cell(kind, num_requests)}-{stretch}", make)


def _cached(path: Path, make: Callable[[], Float64Array]) -> Float64Array:
    file = path.with_suffix(".npy")
    if not file.is_file():
        values = make()
        with file.with_suffix(".partial").open("wb") as stream:
            np.save(stream, values, allow_pickle=False)
        file.with_suffix(".partial").rename(file)
    found: Float64Array = np.load(file, allow_pickle=False).astype(np.float64)
    return found
