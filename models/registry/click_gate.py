"""The click half of the gate: one score for one candidate however asked, and probabilities that mean what they say.

Held-out ranking samples are scored as the feature job scores them. Parity: a request asked alone, or with its
candidates in another order, gets the scores that it gets among others. Limits that hold without any champion: the
whole 95 % interval of the AUC lies above chance, and the log loss is no worse than that of the base rate said of every
impression. Calibration and AUC: not worse than the best of the last champions' on the same impressions by more than a
tolerance. What is not a number is refused, and what cannot be judged is not promoted.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.evaluation.impressions import Impressions
from models.evaluation.metrics import FloatArray, IntArray, auc, bootstrap_auc, calibration_bins, exact_mean
from models.registry.champions import Champions
from models.serving.bundle import ModelBundle
from models.serving.inference import score_candidates

STAGE = "sft_ranking"
MAX_REQUESTS, PARITY_REQUESTS = 1_000, 8
MAX_PARITY_DIFFERENCE = 1e-3
"""Of two logits of one candidate: float32 gives 1e-6, bfloat16 less than this after the click head."""
CALIBRATION_TOLERANCE, AUC_TOLERANCE = 0.02, 0.01
"""About what two seeds differ by."""
LOG_LOSS_TOLERANCE = 0.01
"""Nats by which the log loss may exceed the base rate's: that one is known from the very rows it is measured on."""
CHANCE = 0.5


@dataclass(frozen=True)
class ClickFigures:
    """What a bundle's scores of some impressions are worth."""

    auc: float
    calibration_error: float
    log_loss: float


@dataclass(frozen=True)
class ClickVerdict:
    """What the gate found on impressions that all were asked.

    Attributes:
        requests: requests scored.
        parity_difference: largest difference between two logits of one candidate of the challenger.
        auc: the challenger's.
        auc_low: lower end of its 95 % interval, by user.
        calibration_error: its expected calibration error.
        log_loss: its mean log loss, nats.
        base_log_loss: that of the share of clicks, said of every impression.
        champion_auc: the best of the champions'; None = there is none that scores.
        champion_calibration_error: the least of the champions'.
        reasons: why it is not promoted; empty = nothing against it.
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
    """Judges a challenger's scores; None if it scores nothing.

    Args:
        samples: `ranking_samples` of the validation split; the first of them by request id are scored. None = there
            are none.
        challenger: the new bundle.
        champions: those in use now and before, for the same index version.
    """
    if STAGE not in challenger.stage_names:
        return None
    shown = take_impressions(samples)
    missing = tell_missing_class(shown)
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
    own = measure_clicks(logits, labels)
    low = math.nan if num_bad else bootstrap_auc(logits, labels, shown.per_request("user_id").astype(str)).low
    rate = exact_mean(labels.astype(np.float64))
    base_loss = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    theirs = [
        measure_clicks(np.concatenate(score_candidates(bundle, batch)).astype(np.float64), labels)
        for bundle in champions.values()
        if STAGE in bundle.stage_names
    ]
    # A champion may be damaged, too: what is not a number sets no mark.
    best_auc = max((each.auc for each in theirs if not math.isnan(each.auc)), default=None)
    least_error = min(
        (each.calibration_error for each in theirs if not math.isnan(each.calibration_error)), default=None
    )
    reasons = [f"{num_bad} of {len(logits)} click logits are not finite numbers"] if num_bad else []
    reasons += _judge_alone(own, low, difference, base_loss, rate)
    if best_auc is not None and not own.auc >= best_auc - AUC_TOLERANCE:
        reasons.append(f"click AUC {own.auc:.4f} is below the champion's {best_auc:.4f}")
    if least_error is not None and not own.calibration_error <= least_error + CALIBRATION_TOLERANCE:
        reasons.append(
            f"calibration error {own.calibration_error:.4f} is above the champion's {least_error:.4f}"
        )
    return ClickVerdict(
        shown.requests.num_rows, difference, own.auc, low, own.calibration_error, own.log_loss, base_loss,
        best_auc, least_error, tuple(reasons),
    )  # fmt: skip


def _judge_alone(
    own: ClickFigures, auc_low: float, difference: float, base_loss: float, rate: float
) -> list[str]:
    """Returns what is against scores whatever the champion; every comparison is written so that NaN fails it."""
    reasons = []
    if not difference <= MAX_PARITY_DIFFERENCE:
        reasons.append(
            f"one candidate gets logits {difference:.2g} apart, depending on what it is asked with"
        )
    if not auc_low > CHANCE:
        reasons.append(
            f"click AUC {own.auc:.4f} is not above chance: its 95 % interval by user begins at {auc_low:.4f}"
        )
    if not own.log_loss <= base_loss + LOG_LOSS_TOLERANCE:
        reasons.append(
            f"click probabilities say less than the base rate: log loss {own.log_loss:.4f}, {base_loss:.4f} for "
            f"saying {rate:.3f} of every impression"
        )
    return reasons


def take_impressions(samples: pa.Table | None) -> Impressions | None:
    """Returns the impressions that the gate looks at: those of the first requests by id; None without any."""
    if samples is None or not samples.num_rows:
        return None
    return Impressions.from_samples(samples.sort_by("request_id").slice(0, MAX_REQUESTS).combine_chunks())


def tell_missing_class(shown: Impressions | None) -> str:
    """Says why impressions cannot judge anything: there are none, or all are clicked, or none is; empty = they can."""
    if shown is None or not len(shown.labels):
        return "there is no validation row of ranking_samples"
    if len(np.unique(shown.labels)) < 2:
        told = "clicked" if shown.labels[0] else "not clicked"
        return f"all {len(shown.labels)} validation impressions are {told}"
    return ""


def measure_clicks(logits: FloatArray, labels: IntArray) -> ClickFigures:
    """Returns AUC, calibration error and log loss of click logits; nan where a logit is not finite."""
    if not np.isfinite(logits).all():
        return ClickFigures(math.nan, math.nan, math.nan)
    probabilities = 1.0 / (1.0 + np.exp(-logits))
    # From the logits: a probability that rounds to 0 or 1 would have an infinite logarithm.
    losses = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
    return ClickFigures(
        auc(logits, labels), calibration_bins(probabilities, labels).expected_error, exact_mean(losses)
    )


def measure_parity(bundle: ModelBundle, batch: pa.RecordBatch) -> float:
    """Returns how far apart two logits of one candidate lie: among other requests, alone, in reversed order."""
    together = score_candidates(bundle, batch)
    largest = 0.0
    for row, expected in enumerate(together):
        alone = batch.slice(row, 1)
        for asked, order in ((alone, slice(None)), (reverse_candidates(alone), slice(None, None, -1))):
            found = score_candidates(bundle, asked)[0][order]
            # np.maximum keeps NaN, which max() may lose.
            largest = float(np.maximum(largest, np.max(np.abs(found - expected), initial=0.0)))
    return largest


def reverse_candidates(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the requests with their candidates in reversed order."""
    rows = batch.to_pylist()
    for row in rows:
        for name in row:
            if name.startswith("candidate_") or name == "labels":
                row[name] = row[name][::-1]
    return pa.RecordBatch.from_pylist(rows, schema=batch.schema)
