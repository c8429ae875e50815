"""The lists that two systems show: what is recalled for a request, and who ranks it.

The online system recalls by rule, the nearest POIs and the user's own, and ranks by the ranking team's model on such a
team's own features. Ours adds what the generator finds most probable, and the same ranking model has the vectors and
the click log-odds beside. Both are trained on the same rows. Everything is as known at the end of the day before.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from models.copying.crowd_candidates import SlotFinder
from models.copying.crowd_tables import read_catalogue
from models.data.arrays import BoolArray, Float64Array, IntArray
from models.data.catalogue import Catalogue, day_ms
from models.data.dataset import TableAt, read_table
from models.data.geo import distance_km
from models.explain.job import open_crowd
from models.lift.features import BASE_FEATURES, Exposures, History, build_base_features
from models.lift.held_out import ACTION_NAMES, SHOWN_NAMES, HeldOut, gather_history
from models.lift.measure import (
    Cut,
    LiftFeatures,
    cut_by_time,
    feature_sets,
    fit_components,
    train_base,
    train_on,
)
from models.lift.ranker import Components, Ranker, RankerConfig, candidate_configs
from models.registry.held_out import find_lift_rows
from models.serving.bundle import ModelBundle
from models.serving.inference import generate_candidates
from tests.bench.online.experiment import Experiment
from udfs.features.requests import REQUEST_NAMES, with_defaults, with_history

Lists = list[IntArray]
"""Rows of the catalogue per request."""


@dataclass(frozen=True)
class Morning:
    """What is known when the requests of a day are answered.

    Attributes:
        samples: the requests with histories as of the day before, in the form of `ranking_samples`.
        catalogue: the POIs.
        may_be_shown: (requests, POIs), live on the day, and of a category that the platform shows.
        history: actions and exposures of all users before the day.
        finder: finder of crowd candidates; None if the model does not copy from the crowd.
    """

    samples: pa.Table
    catalogue: Catalogue
    may_be_shown: BoolArray
    history: History
    finder: SlotFinder | None = None

    def nearest_and_own(self, num_nearest: int) -> Lists:
        """Recalls by rule: the nearest POIs, and all where the user has been."""
        lon, lat = (self.samples[name].to_numpy()[:, None] for name in ("user_lon", "user_lat"))
        away = distance_km(lon, lat, self.catalogue.lons[None, :], self.catalogue.lats[None, :])
        away = np.where(self.may_be_shown, away, np.inf)
        nearest = np.argsort(away, axis=1, kind="stable")[:, :num_nearest]
        found = []
        for number, near in enumerate(nearest):
            blocks, inners = (
                self.samples[name][number].values.to_numpy() for name in ("block_ids", "inner_ids")
            )
            own = self.catalogue.find_rows(blocks, inners)
            both = np.unique(np.concatenate([near, own[own >= 0]]))
            found.append(both[self.may_be_shown[number, both]])
        return found

    def generated(self, bundle: ModelBundle, num: int) -> Lists:
        """Generates the most probable POIs of each request, best first; those that are not shown are left out.

        More are generated than asked for, since homes, offices and stations are among the most probable.
        """
        batch = self.samples.combine_chunks().to_batches()[0]
        lists = generate_candidates(bundle, batch, self.catalogue, top_k=4 * num, finder=self.finder)
        return [made.pois[self.may_be_shown[number, made.pois]][:num] for number, made in enumerate(lists)]

    def with_candidates(self, lists: Sequence[IntArray]) -> pa.Table:
        """Returns the requests with these candidates, in the form of `ranking_samples`; no label is known."""
        rows = np.concatenate(lists) if lists else np.zeros(0, np.int64)
        offsets = pa.array(np.cumsum([0, *map(len, lists)]).astype(np.int32))
        catalogue = self.catalogue
        values = {
            "candidate_poi_ids": pa.array(catalogue.poi_ids[rows], pa.string()),
            "candidate_block_ids": pa.array(catalogue.block_ids[rows].astype(np.int32)),
            "candidate_inner_ids": pa.array(catalogue.inner_ids[rows].astype(np.int32)),
            "candidate_lons": pa.array(catalogue.lons[rows].astype(np.float32)),
            "candidate_lats": pa.array(catalogue.lats[rows].astype(np.float32)),
            "candidate_category_ids": pa.array(catalogue.category_ids[rows].astype(np.int32)),
            "labels": pa.array(np.zeros(len(rows), np.int32)),
        }
        samples = self.samples
        for name, flat in values.items():
            samples = samples.append_column(name, pa.ListArray.from_arrays(offsets, flat))
        return samples

    def take(self, numbers: IntArray) -> "Morning":
        """Returns the same morning for some of the requests."""
        return replace(
            self, samples=self.samples.take(pa.array(numbers)), may_be_shown=self.may_be_shown[numbers]
        )


@dataclass(frozen=True)
class RankingTeam:
    """The ranking team's model, on its own features and with ours, trained on the days before the A/B test.

    Attributes:
        rankers: base and both.
        parts: principal components of our vectors.
        config: settings of both.
        shown: exposures of those days and of all before, `SHOWN_NAMES`.
        bundle: our model.
    """

    rankers: dict[str, Ranker]
    parts: dict[str, Components]
    config: RankerConfig
    shown: pa.Table
    bundle: ModelBundle

    def order(self, which: str, morning: Morning, lists: Sequence[IntArray], top: int) -> Lists:
        """Ranks recalled POIs; returns the best of each request."""
        samples = morning.with_candidates(lists)
        exposures = Exposures.from_samples(samples, morning.catalogue)
        base = build_base_features(exposures, morning.catalogue, morning.history)
        features = LiftFeatures(base, BASE_FEATURES)
        if which != "base":
            hours = np.zeros(len(exposures))
            features = HeldOut(exposures, morning.catalogue, base, BASE_FEATURES, hours, True).features(
                self.bundle
            )
        scores = self.rankers[which].predict(feature_sets(features, self.parts, self.config)[which][0])
        return best_rows(scores, exposures.requests, exposures.rows, samples.num_rows, top)


def best_rows(scores: Float64Array, requests: IntArray, rows: IntArray, num_requests: int, top: int) -> Lists:
    """Returns the rows with the highest scores of each request, best first; of equal scores the lower row."""
    order = np.lexsort((rows, -scores, requests))
    starts = np.searchsorted(requests[order], np.arange(num_requests + 1))
    return [rows[order[start : min(stop, start + top)]] for start, stop in itertools.pairwise(starts)]


def train_team(experiment: Experiment, bundle: ModelBundle) -> RankingTeam:
    """Trains both rankers on the requests that the decoder has not learnt from; the last quarter stops them."""
    held_out = find_lift_rows(experiment.training, bundle)
    assert isinstance(held_out, HeldOut), held_out
    features = held_out.features(bundle)
    days = cut_by_time(held_out.timestamps_ms, held_out.exposures.requests)
    assert isinstance(days, Cut), days
    cut = Cut(days.train | days.val, days.test, np.zeros(len(days.test), bool))
    config, base = train_base(features, held_out.rows, cut, candidate_configs())
    parts = fit_components(features, cut, config)
    values, names = feature_sets(features, parts, config)["both"]
    rankers = {"base": base, "both": train_on(values, names, held_out.rows, cut, config)}
    of_day = pds.field("day") == experiment.trained
    shown = read_table(_table(experiment, "ranking_samples"), SHOWN_NAMES, of_day)
    return RankingTeam(rankers, parts, config, shown, bundle)


def open_morning(experiment: Experiment, team: RankingTeam, requests: DataFrame, day: date) -> Morning:
    """Reads what is known before a day."""
    before, version = day - timedelta(days=1), team.bundle.layout.index_version
    catalogue = read_catalogue(_table(experiment, "poi_index"), version)
    samples = _with_histories(experiment, requests, before, team.bundle.action_type_id)
    known = (pds.field("index_version") == version) & (pds.field("day") <= before)
    actions = read_table(_table(experiment, "cleaned_actions"), ACTION_NAMES, known)
    logged = [own for own in _logged(experiment, catalogue, before) if own.num_rows]
    shown = Exposures.from_samples(
        pa.concat_tables([team.shown, *(own.cast(team.shown.schema) for own in logged)]), catalogue
    )
    live = catalogue.live_mask(samples["request_ts_ms"].to_numpy())
    seen = Exposures.from_samples(team.shown, catalogue).rows
    categories = np.unique(catalogue.category_ids[seen[seen >= 0]])
    history = gather_history(actions, shown, catalogue, until_ms=day_ms(day))
    finder = open_crowd(experiment.settings, team.bundle, catalogue, before)
    may_be_shown = live & np.isin(catalogue.category_ids, categories)
    return Morning(samples, catalogue, may_be_shown, history, finder)


def _with_histories(
    experiment: Experiment, requests: DataFrame, before: date, action_type_id: int
) -> pa.Table:
    spark: SparkSession = requests.sparkSession
    sequences = spark.read.format("delta").load(_table(experiment, "action_sequences").location)
    asked = requests.withColumn("is_simulated", F.lit(True)).select(*REQUEST_NAMES, "is_simulated")
    known = with_defaults(
        with_history(asked, sequences.where(F.col("day") <= F.lit(before)), as_of=F.lit(before))
    )
    return known.withColumn("action_type_id", F.lit(action_type_id)).toArrow().sort_by("request_id")


def _logged(experiment: Experiment, catalogue: Catalogue, until: date) -> list[pa.Table]:
    """Reads what the arms showed up to a day, as ranking samples."""
    row_of = {poi: row for row, poi in enumerate(catalogue.poi_ids)}
    found, number = [], 1
    while (day := experiment.ab_day(number)) <= until:
        shown = pds.dataset(experiment.log_file(day, "impressions")).to_table().sort_by("request_id")
        ids = shown["request_id"].to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        offsets = pa.array(np.append(starts, len(ids)).astype(np.int32))
        rows = np.array([row_of[poi] for poi in shown["poi_id"].to_pylist()])
        lists = {
            "candidate_block_ids": catalogue.block_ids[rows].astype(np.int32),
            "candidate_inner_ids": catalogue.inner_ids[rows].astype(np.int32),
            "labels": shown["label"].to_numpy().astype(np.int32),
        }
        firsts = shown.take(pa.array(starts)).select(["user_id", "request_ts_ms"])
        for name, values in lists.items():
            firsts = firsts.append_column(name, pa.ListArray.from_arrays(offsets, pa.array(values)))
        found.append(firsts)
        number += 1
    return found


def _table(experiment: Experiment, name: str) -> TableAt:
    return TableAt(str(experiment.folder / "warehouse" / name))
