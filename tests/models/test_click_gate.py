"""The click half of the gate, on scores that are written down."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from models.click_gate import judge_clicks, reverse_candidates

HIGH, LOW = 2.2, -2.2  # click probabilities of about 0.9 and 0.1
SAMPLES = pa.table(
    {
        "request_id": [f"r{number:02d}" for number in range(20)],
        "candidate_poi_ids": [["liked", "other"]] * 20,
        # In 18 of 20 requests the liked POI is clicked, in 2 the other: what 0.9 and 0.1 promise.
        "labels": [[1, 0]] * 18 + [[0, 1]] * 2,
    }
)


@pytest.fixture
def bundle_scoring(monkeypatch):
    """Makes bundles that score a request by a function of its candidates."""
    monkeypatch.setattr(
        "models.click_gate.score_candidates",
        lambda bundle, batch: [
            bundle.score(row["candidate_poi_ids"], batch.num_rows) for row in batch.to_pylist()
        ],
    )
    return lambda score: SimpleNamespace(stage_names=("sft_ranking",), score=score)


def by_poi(high: float, low: float):
    """Scores that depend on the POI alone."""
    return lambda pois, num_requests: np.array([high if poi == "liked" else low for poi in pois], np.float32)


def test_scores_that_mean_what_they_say_pass(bundle_scoring):
    verdict = judge_clicks(SAMPLES, bundle_scoring(by_poi(HIGH, LOW)), bundle_scoring(by_poi(HIGH, LOW)))

    assert verdict.reasons == ()
    assert verdict.auc == pytest.approx(0.9)
    assert verdict.calibration_error < 0.01


def test_probabilities_worse_than_the_champions_are_refused(bundle_scoring):
    sure_of_itself = bundle_scoring(by_poi(9.0, -9.0))  # 1 and 0: each 0.1 off

    verdict = judge_clicks(SAMPLES, sure_of_itself, bundle_scoring(by_poi(HIGH, LOW)))

    assert len(verdict.reasons) == 1
    assert "calibration error 0.09" in verdict.reasons[0] or "calibration error 0.1" in verdict.reasons[0]


def test_an_order_worse_than_the_champions_is_refused(bundle_scoring):
    verdict = judge_clicks(SAMPLES, bundle_scoring(by_poi(0.0, 0.0)), bundle_scoring(by_poi(HIGH, LOW)))

    assert verdict.reasons == ("AUC 0.5000 is below the champion's 0.9000",)


@pytest.mark.parametrize(
    "score",
    [
        lambda pois, num_requests: np.arange(len(pois), dtype=np.float32),  # by position
        lambda pois, num_requests: np.full(len(pois), num_requests, np.float32),  # by what else is asked
    ],
)
def test_scores_that_depend_on_anything_else_are_refused(bundle_scoring, score):
    (reason,) = judge_clicks(SAMPLES, bundle_scoring(score), None).reasons

    assert "depending on what it is asked with" in reason


def test_a_bundle_that_scores_nothing_is_not_judged():
    assert judge_clicks(SAMPLES, SimpleNamespace(stage_names=("pretrain",)), None) is None


def test_candidates_are_reversed_and_the_rest_stays():
    batch = SAMPLES.slice(18, 1).to_batches()[0]

    (row,) = reverse_candidates(batch).to_pylist()

    assert row == {"request_id": "r18", "candidate_poi_ids": ["other", "liked"], "labels": [1, 0]}
