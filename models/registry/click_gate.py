"""The click part of the gate: scores that do not depend on the batch, and calibrated probabilities.

Held-out ranking samples are scored as in the feature job.

- Parity: a request alone, or with its candidates in another order, gets the same scores as in a batch.
- Absolute limits: the whole 95 % interval of the AUC is above chance, and the log loss is not worse than that of
  predicting the base rate for every impression.
- Relative limits: calibration and AUC are at most a tolerance worse than the best of the last champions on the same
  impressions.

Results that are not numbers are refused, and a bundle that cannot be judged is not promoted.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.data.arrays import Float64Array, IntArray
from models.evaluation.impressions import Impressions
from models.evaluation.metrics import auc, bootstrap_auc, calibration_bins, exact_mean
from models.registry.champions import Champions
from models.serving.bundle import ModelBundle
from models.serving.inference import score_candidates

STAGE = "sft_ranking"
MAX_REQUESTS, PARITY_REQUESTS = 1_000, 8
MAX_PARITY_DIFFERENCE = 1e-3
"""Limit on the difference of two logits of one candidate; float32 gives 1e-6, bfloat16 less than this limit."""
CALIBRATION_TOLERANCE, AUC_TOLERANCE = 0.02, 0.01
"""About the difference between two seeds."""
LOG_LOSS_TOLERANCE = 0.01
"""Nats by which the log loss may exceed that of the base rate, which is taken from the evaluated rows."""
CHANCE = 0.5


@dataclass(frozen=True)
class ClickFigures:
    """Metrics of a bundle's scores on some impressions."""

    auc: float
    calibration_error: float
    log_loss: float


@dataclass(frozen=True)
class ClickVerdict:
    """The gate's verdict on click probabilities, on the same impressions for all models.

    Attributes:
        requests: number of scored requests.
        parity_difference: largest difference between two logits of one candidate of the challenger.
        auc: AUC of the challenger.
        auc_low: lower end of its 95 % interval, by user.
        calibration_error: its expected calibration error.
        log_loss: its mean log loss, nats.
        base_log_loss: log loss of the share of clicks as the prediction for every impression.
        champion_auc: best AUC of the champions; None = no champion scores clicks.
        champion_calibration_error: lowest calibration error of the champions.
        reasons: reasons against promotion; empty = none.
    """

    requests: int
    parity_difference: float
    auc: float
    auc_low: float
    calibration_error: float
    log_loss: float
    base_log_loss: float
    champion_auc: float | None
    champion_calibration_error: float | None
    reasons: tuple[str, ...]


def judge_clicks(
    samples: pa.Table | None, challenger: ModelBundle, champions: Champions
) -> ClickVerdict | None:
    """Judges a challenger's scores; returns None if it has no ranking stage.

    Args:
        samples: `ranking_samples` of the validation split, None = none; the first by request id are scored.
        challenger: the new bundle.
        champions: the current and former champions of the same index version.
    """
    if STAGE not in challenger.stage_names:
        return None
    shown = take_impressions(samples)
    missing = describe_missing_class(shown)
    if missing:
        nan = math.nan
        return ClickVerdict(0, nan, nan, nan, nan, nan, nan, None, None, (f"clicks: no verdict, {missing}",))
    assert shown is not None
    batch, labels = shown.requests.to_batches()[0], shown.labels
    logits = np.concatenate(score_candidates(challenger, batch)).astype(np.float64)
    num_bad = int((~np.isfinite(logits)).sum())
    if num_bad:
        logits = np.full(len(logits), math.nan)
    difference = measure_parity(challenger, batch.slice(0, PARITY_REQUESTS))
    figures = measure_clicks(logits, labels)
    low = math.nan if num_bad else bootstrap_auc(logits, labels, shown.per_request("user_id").astype(str)).low
    rate = exact_mean(labels.astype(np.float64))
    base_loss = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    champion_figures = [
        measure_clicks(np.concatenate(score_candidates(bundle, batch)).astype(np.float64), labels)
        for bundle in champions.values()
        if STAGE in bundle.stage_names
    ]
    # A champion may be damaged, too: values that are not numbers are ignored.
    best_auc = max((each.auc for each in champion_figures if not math.isnan(each.auc)), default=None)
    least_error = min(
        (each.calibration_error for each in champion_figures if not math.isnan(each.calibration_error)),
        default=None,
    )
    reasons = [f"{num_bad} of {len(logits)} click logits are not finite numbers"] if num_bad else []
    reasons += _judge_alone(figures, low, difference, base_loss, rate)
    if best_auc is not None and not figures.auc >= best_auc - AUC_TOLERANCE:
        reasons.append(f"click AUC {figures.auc:.4f} is below the champion's {best_auc:.4f}")
    if least_error is not None and not figures.calibration_error <= least_error + CALIBRATION_TOLERANCE:
        reasons.append(
            f"calibration error {figures.calibration_error:.4f} is above the champion's {least_error:.4f}"
        )
    return ClickVerdict(
        shown.requests.num_rows, difference, figures.auc, low, figures.calibration_error, figures.log_loss, base_loss,
        best_auc, least_error, tuple(reasons),
    )  # fmt: skip


def _judge_alone(
    figures: ClickFigures, auc_low: float, difference: float, base_loss: float, rate: float
) -> list[str]:
    """Returns reasons against the scores without regard to champions; every comparison fails for NaN."""
    reasons = []
    if not difference <= MAX_PARITY_DIFFERENCE:
        reasons.append(
            f"one candidate gets logits {difference:.2g} apart, depending on what it is asked with"
        )
    if not auc_low > CHANCE:
        reasons.append(
            f"click AUC {figures.auc:.4f} is not above chance: its 95 % interval by user begins at {auc_low:.4f}"
        )
    if not figures.log_loss <= base_loss + LOG_LOSS_TOLERANCE:
        reasons.append(
            f"click probabilities say less than the base rate: log loss {figures.log_loss:.4f}, {base_loss:.4f} for "
            f"saying {rate:.3f} of every impression"
        )
    return reasons


def take_impressions(samples: pa.Table | None) -> Impressions | None:
    """Returns the impressions of the first requests by id, which the gate uses; None without samples."""
    if samples is None or not samples.num_rows:
        return None
    return Impressions.from_samples(samples.sort_by("request_id").slice(0, MAX_REQUESTS).combine_chunks())


def describe_missing_class(shown: Impressions | None) -> str:
    """Returns a text on why impressions are unusable (none, all clicked, or none clicked); empty = usable."""
    if shown is None or not len(shown.labels):
        return "there is no validation row of ranking_samples"
    if len(np.unique(shown.labels)) < 2:
        label_text = "clicked" if shown.labels[0] else "not clicked"
        return f"all {len(shown.labels)} validation impressions are {label_text}"
    return ""


def measure_clicks(logits: Float64Array, labels: IntArray) -> ClickFigures:
    """Returns AUC, calibration error and log loss of click logits; nan where a logit is not finite."""
    if not np.isfinite(logits).all():
        return ClickFigures(math.nan, math.nan, math.nan)
    probabilities = 1.0 / (1.0 + np.exp(-logits))
    # Computed from the logits: a probability that rounds to 0 or 1 would have an infinite log loss.
    losses = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
    return ClickFigures(
        auc(logits, labels), calibration_bins(probabilities, labels).expected_error, exact_mean(losses)
    )


def measure_parity(bundle: ModelBundle, batch: pa.RecordBatch) -> float:
    """Returns the largest difference of a candidate's logits in a batch, alone, and in reversed order."""
    together = score_candidates(bundle, batch)
    largest = 0.0
    for row, expected in enumerate(together):
        alone = batch.slice(row, 1)
        for request, order in ((alone, slice(None)), (reverse_candidates(alone), slice(None, None, -1))):
            logits = score_candidates(bundle, request)[0][order]
            # np.maximum keeps NaN, which max() may lose.
            largest = float(np.maximum(largest, np.max(np.abs(logits - expected), initial=0.0)))
    return largest


def reverse_candidates(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the requests with their candidates in reversed order."""
    rows = batch.to_pylist()
    for row in rows:
        for name in row:
            if name.startswith("candidate_") or name == "labels":
                row[name] = row[name][::-1]
    return pa.RecordBatch.from_pylist(rows, schema=batch.schema)
