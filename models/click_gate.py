"""The click half of the gate: one score for one candidate however asked, and probabilities that mean what they say.

Held-out ranking samples are scored as the feature job scores them. Parity: a request asked alone, or with its
candidates in another order, gets the scores that it gets among others. Calibration and AUC: not worse than the
champion's on the same impressions by more than a tolerance. A bundle without the ranking stage is not judged.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.bundle import ModelBundle
from models.inference import score_candidates
from models.metrics import FloatArray, auc, calibration_bins

STAGE = "sft_ranking"
MAX_REQUESTS, PARITY_REQUESTS = 1_000, 8
MAX_PARITY_DIFFERENCE = 1e-3
"""Of two logits of one candidate: float32 gives 1e-6, bfloat16 less than this after the click head."""
CALIBRATION_TOLERANCE, AUC_TOLERANCE = 0.02, 0.01
"""About what two seeds differ by."""


@dataclass(frozen=True)
class ClickVerdict:
    """What the gate found on impressions that both were asked.

    Attributes:
        requests: requests scored.
        parity_difference: largest difference between two logits of one candidate of the challenger.
        auc: the challenger's.
        calibration_error: its expected calibration error.
        champion_auc: the champion's; None = there is none that scores.
        champion_calibration_error: the champion's.
        reasons: why it is not promoted; empty = nothing against it.
    """

    requests: int
    parity_difference: float
    auc: float
    calibration_error: float
    champion_auc: float | None
    champion_calibration_error: float | None
    reasons: tuple[str, ...]


def judge_clicks(
    samples: pa.Table, challenger: ModelBundle, champion: ModelBundle | None
) -> ClickVerdict | None:
    """Judges a challenger's scores; None if it scores nothing.

    Args:
        samples: `ranking_samples` of the validation split; the first of them by request id are scored.
        challenger: the new bundle.
        champion: the one in use, if there is one for the same index version.
    """
    if STAGE not in challenger.stage_names or not samples.num_rows:
        return None
    asked = samples.sort_by("request_id").slice(0, MAX_REQUESTS).combine_chunks()
    batch = asked.to_batches()[0]
    labels = np.concatenate([np.asarray(row) for row in asked["labels"].to_pylist()]).astype(np.int64)
    difference = measure_parity(challenger, batch.slice(0, PARITY_REQUESTS))
    own_auc, own_error = _judge(np.concatenate(score_candidates(challenger, batch)), labels)
    reasons = []
    if not difference <= MAX_PARITY_DIFFERENCE:
        reasons.append(
            f"one candidate gets logits {difference:.2g} apart, depending on what it is asked with"
        )
    their_auc: float | None = None
    their_error: float | None = None
    if champion is not None and STAGE in champion.stage_names:
        their_auc, their_error = _judge(np.concatenate(score_candidates(champion, batch)), labels)
        if own_error > their_error + CALIBRATION_TOLERANCE:
            reasons.append(f"calibration error {own_error:.4f} is above the champion's {their_error:.4f}")
        if own_auc < their_auc - AUC_TOLERANCE:
            reasons.append(f"AUC {own_auc:.4f} is below the champion's {their_auc:.4f}")
    return ClickVerdict(
        asked.num_rows, difference, own_auc, own_error, their_auc, their_error, tuple(reasons)
    )


def measure_parity(bundle: ModelBundle, batch: pa.RecordBatch) -> float:
    """Returns how far apart two logits of one candidate lie: among other requests, alone, in reversed order."""
    together = score_candidates(bundle, batch)
    largest = 0.0
    for row, expected in enumerate(together):
        alone = batch.slice(row, 1)
        for asked, order in ((alone, slice(None)), (reverse_candidates(alone), slice(None, None, -1))):
            found = score_candidates(bundle, asked)[0][order]
            largest = max(largest, float(np.max(np.abs(found - expected), initial=0.0)))
    return largest


def reverse_candidates(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the requests with their candidates in reversed order."""
    rows = batch.to_pylist()
    for row in rows:
        for name in row:
            if name.startswith("candidate_") or name == "labels":
                row[name] = row[name][::-1]
    return pa.RecordBatch.from_pylist(rows, schema=batch.schema)


def _judge(logits: FloatArray, labels: np.ndarray) -> tuple[float, float]:
    probabilities = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    return auc(logits.astype(np.float64), labels), calibration_bins(probabilities, labels).expected_error
