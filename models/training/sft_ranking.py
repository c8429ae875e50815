"""Stage 2b: ranking SFT (paper 3.3.2): the user part, then all candidates, isolated from each other.

The state at a candidate's inner token gives its click logit; the loss is binary cross-entropy. The stage reads
`ranking_samples` at a pinned version and starts from the pre-trained weights. Validation measures loss per candidate,
AUC and GAUC on split `val`.

    python -m models sft_ranking --day 2026-01-31
"""

from collections.abc import Iterable

import pyarrow as pa
import torch
from torch import Tensor, nn

from models.data.batch import collate_candidates, collate_history, collate_requests, pad_lists
from models.network.decoder import SpacetimeDecoder
from models.training.losses import click_loss
from models.training.posttraining import NO_LABEL, ClickStage, ScoredBatch, SftRun, Splits, run_sft
from models.training.stage import TrainResult

CALIBRATION_PRIOR = 1e-4
"""Keeps scale and shift finite if the logits separate held-out clicks perfectly."""


class RankingStage(ClickStage[SpacetimeDecoder]):
    """Batches and loss of ranking SFT."""

    name = "sft_ranking"

    def loss(self, model: SpacetimeDecoder, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed cross-entropy and the number of candidates."""
        batch = self.score(model, rows)
        return batch.loss, batch.num_targets, {}

    def score(self, model: SpacetimeDecoder, rows: pa.Table) -> ScoredBatch:
        """Returns the summed cross-entropy, the number of candidates, and their click logits."""
        logits, labels = score_rows(model, rows)
        return ScoredBatch(*click_loss(logits, labels), logits, labels)


def score_rows(model: SpacetimeDecoder, rows: pa.Table) -> tuple[Tensor, Tensor]:
    """Returns click logits and labels of ranking samples, (B, C) each; the label of padding is `NO_LABEL`."""
    device = next(model.parameters()).device
    prefix = model.encode_prefix(collate_history(rows).to(device))
    states = model.candidate_states(
        prefix, collate_requests(rows).to(device), collate_candidates(rows).to(device)
    )
    return model.click_logits(states), pad_lists(rows, "labels", torch.int64, fill=NO_LABEL).to(device)


def calibrate_click_head(model: SpacetimeDecoder, batches: Iterable[pa.Table]) -> tuple[float, float]:
    """Fits scale and shift of the logits on held-out rows and folds them into the click head (Platt scaling).

    The scale is positive, so scores keep their order. The feature table, the audit and MLflow get calibrated
    probabilities without further changes.

    Args:
        model: model in evaluation mode; changed in place.
        batches: held-out ranking samples.

    Returns:
        The scale and the shift.
    """
    with torch.no_grad():
        scored = [score_rows(model, rows) for rows in batches]
    logits, labels = (torch.cat([pair[n][pair[1] != NO_LABEL] for pair in scored]).double() for n in (0, 1))
    log_scale, shift = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    if len(labels.unique()) < 2:
        return 1.0, 0.0  # nothing to fit
    optimizer = torch.optim.LBFGS([log_scale, shift], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(log_scale.exp() * logits + shift, labels)
        loss = loss + CALIBRATION_PRIOR * (log_scale**2 + shift**2)
        loss.backward()
        return loss

    optimizer.step(closure)
    scale, moved = float(log_scale.detach().exp()), float(shift.detach())
    model.click.rescale(scale, moved)
    return scale, moved


def run_sft_ranking(run: SftRun) -> TrainResult:
    """Trains the ranking stage and calibrates its click head on the validation rows; raises the errors of `run_sft`."""

    def build(decoder: SpacetimeDecoder, splits: Splits) -> tuple[RankingStage, SpacetimeDecoder]:
        return RankingStage(splits), decoder

    return run_sft(run, run.recipe.sft_ranking, build, finish=_calibrate)


def _calibrate(decoder: SpacetimeDecoder, splits: Splits) -> dict[str, object]:
    if splits.val is None:
        return {"calibration": "none: there are no validation rows"}
    scale, shift = calibrate_click_head(decoder, splits.val.read())
    return {"calibration_scale": scale, "calibration_shift": shift}
