"""Evaluates models and their baselines on the same rows; writes a table, JSON and MLflow metrics.

    python -m models evaluate --day D                                   held-out split of the day's samples
    python -m models evaluate --protocol nyc-table6 --data FOLDER       a public protocol (models.protocols.run)

Targets are ranked among all POIs live at the request, never a sample. Returns and discoveries are reported separately,
and intervals are by user. A bundle's ranking and embedding stages are evaluated on `ranking_samples` of the same split.
"""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from conf.files import write_json
from conf.tokens import ACTION_TYPES
from models.data.arrays import Float64Array, IntArray
from models.data.ranks import Ranks
from models.evaluation.baselines import score_by_distance
from models.evaluation.figures import (
    HIT_KS,
    Figures,
    compare_next_poi,
    describe_next_poi,
    describe_ranking,
    rank_baselines,
    without_nan,
)
from models.evaluation.impressions import Impressions, score_by_embeddings
from models.evaluation.new_places import NEW_LOGITS, describe_new_places, rank_rows_shifted
from models.evaluation.release_split import EvaluationRows
from models.serving.bundle import ModelBundle
from models.serving.inference import (
    ShiftedRanks,
    rank_targets_by_model,
    rank_targets_shifted,
    score_candidates,
)
from models.tracking import RunLog

LOGGER = logging.getLogger(__name__)
RELEASE_SPLIT = "release-split"
ROWS_PER_BATCH = 2_048
MAX_SHIFTED_ROWS = 1_000
"""Rows of the trade-off curve, which ranks each target several times."""
EVALUATION_FILE = "evaluation.json"
LOG_WIDTH = 110
"""Width of a table that is not printed in a terminal, in characters."""


def evaluate_next_poi(
    rows: EvaluationRows, bundle: ModelBundle | None, *, seed: int = 0, device: str = "cpu"
) -> Figures:
    """Ranks the targets by every baseline and by every generating stage of the bundle."""
    ranks = rank_baselines(rows.requests, rows.counts, catalogue=rows.catalogue)
    stages = [stage for stage in ("pretrain", "align_dpo") if bundle and stage in bundle.stage_names]
    for stage in stages:
        assert bundle is not None
        LOGGER.info("ranking %d targets by %s", len(rows.requests), stage)
        ranks[stage] = _rank_by_stage(rows, bundle, stage, device)
    figures = describe_next_poi(rows.requests, ranks, seed=seed)
    figures["not_live"] = rows.num_not_live
    figures["action_type"] = ACTION_TYPES[rows.action_type_id]
    figures["is_simulated"] = rows.is_simulated
    figures["minus_kernel_counter"] = {
        stage: compare_next_poi(rows.requests, ranks[stage], ranks["kernel_counter"], seed=seed)
        for stage in stages
    }
    return figures


def evaluate_new_places(
    rows: EvaluationRows, bundle: ModelBundle, *, seed: int = 0, device: str = "cpu"
) -> Figures:
    """Shifts the generating stage towards new places, on at most `MAX_SHIFTED_ROWS` rows; see `describe_new_places`."""
    drawn, model = rows.draw(MAX_SHIFTED_ROWS), bundle.model(bundle.generator_stage, device)

    def rank(batch: pa.RecordBatch, targets: IntArray) -> ShiftedRanks:
        return rank_targets_shifted(
            model, batch, targets, drawn.catalogue, logits=NEW_LOGITS, device=device, finder=drawn.finder
        )

    found = rank_rows_shifted(drawn, rank)
    p_new = bundle.p_new_calibration.apply(torch.from_numpy(found.p_new)).numpy()
    figures = describe_new_places(drawn, [found._replace(p_new=p_new)], seed=seed)
    return figures | {"is_simulated": rows.is_simulated, "drawn_of": len(rows.requests)}


def evaluate_ranking(
    samples: pa.Table,
    popularity: Mapping[str, float],
    bundle: ModelBundle | None,
    *,
    seed: int = 0,
    device: str = "cpu",
    towers_before_sft: bool = False,
) -> Figures:
    """Scores the impressions of ranking samples by the baselines and by the SFT stages of the bundle.

    Args:
        samples: `ranking_samples` of one split.
        popularity: training visits by POI id.
        bundle: bundle whose `sft_ranking` and `sft_embedding` stages are scored, if present.
        seed: seed of the bootstrap.
        device: device of the models.
        towers_before_sft: score the towers as pre-training leaves them, too; for interest pre-training, which trains
            them.
    """
    shown = Impressions.from_samples(samples)
    poi_ids = shown.flat("candidate_poi_ids")
    scores = {
        "distance": score_by_distance(
            _as_floats(shown.per_request("user_lon")), _as_floats(shown.per_request("user_lat")),
            shown.flat("candidate_lons").astype(np.float64), shown.flat("candidate_lats").astype(np.float64),
        ),
        "popularity": np.array([popularity.get(poi_id, 0.0) for poi_id in poi_ids]),
    }  # fmt: skip
    probabilities = None
    if bundle and "sft_embedding" in bundle.stage_names:
        scores["sft_embedding"] = score_by_embeddings(shown, bundle, device)
    if bundle and towers_before_sft:
        scores["pretrain_towers"] = score_by_embeddings(shown, bundle, device, stage="pretrain")
    if bundle and "sft_ranking" in bundle.stage_names:
        batch = samples.combine_chunks().to_batches()
        logits = [
            np.concatenate(score_candidates(bundle, part, device=device)) for part in batch if part.num_rows
        ]
        scores["sft_ranking"] = np.concatenate(logits).astype(np.float64)
        probabilities = 1.0 / (1.0 + np.exp(-scores["sft_ranking"]))
    row_ids = [
        f"{request}|{poi}" for request, poi in zip(shown.per_request("request_id"), poi_ids, strict=True)
    ]
    users = shown.per_request("user_id").astype(str)
    figures = describe_ranking(row_ids, users, shown.labels, scores, probabilities=probabilities, seed=seed)
    figures["requests"] = samples.num_rows
    figures["is_simulated"] = any(samples["is_simulated"].to_pylist())
    return figures


def print_figures(evaluation: Figures, console: Console | None = None) -> None:
    """Prints one table per task, baselines first."""
    console = console or Console(stderr=True, width=None if sys.stderr.isatty() else LOG_WIDTH)
    next_poi, ranking = evaluation.get("next_poi"), evaluation.get("ranking")
    if isinstance(next_poi, dict):
        label = _label_simulated(next_poi)
        for group, count in next_poi["rows_by_group"].items():
            title = f"next POI, {evaluation['protocol']}, {evaluation['split']}{label}: {group}, {count} rows"
            console.print(_next_poi_table(title, next_poi, group))
        all_rows = next_poi.get("drawn_of", 0)
        drawn = f", drawn of {all_rows}" if all_rows > next_poi["rows"] else ""
        console.print(
            f"{next_poi['rows']} rows of {next_poi['users']} users{drawn}, digest {next_poi['digest']}"
        )
        for method, differences in next_poi.get("minus_kernel_counter", {}).items():
            console.print(
                f"{method} minus the recency-weighted visits, same rows: {_describe_differences(differences)}"
            )
    if isinstance(ranking, dict):
        label = _label_simulated(ranking)
        console.print(
            _ranking_table(f"clicks, {evaluation['split']}{label}: {ranking['rows']} impressions", ranking)
        )
        console.print(
            f"{ranking['rows']} impressions of {ranking['users']} users, digest {ranking['digest']}"
        )


def save_figures(evaluation: Figures, path: Path) -> Path:
    """Writes the figures as JSON (nan becomes null)."""
    write_json(path, without_nan(evaluation))
    return path


def log_figures(evaluation: Figures, log: RunLog) -> None:
    """Logs the figures of all rows to MLflow as `test/METHOD/hr_at_1` and so on."""
    split = str(evaluation["split"])
    metrics: dict[str, float] = {}
    next_poi, ranking = evaluation.get("next_poi"), evaluation.get("ranking")
    if isinstance(next_poi, dict):
        for method, groups in next_poi["methods"].items():
            figures = {name: value for name, value in groups["all"].items() if isinstance(value, float)}
            metrics |= {f"{split}/{method}/{name}": value for name, value in figures.items()}
    if isinstance(ranking, dict):
        for method, figures in ranking["methods"].items():
            metrics |= {
                f"{split}/{method}/auc": figures["auc"]["value"],
                f"{split}/{method}/gauc": figures["gauc"],
            }
    probe, new_places = evaluation.get("attribute_probe"), evaluation.get("new_places")
    if isinstance(probe, float):
        metrics["probe/attribute"] = probe
    if isinstance(new_places, dict):
        metrics[f"{split}/p_new_auc"] = new_places["p_new_auc"]
        metrics[f"{split}/among_new_hr_at_10"] = new_places["among_new"]["hr_at_10"]["value"]
    log.log_metrics({name: value for name, value in metrics.items() if not np.isnan(value)})
    log.log_tags(
        {
            "simulated": str(bool(evaluation.get("is_simulated"))).lower(),
            "protocol": str(evaluation["protocol"]),
        }
    )
    log.flush()


def headline(evaluation: Figures) -> dict[str, object]:
    """Returns the main figures for the summary of the job."""
    notes: dict[str, object] = {"not_evaluated": evaluation["skipped"]} if evaluation.get("skipped") else {}
    next_poi, ranking = evaluation.get("next_poi"), evaluation.get("ranking")
    if isinstance(next_poi, dict):
        notes["digest"] = next_poi["digest"]
        notes |= {
            f"{method}_acc1": _round(values["all"]["hr_at_1"])
            for method, values in next_poi["methods"].items()
        }
    if isinstance(ranking, dict):
        notes |= {
            f"{method}_auc": _round(values["auc"]["value"]) for method, values in ranking["methods"].items()
        }
    probe = evaluation.get("attribute_probe")
    if isinstance(probe, float):
        notes["attribute_probe"] = _round(probe)
    return notes


def _round(figure: float) -> float | None:
    """Rounds a figure; returns None for nan, which JSON does not have."""
    return None if np.isnan(figure) else round(figure, 4)


def _rank_by_stage(rows: EvaluationRows, bundle: ModelBundle, stage: str, device: str) -> Ranks:
    higher, equal = np.zeros(len(rows.requests), np.int64), np.ones(len(rows.requests), np.int64)
    model = bundle.model(stage, device)
    for positions, batch in rows.batches(ROWS_PER_BATCH):
        ranks = rank_targets_by_model(
            model, batch, rows.requests.targets[positions], rows.catalogue, device=device, finder=rows.finder
        )
        higher[positions], equal[positions] = ranks.num_higher, ranks.num_equal
    return Ranks(higher, equal)


def _label_simulated(figures: dict) -> str:
    """Returns a label for simulated rows; each task has its own, as simulated clicks may join real check-ins."""
    return " (simulated)" if figures.get("is_simulated") else ""


def _next_poi_table(title: str, figures: dict[str, dict], group: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in (*(f"Acc@{k}" for k in HIT_KS), "MRR", "Acc@1, 95 %"):
        table.add_column(name, justify="right")
    for method, groups in figures["methods"].items():
        metrics = groups[group]
        interval = metrics.get("hr_at_1_interval")
        interval_text = f"{interval['low']:.3f} to {interval['high']:.3f}" if interval else ""
        values = [metrics[f"hr_at_{k}"] for k in HIT_KS] + [metrics["mrr"]]
        table.add_row(method, *(f"{value:.4f}" for value in values), interval_text)
    return table


def _describe_differences(differences: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(
        f"{name} {difference['value']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
        for name, difference in differences.items()
    )


def _ranking_table(title: str, figures: dict[str, dict]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("method", "AUC", "AUC, 95 %", "GAUC"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, metrics in figures["methods"].items():
        auc = metrics["auc"]
        table.add_row(
            method, f"{auc['value']:.4f}", f"{auc['low']:.3f} to {auc['high']:.3f}", f"{metrics['gauc']:.4f}"
        )
    return table


def _as_floats(values: np.ndarray) -> Float64Array:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
