"""The lift part of the gate: a challenger's features must not lift the ranking model less than a champion's.

Challenger and champions give features to the same ranking model on the same requests (`models/lift/measure.py`). The
challenger is refused if its best feature set ranks clicks worse than a champion's by more than `LIFT_TOLERANCE` of AUC,
and the paired interval by user says that this is no chance.
"""

import logging
import math
from dataclasses import dataclass, field

from models.data.arrays import Float64Array
from models.evaluation.metrics import bootstrap_auc_difference
from models.lift.held_out import HeldOut
from models.lift.measure import Lift, cut_by_time, measure_lift, take_rows
from models.lift.ranker import NUM_RESAMPLES, candidate_configs
from models.lift.show import best_set
from models.registry.champions import Champions
from models.serving.bundle import ModelBundle

LOGGER = logging.getLogger(__name__)
LIFT_TOLERANCE = 0.002
"""AUC by which the ranking model may be worse with the challenger's features than with a champion's."""


@dataclass(frozen=True)
class LiftVerdict:
    """The gate's verdict on the lift, on the same requests for all models.

    Attributes:
        figures: the challenger's lift; empty if there is none.
        auc: AUC of the ranking model with the challenger's features; nan if there is none.
        lift: this AUC minus that without features.
        champion_auc: the highest AUC with a champion's features; None = there is no champion to compare with.
        champion: the champion that gives it.
        difference: challenger minus champion, with the ends of its interval.
        missing: why there is no lift; empty if there is one.
        reasons: reasons against promotion; empty = none.
    """

    figures: dict[str, object] = field(repr=False)
    auc: float
    lift: float
    champion_auc: float | None = None
    champion: str = ""
    difference: tuple[float, float, float] | None = None
    missing: str = ""
    reasons: tuple[str, ...] = ()


def judge_lift(held_out: HeldOut | str, challenger: ModelBundle, champions: Champions) -> LiftVerdict:
    """Judges a challenger's lift.

    Args:
        held_out: requests that the challenger was not trained on; a text = why there are none.
        challenger: the new bundle.
        champions: the current and former champions of the same index version.
    """
    cut = (
        held_out
        if isinstance(held_out, str)
        else cut_by_time(held_out.timestamps_ms, held_out.exposures.requests)
    )
    if isinstance(held_out, str) or isinstance(cut, str):
        LOGGER.warning("the lift is not measured: %s", cut)
        return LiftVerdict({}, math.nan, math.nan, missing=str(cut))
    configs, test = candidate_configs(), take_rows(held_out.rows, cut.test)

    def measure(bundle: ModelBundle) -> Lift:
        features = held_out.features(bundle)
        return measure_lift(features, held_out.rows, cut, configs, hours=held_out.hours)

    own = measure(challenger)
    figures = {**own.figures, "is_simulated": held_out.is_simulated or challenger.is_simulated}
    best = best_set(own.figures)
    lift = auc_of(own, best) - auc_of(own, "base")
    rivals = {version: measure(bundle) for version, bundle in champions.items()}
    if not rivals:
        return LiftVerdict(figures, auc_of(own, best), lift)
    version = max(rivals, key=lambda name: auc_of(rivals[name], best_set(rivals[name].figures)))
    rival = rivals[version]
    scores: tuple[Float64Array, Float64Array] = (
        own.predictions[best],
        rival.predictions[best_set(rival.figures)],
    )
    interval = bootstrap_auc_difference(*scores, test.labels, test.users, num_resamples=NUM_RESAMPLES)
    reasons: tuple[str, ...] = ()
    if interval.value < -LIFT_TOLERANCE and interval.high < 0:
        reasons = (
            f"the ranking model has AUC {auc_of(own, best):.4f} with these features and "
            f"{auc_of(rival, best_set(rival.figures)):.4f} with those of {version}, on the same requests: "
            f"{interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})",
        )
    return LiftVerdict(
        figures, auc_of(own, best), lift, auc_of(rival, best_set(rival.figures)), version,
        (interval.value, interval.low, interval.high), reasons=reasons,
    )  # fmt: skip


def auc_of(lift: Lift, name: str) -> float:
    """Returns the AUC of a feature set."""
    sets = lift.figures["sets"]
    assert isinstance(sets, dict)
    return float(sets[name]["auc"])
