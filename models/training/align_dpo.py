"""Stage 3: DPO, S-DPO (paper 3.4) or IPO: clicked POIs over shown and unclicked ones, against a frozen reference.

log P(POI) = log P(block) + log P(inner | block) under the history and the request, as in generation. The
reference is the pre-trained model. Dropout is off, so that policy and reference start equal. Reads
`preference_pairs` at a pinned version; rewards margin and accuracy are logged.

    python -m models align_dpo --day 2026-01-31
"""

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from models.config import AlignConfig, Recipe
from models.copying.crowd_batches import collate_asked
from models.copying.crowd_candidates import SlotFinder
from models.data.batch import (
    HISTORY_INPUTS,
    RequestBatch,
    collate_candidates,
    collate_history,
    column_to_tensor,
)
from models.data.dataset import TableAt
from models.data.slots import LiveSlots
from models.network.decoder import SpacetimeDecoder
from models.training.losses import PreferenceLogProbs, PreferenceLoss, preference_loss
from models.training.posttraining import (
    REQUEST_INPUTS,
    SampleSource,
    Splits,
    SplitStage,
    run_stage,
)
from models.training.pretrain import PretrainTables, build_decoder, load_pretrained
from models.training.stage import Log, TrainResult

PAIR_COLUMNS = (
    "user_id", "chosen_block_id", "chosen_inner_id",
    *(f"rejected_{name}" for name in ("block_ids", "inner_ids", "lons", "lats", "category_ids")),
    *REQUEST_INPUTS, *HISTORY_INPUTS,
)  # fmt: skip


class AlignStage(SplitStage):
    """Batches and loss of alignment."""

    name = "align_dpo"

    def __init__(
        self,
        splits: Splits,
        config: AlignConfig,
        reference: SpacetimeDecoder,
        slots: LiveSlots,
        finder: SlotFinder | None = None,
    ) -> None:
        """Holds the frozen reference.

        Args:
            splits: preference pairs.
            config: of the stage.
            reference: the pre-trained model; frozen here.
            slots: POIs that exist, the same as in pre-training.
            finder: crowd candidates, for a decoder that copies from them.
        """
        super().__init__(splits)
        self.config, self.slots, self.finder = config, slots, finder
        self.reference = reference.eval().requires_grad_(False)

    def loss(self, model: SpacetimeDecoder, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed loss, the number of pairs, and margin and accuracy of the rewards."""
        found, chosen = self._compare(model, rows)
        chosen_loss = -self.config.chosen_weight * chosen[chosen.isfinite()].sum()
        sums = {"train/rewards_margin": float(found.margin), "train/rewards_accuracy": float(found.accuracy)}
        return found.loss + chosen_loss, found.num_pairs, sums

    def validate(self, model: SpacetimeDecoder) -> dict[str, float]:
        """Returns the mean loss, rewards margin and accuracy, and log probability of the chosen POIs.

        Nothing without validation rows.
        """
        if self.splits.val is None:
            return {}
        sums = {
            "val/loss": 0.0,
            "val/rewards_margin": 0.0,
            "val/rewards_accuracy": 0.0,
            "val/logps_chosen": 0.0,
        }
        num_pairs = 0
        for rows in self.splits.val_batches():
            found, chosen = self._compare(model, rows)
            num_pairs += found.num_pairs
            log_chosen = chosen[chosen.isfinite()].sum()
            loss = found.loss - self.config.chosen_weight * log_chosen
            parts = (loss, found.margin, found.accuracy, log_chosen)
            for name, value in zip(sums, parts, strict=True):
                sums[name] += float(value)
        return {name: value / max(num_pairs, 1) for name, value in sums.items()}

    def _compare(self, model: SpacetimeDecoder, rows: pa.Table) -> tuple[PreferenceLoss, Tensor]:
        model.eval()  # no dropout: rewards are differences of two passes
        device = next(model.parameters()).device
        self.slots = self.slots.to(device)  # kept: moving them sorts them again
        asked = collate_asked(rows, self.finder, model.config)
        policy, is_rejected = pair_log_probs(model, rows, self.slots, asked)
        with torch.no_grad():
            reference, _ = pair_log_probs(self.reference.to(device), rows, self.slots, asked)
        config = self.config
        found = preference_loss(policy, reference, is_rejected, beta=config.beta, kind=config.loss)
        return found, policy.chosen_B


def pair_log_probs(
    model: SpacetimeDecoder, rows: pa.Table, slots: LiveSlots | None, asked: RequestBatch | None = None
) -> tuple[PreferenceLogProbs, Tensor]:
    """Returns log P of chosen and rejected POIs, and which rejected ones are no padding.

    Args:
        model: policy or reference.
        rows: preference pairs.
        slots: POIs that exist; None = all ids.
        asked: the pairs' requests, for a model that copies from the crowd; None = made of the rows.
    """
    device = next(model.parameters()).device
    rejected = collate_candidates(rows, prefix="rejected").to(device)
    chosen_block, chosen_inner = (
        column_to_tensor(rows, f"chosen_{name}_id").to(device)[:, None] for name in ("block", "inner")
    )
    asked = collate_asked(rows, None, model.config) if asked is None else asked
    prefix = model.encode_prefix(collate_history(rows).to(device))
    state = model.request_state(prefix, asked.to(device), slots)
    log_probs = model.poi_log_probs(
        state,
        torch.cat([chosen_block, rejected.blocks_BC], 1),
        torch.cat([chosen_inner, rejected.inners_BC], 1),
    )
    is_rejected = torch.arange(rejected.blocks_BC.shape[1], device=device) < rejected.lengths_B[:, None]
    return PreferenceLogProbs(log_probs[:, 0], log_probs[:, 1:]), is_rejected


def run_align_dpo(
    pairs: TableAt,
    index: PretrainTables,
    *,
    day: str,
    recipe: Recipe,
    pretrained: Path,
    folder: Path,
    log: Log,
    finder: SlotFinder | None = None,
    needs_validation: bool = True,
) -> TrainResult:
    """Aligns the pre-trained model; leaves it in `folder/model`.

    Args:
        pairs: `preference_pairs` at a pinned version.
        index: tables of pre-training; its POI index says which POIs exist.
        day: day as of which the pairs were made, YYYY-MM-DD.
        recipe: how to train.
        pretrained: folder of the pre-training stage.
        folder: of this stage.
        log: takes metrics and their step.
        finder: crowd candidates, for a decoder that copies from them.
        needs_validation: an empty validation split is an error; else the last weights are kept.

    Raises:
        NoTrainingDataError: a split has no pair.
    """
    config = recipe.align_dpo
    source = SampleSource(pairs, day, "pair_id", PAIR_COLUMNS)
    splits = Splits(source, config, folder / "scratch", needs_validation=needs_validation)
    torch.manual_seed(config.seed)
    model = load_pretrained(pretrained)
    _, slots = build_decoder(recipe, index.poi_index, index.blocks, model.config.layout)
    stage = AlignStage(splits, config, load_pretrained(pretrained), slots, finder)
    return run_stage(stage, splits, model, config, folder=folder, log=log, made_of=[asdict(pairs), day])
