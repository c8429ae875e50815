"""Figures: baselines in chunks as in one, groups that add up, JSON without nan."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from models.data.catalogue import Catalogue
from models.data.ranks import Ranks
from models.evaluation.figures import (
    compare_next_poi,
    describe_next_poi,
    describe_ranking,
    rank_baselines,
    without_nan,
)
from models.evaluation.release_split import EvaluationRows, build_rows


@pytest.fixture
def rows(city_tables) -> EvaluationRows:
    """Test rows of the city."""
    samples = city_tables["pretrain_samples"]
    splits = np.array(samples["split"].to_pylist())
    train, test = (samples.filter(pa.array(splits == split)) for split in ("train", "test"))
    return build_rows(train, test, Catalogue.from_arrow(city_tables["poi_index"]))


def test_baselines_scored_in_chunks_equal_baselines_scored_at_once(rows, monkeypatch):
    whole = rank_baselines(rows.requests, rows.counts, catalogue=rows.catalogue)
    monkeypatch.setattr("models.evaluation.figures.SCORES_PER_CHUNK", 7 * len(rows.catalogue))
    chunked = rank_baselines(rows.requests, rows.counts, catalogue=rows.catalogue)
    for name, ranks in whole.items():
        np.testing.assert_array_equal(ranks.expected, chunked[name].expected)


def test_pois_that_are_closed_push_nobody_down(rows):
    live = rank_baselines(rows.requests, rows.counts, catalogue=rows.catalogue)["popularity"]
    everything = rank_baselines(rows.requests, rows.counts)["popularity"]
    assert (live.num_equal + live.num_higher <= everything.num_equal + everything.num_higher).all()
    assert (
        int((live.num_higher + live.num_equal).max()) <= len(rows.catalogue) - 5
    )  # five are closed or not yet open


def test_returns_and_discoveries_add_up_to_all_rows(rows):
    ranks = Ranks(np.arange(120) % 7, np.ones(120, np.int64))
    figures = describe_next_poi(rows.requests, {"some": ranks})
    counts, own = figures["rows_by_group"], figures["methods"]["some"]
    assert counts["returns"] + counts["discoveries"] == counts["all"] == 120
    weighted = sum(counts[group] * own[group]["hr_at_1"] for group in ("returns", "discoveries"))
    assert weighted / 120 == pytest.approx(own["all"]["hr_at_1"])


def test_a_method_differs_from_itself_by_nothing(rows):
    ranks = Ranks(np.arange(120) % 7, np.ones(120, np.int64))
    for difference in compare_next_poi(rows.requests, ranks, ranks).values():
        assert difference == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_ranking_figures_carry_rows_digest_and_calibration():
    labels, users = np.array([1, 0, 1, 0]), np.array(["a", "a", "b", "b"])
    scores = np.array([0.9, 0.1, 0.8, 0.2])
    figures = describe_ranking(["1", "2", "3", "4"], users, labels, {"good": scores}, probabilities=scores)
    assert figures["methods"]["good"]["auc"]["value"] == figures["methods"]["good"]["gauc"] == 1.0
    assert figures["rows"] == 4
    assert figures["click_rate"] == 0.5
    assert sum(figures["calibration"]["counts"]) == 4


def test_json_of_figures_has_null_for_what_is_not_a_number():
    text = json.dumps(without_nan({"a": [math.nan, 1.0], "b": {"c": math.nan}}), allow_nan=False)
    assert json.loads(text) == {"a": [None, 1.0], "b": {"c": None}}
