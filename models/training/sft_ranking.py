"""Stage 2b: ranking SFT (paper 3.3.2): the user part, then all candidates, isolated from each other.

The state at a candidate's inner token gives its click logit; loss is binary cross-entropy. Reads
`ranking_samples` at a pinned version; starts from the pre-trained weights. Validation: loss per candidate,
AUC and GAUC on split `val`.

    python -m models sft_ranking --day 2026-01-31
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from models.config import Recipe
from models.data.batch import HISTORY_INPUTS, collate_candidates, collate_history, collate_requests, pad_lists
from models.data.dataset import TableAt
from models.evaluation.metrics import auc, gauc
from models.network.decoder import SpacetimeDecoder
from models.training.losses import click_loss
from models.training.multimodal import SlotVectors, start_posttraining
from models.training.posttraining import (
    CANDIDATE_INPUTS,
    NO_LABEL,
    REQUEST_INPUTS,
    SampleSource,
    Splits,
    flatten_by_label,
    require_clicks,
    run_stage,
)
from models.training.stage import Log, TrainResult

RANKING_COLUMNS = ("user_id", "labels", *REQUEST_INPUTS, *CANDIDATE_INPUTS, *HISTORY_INPUTS)


CALIBRATION_PRIOR = 1e-4
"""Keeps scale and shift finite where held-out clicks can be told apart without error."""


class RankingStage:
    """Batches and loss of ranking SFT."""

    name = "sft_ranking"

    def __init__(self, splits: Splits) -> None:
        self.splits = splits

    def num_batches(self) -> int:
        """Returns the batches of an epoch."""
        return self.splits.num_batches()

    def train_batches(self, epoch: int, start: int) -> Iterator[pa.Table]:
        """Yields the batches of an epoch from the `start`-th on."""
        return self.splits.train_batches(epoch, start)

    def loss(self, model: SpacetimeDecoder, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed cross-entropy and the number of candidates."""
        logits, labels = score_rows(model, rows)
        loss, count = click_loss(logits, labels)
        return loss, count, {}

    def validate(self, model: SpacetimeDecoder) -> dict[str, float]:
        """Returns loss per candidate, AUC and GAUC; nothing without validation rows."""
        if self.splits.val is None:
            return {}
        total, count, scored = 0.0, 0, []
        for rows in self.splits.val_batches():
            logits, labels = score_rows(model, rows)
            loss, num_candidates = click_loss(logits, labels)
            total, count = total + float(loss), count + num_candidates
            scored.append((logits.float().cpu().numpy(), labels.cpu().numpy(), rows["user_id"].to_pylist()))
        scores, flat_labels, users = flatten_by_label(scored)
        metrics = {"val/loss": total / max(count, 1), "val/auc": auc(scores, flat_labels),
                   "val/gauc": gauc(scores, flat_labels, users)}  # fmt: skip
        return {name: value for name, value in metrics.items() if not np.isnan(value)}


def score_rows(model: SpacetimeDecoder, rows: pa.Table) -> tuple[Tensor, Tensor]:
    """Returns click logits and labels of ranking samples, (B, C) each; the label of padding is `NO_LABEL`."""
    device = next(model.parameters()).device
    prefix = model.encode_prefix(collate_history(rows).to(device))
    states = model.candidate_states(
        prefix, collate_requests(rows).to(device), collate_candidates(rows).to(device)
    )
    return model.click_logits(states), pad_lists(rows, "labels", torch.int64, fill=NO_LABEL).to(device)


def calibrate_click_head(model: SpacetimeDecoder, batches: Iterable[pa.Table]) -> tuple[float, float]:
    """Folds scale and shift of the logits, fitted on held-out rows, into the click head (Platt scaling).

    Scores keep their order, as the scale is kept above zero; the feature table, the audit and MLflow all get calibrated
    probabilities without knowing of it.

    Args:
        model: changed in place; in evaluation mode.
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


def run_sft_ranking(
    samples: TableAt,
    *,
    day: str,
    recipe: Recipe,
    pretrained: Path,
    folder: Path,
    log: Log,
    vectors: SlotVectors | None = None,
    from_scratch: bool = False,
    needs_validation: bool = True,
) -> TrainResult:
    """Trains the ranking stage from pre-trained weights; leaves it in `folder/model`.

    Args:
        samples: `ranking_samples` at a pinned version.
        day: day as of which the samples were made, YYYY-MM-DD.
        recipe: how to train.
        pretrained: folder of the pre-training stage.
        folder: of this stage.
        log: takes metrics and their step.
        vectors: of POIs, to be fused; None = without.
        from_scratch: start from new weights, for comparison.
        needs_validation: an empty validation split is an error; else the last weights are kept.

    Raises:
        NoTrainingDataError: a split has no sample, or no training request has a click.
    """
    source = SampleSource(samples, day, "request_id", RANKING_COLUMNS)
    require_clicks(samples, day)
    splits = Splits(source, recipe.sft_ranking, folder / "scratch", needs_validation=needs_validation)
    torch.manual_seed(recipe.sft_ranking.seed)
    model = start_posttraining(pretrained, vectors=vectors, from_scratch=from_scratch)
    return run_stage(
        RankingStage(splits),
        splits,
        model,
        recipe.sft_ranking,
        folder=folder,
        log=log,
        made_of=[asdict(samples), day, from_scratch],
        finish=lambda decoder: _calibrate(decoder, splits),
    )


def _calibrate(decoder: SpacetimeDecoder, splits: Splits) -> dict[str, object]:
    if splits.val is None:
        return {"calibration": "none: there are no validation rows"}
    scale, shift = calibrate_click_head(decoder, splits.val.read())
    return {"calibration_scale": scale, "calibration_shift": shift}
