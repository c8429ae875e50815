"""The click half of the gate, on scores that are written down."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from models.registry.click_gate import judge_clicks, reverse_candidates

HIGH, LOW = 2.2, -2.2  # click probabilities of about 0.9 and 0.1
SAMPLES = pa.table(
    {
        "request_id": [f"r{number:02d}" for number in range(20)],
        "user_id": [f"u{number % 10}" for number in range(20)],
        "candidate_poi_ids": [["liked", "other"]] * 20,
        # In 18 of 20 requests the liked POI is clicked, in 2 the other: what 0.9 and 0.1 promise.
        "labels": [[1, 0]] * 18 + [[0, 1]] * 2,
    }
)


@pytest.fixture
def bundle_scoring(monkeypatch):
    """Makes bundles that score a request by a function of its candidates."""
    monkeypatch.setattr(
        "models.registry.click_gate.score_candidates",
        lambda bundle, batch: [
            bundle.score(row["candidate_poi_ids"], batch.num_rows) for row in batch.to_pylist()
        ],
    )
    return lambda score: SimpleNamespace(stage_names=("sft_ranking",), score=score)


def by_poi(high: float, low: float):
    """Scores that depend on the POI alone."""
    return lambda pois, num_requests: np.array([high if poi == "liked" else low for poi in pois], np.float32)


def test_scores_that_mean_what_they_say_pass(bundle_scoring):
    verdict = judge_clicks(
        SAMPLES, bundle_scoring(by_poi(HIGH, LOW)), {"m/1": bundle_scoring(by_poi(HIGH, LOW))}
    )

    assert verdict.reasons == ()
    assert verdict.auc == pytest.approx(0.9)
    assert verdict.calibration_error < 0.01


def test_probabilities_worse_than_the_champions_are_refused(bundle_scoring):
    sure_of_itself = bundle_scoring(by_poi(4.0, -4.0))  # 0.98 and 0.02: each 0.08 off

    verdict = judge_clicks(SAMPLES, sure_of_itself, {"m/1": bundle_scoring(by_poi(HIGH, LOW))})

    assert len(verdict.reasons) == 1
    assert "calibration error 0.0820 is above the champion's 0.0" in verdict.reasons[0]


def test_an_order_worse_than_the_champions_is_refused(bundle_scoring):
    verdict = judge_clicks(
        SAMPLES, bundle_scoring(by_poi(0.0, 0.0)), {"m/1": bundle_scoring(by_poi(HIGH, LOW))}
    )

    assert verdict.reasons == (
        "click AUC 0.5000 is not above chance: its 95 % interval by user begins at 0.5000",
        "click AUC 0.5000 is below the champion's 0.9000",
    )


@pytest.mark.parametrize(
    "score",
    [
        lambda pois, num_requests: np.arange(len(pois), dtype=np.float32),  # by position
        lambda pois, num_requests: np.full(len(pois), num_requests, np.float32),  # by what else is asked
    ],
)
def test_scores_that_depend_on_anything_else_are_refused(bundle_scoring, score):
    reasons = judge_clicks(SAMPLES, bundle_scoring(score), {}).reasons

    assert any("depending on what it is asked with" in reason for reason in reasons)


@pytest.mark.operations("2")
def test_without_a_champion_there_are_absolute_limits(bundle_scoring):
    negated = judge_clicks(SAMPLES, bundle_scoring(by_poi(LOW, HIGH)), {})

    assert negated.auc == pytest.approx(0.1)
    assert "is not above chance" in negated.reasons[0]
    assert "say less than the base rate" in negated.reasons[1]


@pytest.mark.operations("2")
def test_what_is_not_a_number_is_refused(bundle_scoring):
    verdict = judge_clicks(SAMPLES, bundle_scoring(by_poi(np.nan, LOW)), {})

    assert verdict.reasons[0] == "20 of 40 click logits are not finite numbers"
    assert len(verdict.reasons) == 4  # nor does anything that follows from them pass


def test_a_champion_that_is_not_a_number_sets_no_mark(bundle_scoring):
    champions = {"m/1": bundle_scoring(by_poi(np.nan, np.nan))}

    assert judge_clicks(SAMPLES, bundle_scoring(by_poi(HIGH, LOW)), champions).reasons == ()


def test_the_best_of_the_last_champions_sets_the_mark(bundle_scoring):
    champions = {"m/2": bundle_scoring(by_poi(0.1, 0.0)), "m/1": bundle_scoring(by_poi(HIGH, LOW))}

    verdict = judge_clicks(SAMPLES, bundle_scoring(by_poi(0.0, 0.0)), champions)

    assert verdict.champion_auc == pytest.approx(0.9)


@pytest.mark.operations("2")
@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (None, "there is no validation row of ranking_samples"),
        (SAMPLES.slice(0, 0), "there is no validation row of ranking_samples"),
        (
            SAMPLES.set_column(3, "labels", pa.array([[0, 0]] * 20)),
            "all 40 validation impressions are not clicked",
        ),
    ],
)
def test_without_both_classes_there_is_no_verdict_and_no_promotion(bundle_scoring, samples, told):
    (reason,) = judge_clicks(samples, bundle_scoring(by_poi(HIGH, LOW)), {}).reasons

    assert reason == f"clicks: no verdict, {told}"


def test_a_bundle_that_scores_nothing_is_not_judged():
    assert judge_clicks(SAMPLES, SimpleNamespace(stage_names=("pretrain",)), {}) is None


def test_candidates_are_reversed_and_the_rest_stays():
    batch = SAMPLES.slice(18, 1).to_batches()[0]

    (row,) = reverse_candidates(batch).to_pylist()

    assert row == {
        "request_id": "r18",
        "user_id": "u8",
        "candidate_poi_ids": ["other", "liked"],
        "labels": [1, 0],
    }
