"""Stage 2b: ranking SFT (paper 3.3.2): the user part, then all candidates, isolated from each other.

The state at a candidate's inner token gives its click logit; the loss is binary cross-entropy. The stage reads
`ranking_samples` at a pinned version and starts from the pre-trained weights. Validation measures loss per candidate,
AUC and GAUC on split `val`.

    python -m models sft_ranking --day 2026-01-31
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor, nn

from models.data.batch import collate_candidates, collate_history, collate_requests, pad_lists
from models.data.parallel import broadcast_message, process_rank
from models.network.decoder import SpacetimeDecoder
from models.network.trunk import CandidateStates
from models.training.losses import click_loss
from models.training.posttraining import NO_LABEL, ClickStage, ScoredBatch, SftRun, Splits, run_sft
from models.training.stage import TrainResult
from models.training.trainer import pick_device

LOGGER = logging.getLogger(__name__)

CALIBRATION_PRIOR = 1e-4
"""Keeps scale and shift finite if the logits separate held-out clicks perfectly."""
HEAD_PRIOR = 1e-3
"""The same for the weights of the fitted head, of standardised features."""
LEAST_SPREAD = 1e-2
"""A feature that spreads less over all candidates says nothing, and its weight would amplify rounding."""


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
    states, labels = read_rows(model, rows)
    return model.click_logits(states), labels


def read_rows(model: SpacetimeDecoder, rows: pa.Table) -> tuple[CandidateStates, Tensor]:
    """Returns what the click head reads of ranking samples, and labels, (B, C)."""
    device = next(model.parameters()).device
    prefix = model.encode_prefix(collate_history(rows).to(device))
    states = model.candidate_states(
        prefix, collate_requests(rows).to(device), collate_candidates(rows).to(device)
    )
    return states, pad_lists(rows, "labels", torch.int64, fill=NO_LABEL).to(device)


class HeadStart(NamedTuple):
    """Weights that a click head starts from.

    Attributes:
        weights: one for each of `ClickHead.features`.
        bias: log-odds of a click where all features are 0.
        num_requests: requests that they were fitted on.
    """

    weights: list[float]
    bias: float
    num_requests: int


def start_click_head(model: SpacetimeDecoder, batches: Iterable[pa.Table], num_requests: int) -> int:
    """Starts the click head from `fit_click_head`; every process takes the weights of the first one.

    Returns:
        The number of requests that it was fitted on; 0 = the head is unchanged.
    """
    found = fit_click_head(model, batches, num_requests) if process_rank() == 0 else None
    start = broadcast_message(found._asdict() if found else {})
    if start:
        weights_F = torch.tensor(start["weights"], device=model.click.state.weight.device)
        model.click.start_from(weights_F, start["bias"])
    return int(start.get("num_requests", 0))


def fit_click_head(
    model: SpacetimeDecoder, batches: Iterable[pa.Table], num_requests: int
) -> HeadStart | None:
    """Fits the click head on the frozen evidence of some requests by logistic regression; the state's weights are 0.

    From pre-trained weights the state says nothing about clicks yet, while log probabilities, memory shares and the
    interest match do. Without this start the first steps bend the weights that the evidence comes from.

    Args:
        model: not changed.
        batches: training samples.
        num_requests: requests that are read.

    Returns:
        The start; None if the requests have labels of one kind only.
    """
    found, labels, num_read, was_training = list[Tensor](), list[Tensor](), 0, model.training
    model.eval()
    with torch.no_grad():
        for rows in batches:
            states, labels_BC = read_rows(model, rows.slice(0, num_requests - num_read))
            is_real_BC = labels_BC != NO_LABEL
            found.append(model.click.features(states)[is_real_BC].double())
            labels.append(labels_BC[is_real_BC].double())
            num_read += len(labels_BC)
            if num_read >= num_requests:
                break
    model.train(was_training)
    if not labels or len(torch.cat(labels).unique()) < 2:
        return None
    features_NF, clicks_N = torch.cat(found), torch.cat(labels)
    mean_F, spread_F = features_NF.mean(dim=0), features_NF.std(dim=0)
    scale_F = torch.where(spread_F > LEAST_SPREAD, 1 / spread_F, 0.0)
    weights, bias = _fit_logistic((features_NF - mean_F) * scale_F, clicks_N)
    weights = weights * scale_F
    return HeadStart(weights.tolist(), float(bias - weights @ mean_F), num_read)


def _fit_logistic(features_NF: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weights (F,) and bias () of a logistic regression, float64."""
    weights = torch.zeros_like(features_NF[0], requires_grad=True)
    bias = torch.zeros((), dtype=weights.dtype, device=weights.device, requires_grad=True)

    def loss() -> Tensor:
        logits = features_NF @ weights + bias
        return (
            nn.functional.binary_cross_entropy_with_logits(logits, labels_N) + HEAD_PRIOR * (weights**2).sum()
        )

    minimise(loss, [weights, bias])
    return weights.detach(), bias.detach()


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    """Minimises a smooth function of a few parameters, in place."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


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

    def loss() -> Tensor:
        fit = nn.functional.binary_cross_entropy_with_logits(log_scale.exp() * logits + shift, labels)
        return fit + CALIBRATION_PRIOR * (log_scale**2 + shift**2)

    minimise(loss, [log_scale, shift])
    scale, moved = float(log_scale.detach().exp()), float(shift.detach())
    model.click.rescale(scale, moved)
    return scale, moved


def run_sft_ranking(run: SftRun) -> TrainResult:
    """Trains the ranking stage and calibrates its click head on the validation rows; raises the errors of `run_sft`."""
    config = run.recipe.sft_ranking

    def build(decoder: SpacetimeDecoder, splits: Splits) -> tuple[RankingStage, SpacetimeDecoder]:
        # A resume takes the weights of its checkpoint.
        if config.fit_head and not any(run.folder.glob("checkpoints/*")):
            decoder.to(pick_device(config))
            batches = _cut(splits.train.read(0, 0), config.micro_batch_size or config.batch_size)
            num_read = start_click_head(decoder, batches, config.fit_head)
            LOGGER.info("sft_ranking: the click head starts from the evidence of %d requests", num_read)
        return RankingStage(splits), decoder

    if config.fit_head:
        config = config.model_copy(update={"validate_start": True})
    return run_sft(run, config, build, finish=_calibrate)


def _cut(batches: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    for rows in batches:
        yield from (rows.slice(first, size) for first in range(0, rows.num_rows, size))


def _calibrate(decoder: SpacetimeDecoder, splits: Splits) -> dict[str, object]:
    if splits.val is None:
        return {"calibration": "none: there are no validation rows"}
    scale, shift = calibrate_click_head(decoder, splits.val.read())
    return {"calibration_scale": scale, "calibration_shift": shift}
