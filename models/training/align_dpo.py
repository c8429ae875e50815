"""Stage 3: DPO, S-DPO (paper 3.4) or IPO, which prefers clicked over unclicked POIs against a frozen reference.

log P(POI) = log P(block) + log P(inner | block) under the history and the request, as in generation. The
reference is the pre-trained model. Dropout is off, so that policy and reference start equal. The stage reads
`preference_pairs` at a pinned version and logs rewards margin and accuracy.

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
            splits: splits of the preference pairs.
            config: configuration of the stage.
            reference: the pre-trained model; frozen here.
            slots: slots of the index, the same as in pre-training.
            finder: finder of crowd candidates, for a decoder that copies them.
        """
        super().__init__(splits)
        self.config, self.slots, self.finder = config, slots, finder
        self.reference = reference.eval().requires_grad_(False)

    def loss(self, model: SpacetimeDecoder, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed loss, the number of pairs, and margin and accuracy of the rewards."""
        pairs, chosen = self._compare(model, rows)
        chosen_loss = -self.config.chosen_weight * chosen[chosen.isfinite()].sum()
        sums = {"train/rewards_margin": float(pairs.margin), "train/rewards_accuracy": float(pairs.accuracy)}
        return pairs.loss + chosen_loss, pairs.num_pairs, sums

    def validate(self, model: SpacetimeDecoder) -> dict[str, float]:
        """Returns the means of loss, rewards margin and accuracy, and log probability of the chosen POIs.

        The result is empty without validation rows.
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
            pairs, chosen = self._compare(model, rows)
            num_pairs += pairs.num_pairs
            log_chosen = chosen[chosen.isfinite()].sum()
            loss = pairs.loss - self.config.chosen_weight * log_chosen
            parts = (loss, pairs.margin, pairs.accuracy, log_chosen)
            for name, value in zip(sums, parts, strict=True):
                sums[name] += float(value)
        return {name: value / max(num_pairs, 1) for name, value in sums.items()}

    def _compare(self, model: SpacetimeDecoder, rows: pa.Table) -> tuple[PreferenceLoss, Tensor]:
        model.eval()  # no dropout: rewards are differences of two passes
        device = next(model.parameters()).device
        self.slots = self.slots.to(device)  # stored, since each move sorts them again
        requests = collate_asked(rows, self.finder, model.config)
        policy, is_rejected = pair_log_probs(model, rows, self.slots, requests)
        with torch.no_grad():
            reference, _ = pair_log_probs(self.reference.to(device), rows, self.slots, requests)
        config = self.config
        pairs = preference_loss(policy, reference, is_rejected, beta=config.beta, kind=config.loss)
        return pairs, policy.chosen_B


def pair_log_probs(
    model: SpacetimeDecoder, rows: pa.Table, slots: LiveSlots | None, asked: RequestBatch | None = None
) -> tuple[PreferenceLogProbs, Tensor]:
    """Returns log P of chosen and rejected POIs, and which rejected ones are real, (B, C) bool.

    Args:
        model: policy or reference.
        rows: preference pairs.
        slots: live slots; None = all ids.
        asked: requests of the pairs, for a model that copies crowd candidates; None = collated from the rows.
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
        index: tables of pre-training, with the POI index.
        day: day as of which the pairs were made, YYYY-MM-DD.
        recipe: settings of decoder and stages.
        pretrained: folder of the pre-training stage.
        folder: folder of this stage.
        log: function that logs metrics at a step.
        finder: finder of crowd candidates, for a decoder that copies them.
        needs_validation: True = an empty validation split is an error; False = the last weights are kept.

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
