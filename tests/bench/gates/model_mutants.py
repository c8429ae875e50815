"""Faults of a bundle before it is registered: weights as a broken training, or files that were mixed up, leave them."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.evaluation.generator_choice import rank_by_stage, sample_rows
from models.evaluation.impressions import Impressions, score_by_embeddings
from models.evaluation.metrics import auc, exact_mean, reciprocal_values
from models.evaluation.release_split import EvaluationRows
from models.network.checkpoint import save_stage
from models.network.decoder import SpacetimeDecoder
from models.registry.click_gate import measure_clicks
from models.registry.embedding_gate import encode_both, find_clicks, rank_clicks
from models.serving.bundle import STAGE_FOLDERS, ModelBundle, load_bundle
from models.serving.inference import score_candidates
from tests.bench.gates.mutant_list import Mutant

EMBEDDING, RANKING = "sft_embedding", "sft_ranking"
HARM = {"mrr": 0.05, "embedding_mrr": 0.1, "click_auc": 0.01, "click_log_loss": 0.01, "embedding_auc": 0.01}
"""What counts as harm: parts of an MRR, points of an AUC, nats of a log loss."""


def plant(bundle: ModelBundle, mutant: Mutant, folder: Path) -> ModelBundle:
    """Copies a bundle and plants a fault in it; checksums are right, as a training would have left them."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle.folder, folder)
    (folder / "probe.json").unlink(missing_ok=True)
    copy = load_bundle(folder)
    stage, change = KINDS[mutant.kind](mutant.severity, np.random.default_rng(mutant.seed), copy)
    model = copy.model(stage)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        change(model)
    save_stage(folder / STAGE_FOLDERS[stage], model)
    return load_bundle(folder)


Severity = Mapping[str, Any]
Change = Callable[[SpacetimeDecoder], None]
Planted = tuple[str, Change]


def _towers(which: str, change: Callable[[Tensor], Tensor]) -> Planted:
    def apply(model: SpacetimeDecoder) -> None:
        for tower in ("user", "poi") if which == "both" else (which,):
            layer = getattr(model, f"{tower}_projection")
            layer.weight.copy_(change(layer.weight))

    return EMBEDDING, apply


def _cut_rank(weight: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(weight)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def _permute(weight: Tensor, rng: np.random.Generator, dim: int) -> Tensor:
    return weight.index_select(dim, torch.from_numpy(rng.permutation(weight.shape[dim])))


def _swap(model: SpacetimeDecoder) -> None:
    user = model.user_projection.weight.clone()
    model.user_projection.weight.copy_(model.poi_projection.weight)
    model.poi_projection.weight.copy_(user)


def _rescale(scale: float, shift: float) -> Planted:
    return RANKING, lambda model: model.click.rescale(scale, shift)


def _matrices(model: SpacetimeDecoder) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.dim() > 1]


def _half_zero(severity: Severity, rng: np.random.Generator) -> Planted:
    def apply(model: SpacetimeDecoder) -> None:
        for weight in _matrices(model):
            weight.mul_(torch.from_numpy(rng.random(weight.shape) >= severity["share"]))

    return severity["stage"], apply


def _noisy(severity: Severity, rng: np.random.Generator) -> Planted:
    def apply(model: SpacetimeDecoder) -> None:
        for weight in _matrices(model):
            noise = torch.from_numpy(rng.standard_normal(weight.shape)).to(weight.dtype)
            weight.add_(severity["sigma"] * weight.std() * noise)

    return severity["stage"], apply


def _untrained(severity: Severity, rng: np.random.Generator) -> Planted:
    def apply(model: SpacetimeDecoder) -> None:
        torch.manual_seed(int(rng.integers(2**31)))
        for name, fresh in SpacetimeDecoder(model.config).named_parameters():
            model.get_parameter(name).copy_(fresh)

    return severity["stage"], apply


def _shuffled(severity: Severity, rng: np.random.Generator, parts: tuple[str, ...]) -> Planted:
    def apply(model: SpacetimeDecoder) -> None:
        for part in parts:
            table = getattr(model.trunk.embedding, part)
            table.weight.copy_(_permute(table.weight, rng, 0))

    return severity["stage"], apply


def _not_a_number(severity: Severity, rng: np.random.Generator) -> Planted:
    def apply(model: SpacetimeDecoder) -> None:
        weight = model.trunk.layers[0].ffn.down.weight
        weight[int(rng.integers(len(weight)))] = math.nan

    return severity["stage"], apply


def _one_stage_twice(severity: Severity, bundle: ModelBundle) -> Planted:
    def apply(model: SpacetimeDecoder) -> None:
        model.load_state_dict(bundle.model("pretrain").state_dict())

    return severity["target"], apply


KINDS: Mapping[str, Callable[[Severity, np.random.Generator, ModelBundle], Planted]] = {
    "collapsed_towers": lambda s, rng, b: _towers(s["tower"], lambda w: _cut_rank(w, s["rank"])),
    "constant_towers": lambda s, rng, b: _towers(
        s["tower"], lambda w: _cut_rank(w, 1) * 1e3 + w * 1e-3
    ),
    "negated_tower": lambda s, rng, b: _towers(s["tower"], lambda w: -w),
    "permuted_tower": lambda s, rng, b: _towers(s["tower"], lambda w: _permute(w, rng, 0)),
    "swapped_towers": lambda s, rng, b: (EMBEDDING, _swap),
    "negated_clicks": lambda s, rng, b: _rescale(-1.0, 0.0),
    "permuted_clicks": lambda s, rng, b: (
        RANKING, lambda model: model.click.state.weight.copy_(_permute(model.click.state.weight, rng, 1)),
    ),
    "scaled_clicks": lambda s, rng, b: _rescale(s["factor"], 0.0),
    "shifted_clicks": lambda s, rng, b: _rescale(1.0, s["shift"]),
    "half_zero": lambda s, rng, b: _half_zero(s, rng),
    "noisy": lambda s, rng, b: _noisy(s, rng),
    "untrained": lambda s, rng, b: _untrained(s, rng),
    "shuffled_blocks": lambda s, rng, b: _shuffled(s, rng, ("blocks",)),
    "shuffled_pois": lambda s, rng, b: _shuffled(s, rng, ("inners", "poi_vectors")),
    "not_a_number": lambda s, rng, b: _not_a_number(s, rng),
    "one_stage_twice": lambda s, rng, b: _one_stage_twice(s, b),
}  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Rows that no gate has seen: the test split of the training's day."""

    rows: EvaluationRows
    shown: Impressions


def measure(bundle: ModelBundle, held_out: HeldOut) -> dict[str, float]:
    """Returns what a bundle is worth on rows that the gate does not look at."""
    rows, shown = sample_rows(held_out.rows, 1_000), held_out.shown
    batch = shown.requests.to_batches()[0]
    clicks = measure_clicks(np.concatenate(score_candidates(bundle, batch)).astype(np.float64), shown.labels)
    vectors = encode_both(shown, rows, bundle)
    products = score_by_embeddings(shown, bundle)
    is_finite = bool(np.isfinite(products).all())
    found = find_clicks(shown, rows)
    return {
        "mrr": exact_mean(reciprocal_values(rank_by_stage(rows, bundle, bundle.generator_stage))),
        "embedding_mrr": exact_mean(rank_clicks(found, rows, *vectors)) if is_finite else math.nan,
        "embedding_auc": auc(products, shown.labels) if is_finite else math.nan,
        "click_auc": clicks.auc,
        "click_log_loss": clicks.log_loss,
    }


def tell_harm(clean: Mapping[str, float], found: Mapping[str, float]) -> dict[str, float]:
    """Returns the figures that are worse by more than a seed would make them; empty = no harm is shown."""
    worse = {
        name: (found[name] - clean[name] if name == "click_log_loss" else clean[name] - found[name])
        / (clean[name] if name.endswith("mrr") else 1.0)
        for name in clean
    }
    return {name: round(fall, 4) for name, fall in worse.items() if not fall <= HARM[name]}
