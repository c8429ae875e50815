"""A model whose features lift the ranking model less than the champion's is refused; one that lifts more passes."""

from dataclasses import dataclass

import numpy as np
import pytest

from models.lift.measure import LiftFeatures
from models.registry import lift_gate
from models.registry.lift_gate import judge_lift
from tests.models.lift.planted import CONFIG, make_impressions


@dataclass(frozen=True)
class Bundle:
    """Stands for a model by how much of the planted taste its features show."""

    skill: float
    is_simulated: bool = True


@dataclass(frozen=True)
class HeldOut:
    """Held-out requests of the planted impressions."""

    is_simulated: bool = True

    @property
    def _made(self):
        return make_impressions(by_vectors=0.6, by_logit=0.8)

    @property
    def rows(self):
        return self._made[1]

    @property
    def timestamps_ms(self):
        return self._made[2]

    @property
    def hours(self):
        return self._made[2] / 3_600_000

    @property
    def exposures(self):
        return self.rows

    def features(self, bundle: Bundle) -> LiftFeatures:
        return make_impressions(by_vectors=0.6, by_logit=0.8, skill=bundle.skill)[0]


@pytest.fixture(autouse=True)
def small_trees(monkeypatch):
    monkeypatch.setattr(lift_gate, "candidate_configs", lambda: (CONFIG,))


def test_the_worse_model_is_refused_with_the_figures_and_the_better_one_passes():
    good, bad = Bundle(1.0), Bundle(0.2)

    refused = judge_lift(HeldOut(), bad, {"m/1": good})
    passed = judge_lift(HeldOut(), good, {"m/1": bad})

    assert len(refused.reasons) == 1
    for text in ("m/1", f"{refused.auc:.4f}", f"{refused.champion_auc:.4f}"):
        assert text in refused.reasons[0]
    assert passed.reasons == ()
    assert passed.auc == pytest.approx(refused.champion_auc)
    assert passed.difference[0] == pytest.approx(-refused.difference[0])
    assert judge_lift(HeldOut(), good, {"m/1": good, "m/0": bad}).difference == (0.0, 0.0, 0.0)


def test_the_best_of_the_champions_is_compared_with():
    verdict = judge_lift(HeldOut(), Bundle(0.5), {"m/1": Bundle(0.2), "m/2": Bundle(1.0)})
    assert verdict.champion == "m/2"
    assert verdict.reasons


def test_without_requests_there_is_no_lift_and_no_objection():
    verdict = judge_lift("no request of the test days", Bundle(1.0), {})
    assert verdict.reasons == ()
    assert verdict.missing == "no request of the test days"
    assert np.isnan(verdict.lift)
