"""The embedding part of the gate: vectors must retrieve clicked POIs, rank impressions, and not collapse.

The dot products of a user's vector at a held-out request with all live POIs rank the clicked POIs. Their MRR must beat
popularity on the same clicks. The vectors must not retrieve or rank clicks worse than the best of the last champions
beyond chance. Vectors that are all similar, or lie on a line, are refused whatever their MRR. Values that are not
numbers are refused, and a bundle that cannot be judged is not promoted.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.data.arrays import Float64Array, IntArray
from models.data.ranks import Ranks
from models.evaluation.figures import SCORES_PER_CHUNK
from models.evaluation.impressions import Impressions, score_by_embeddings
from models.evaluation.metrics import (
    auc,
    bootstrap_auc_difference,
    bootstrap_mean,
    exact_mean,
    rank_targets,
    reciprocal_values,
)
from models.evaluation.release_split import EvaluationRows
from models.evaluation.vector_spread import Spread, describe_collapse, measure_spread
from models.registry.champions import Champions
from models.registry.click_gate import AUC_TOLERANCE, describe_missing_class, take_impressions
from models.serving.bundle import ModelBundle
from models.serving.inference import encode_pois, encode_user_requests

STAGE = "sft_embedding"
MRR_TOLERANCE = 0.1
"""Allowed deficit of a challenger's MRR, as a share of the champion's."""
TRADED_TOLERANCE = 0.5
"""The same for a challenger whose vectors order impressions better than those of every champion.

The loss of embedding SFT orders what was shown, and finding a POI among all of them is a by-product that moves by tens
of percent between equal trainings. So vectors may give up some of the one for the other, but not most of it.
"""
Vectors = np.ndarray


@dataclass(frozen=True)
class EmbeddingVerdict:
    """The gate's verdict on vectors, on the same rows for all models.

    Attributes:
        requests: number of held-out requests.
        clicks: number of clicked POIs.
        mrr: MRR of the challenger's vectors.
        popularity_mrr: MRR of training visits.
        champion_mrr: best MRR of the champions; None = no champion has vectors.
        auc: AUC of the challenger on the impressions.
        champion_auc: best AUC of the champions.
        users: spread of the users' vectors.
        pois: spread of the POIs' vectors.
        reasons: reasons against promotion; empty = none.
    """

    requests: int
    clicks: int
    mrr: float
    popularity_mrr: float
    champion_mrr: float | None
    auc: float
    champion_auc: float | None
    users: Spread | None
    pois: Spread | None
    reasons: tuple[str, ...]


def judge_embeddings(
    rows: EvaluationRows | None, samples: pa.Table | None, challenger: ModelBundle, champions: Champions
) -> EmbeddingVerdict | None:
    """Judges a challenger's vectors; returns None if it has no embedding stage.

    Args:
        rows: rows of the validation split, for their catalogue and counts; None = there are none.
        samples: `ranking_samples` of the validation split; None = there are none.
        challenger: the new bundle.
        champions: the current and former champions of the same index version.
    """
    if STAGE not in challenger.stage_names:
        return None
    shown = take_impressions(samples)
    missing = describe_missing_class(shown)
    if rows is None or missing:
        nan, missing = math.nan, missing or "there is no validation row of pretrain_samples"
        reason = f"embeddings: no verdict, {missing}"
        return EmbeddingVerdict(0, 0, nan, nan, None, nan, None, None, None, (reason,))
    assert shown is not None
    clicks = find_clicks(shown, rows)
    users, pois = encode_both(shown, rows, challenger)
    num_bad = count_bad(users) + count_bad(pois)
    if num_bad:
        nan, share_text = math.nan, f"{num_bad} of {len(users) + len(pois)}"
        reason = f"{share_text} vectors hold what is not a finite number"
        return EmbeddingVerdict(
            len(users), len(clicks.pois), nan, nan, None, nan, None, None, None, (reason,)
        )
    embedding_champions = {
        version: bundle for version, bundle in champions.items() if STAGE in bundle.stage_names
    }
    challenger_auc, best_auc, against = _judge_order(shown, challenger, embedding_champions)
    orders_better = best_auc is not None and challenger_auc > best_auc
    mrr, baseline, mark, reasons = _judge_retrieval(
        shown,
        rows,
        clicks,
        (users, pois),
        embedding_champions,
        tolerance=TRADED_TOLERANCE if orders_better else MRR_TOLERANCE,
    )
    # One request per user: several vectors of one user are close together and would look like a collapse.
    first = np.unique(shown.requests["user_id"].to_numpy(), return_index=True)[1]
    of_users, of_pois = measure_spread(users[first]), measure_spread(pois)
    reasons += against
    reasons += describe_collapse(of_users, "user vectors") + describe_collapse(of_pois, "POI vectors")
    return EmbeddingVerdict(
        len(users),
        len(clicks.pois),
        mrr,
        baseline,
        mark,
        challenger_auc,
        best_auc,
        of_users,
        of_pois,
        tuple(reasons),
    )


@dataclass(frozen=True)
class Clicks:
    """Clicked POIs, one row each.

    Attributes:
        requests: row of the request.
        pois: row of the POI in the catalogue.
        times_ms: time of the request.
        users: user of the click.
    """

    requests: IntArray
    pois: IntArray
    times_ms: IntArray
    users: NDArray[np.generic]


def find_clicks(shown: Impressions, rows: EvaluationRows) -> Clicks:
    """Returns the clicks on POIs of the catalogue."""
    slots = (shown.flat(f"candidate_{name}").astype(np.int64) for name in ("block_ids", "inner_ids"))
    pois = rows.catalogue.find_rows(*slots)
    clicked = np.flatnonzero((shown.labels == 1) & (pois >= 0))
    users, times = shown.per_request("user_id").astype(str), shown.per_request("request_ts_ms")
    return Clicks(shown.request_rows[clicked], pois[clicked], times[clicked].astype(np.int64), users[clicked])


def encode_both(shown: Impressions, rows: EvaluationRows, bundle: ModelBundle) -> tuple[Vectors, Vectors]:
    """Returns the vectors of the users at their requests, and of all POIs of the catalogue; float32."""
    catalogue = rows.catalogue
    batches = [part for part in shown.requests.to_batches() if part.num_rows]
    users = np.concatenate([encode_user_requests(bundle, part) for part in batches])
    slots = {
        "block_id": catalogue.block_ids, "inner_id": catalogue.inner_ids, "category_id": catalogue.category_ids,
        "poi_lon": catalogue.lons, "poi_lat": catalogue.lats,
    }  # fmt: skip
    return users, encode_pois(bundle, pa.record_batch({name: pa.array(ids) for name, ids in slots.items()}))


def rank_clicks(clicks: Clicks, rows: EvaluationRows, users: Vectors, pois: Vectors) -> Float64Array:
    """Returns 1 / expected rank of every click by dot products, among all POIs live as of its request."""
    parts, chunk = [], max(1, SCORES_PER_CHUNK // max(len(pois), 1))
    for start in range(0, len(clicks.pois), chunk):
        span = slice(start, start + chunk)
        scores = users[clicks.requests[span]].astype(np.float64) @ pois.astype(np.float64).T
        live = rows.catalogue.live_mask(clicks.times_ms[span])
        parts.append(rank_targets(scores, clicks.pois[span], live))
    return reciprocal_values(Ranks.join(parts))


def count_bad(vectors: Vectors) -> int:
    """Counts vectors with a value that is not finite."""
    return int((~np.isfinite(vectors)).any(axis=1).sum())


def _judge_retrieval(
    shown: Impressions,
    rows: EvaluationRows,
    clicks: Clicks,
    vectors: tuple[Vectors, Vectors],
    champions: Champions,
    *,
    tolerance: float,
) -> tuple[float, float, float | None, list[str]]:
    """Returns MRR of the challenger, popularity and the best champion, and reasons against the challenger."""
    challenger_ranks = rank_clicks(clicks, rows, *vectors)
    # Popularity is one number per POI for every user: vectors of length one.
    visits = np.asarray(rows.counts.popularity, np.float64)[:, None]
    baseline = exact_mean(rank_clicks(clicks, rows, np.ones((shown.requests.num_rows, 1)), visits))
    mrr, best = exact_mean(challenger_ranks), None
    reasons = []
    if not mrr > baseline:
        reasons.append(f"embedding MRR {mrr:.4f} does not beat popularity {baseline:.4f}")
    values: dict[str, Float64Array] = {}
    for version, bundle in champions.items():
        champion_vectors = encode_both(shown, rows, bundle)
        if not any(map(count_bad, champion_vectors)):  # a damaged champion is ignored
            values[version] = rank_clicks(clicks, rows, *champion_vectors)
    if values:
        version = max(values, key=lambda name: exact_mean(values[name]))
        best = exact_mean(values[version])
        difference = bootstrap_mean(challenger_ranks - values[version], clicks.users)
        # With fewer than two users the interval is nan, which counts against the challenger.
        if mrr < (1 - tolerance) * best and not difference.high >= 0:
            reasons.append(f"embedding MRR {mrr:.4f} is below that of the champion {version}, {best:.4f}")
    return mrr, baseline, best, reasons


def _judge_order(
    shown: Impressions, challenger: ModelBundle, champions: Champions
) -> tuple[float, float | None, list[str]]:
    """Returns AUC of the challenger and the best champion, and reasons against the challenger."""
    challenger_scores = score_by_embeddings(shown, challenger)
    challenger_auc = (
        auc(challenger_scores, shown.labels) if np.isfinite(challenger_scores).all() else math.nan
    )
    if math.isnan(challenger_auc):
        return challenger_auc, None, ["the embedding AUC is not a number"]
    scores = {version: score_by_embeddings(shown, bundle) for version, bundle in champions.items()}
    scores = {version: each for version, each in scores.items() if np.isfinite(each).all()}
    if not scores:
        return challenger_auc, None, []
    version = max(scores, key=lambda name: auc(scores[name], shown.labels))
    best = auc(scores[version], shown.labels)
    users = shown.per_request("user_id").astype(str)
    difference = bootstrap_auc_difference(challenger_scores, scores[version], shown.labels, users)
    if challenger_auc < best - AUC_TOLERANCE and not difference.high >= 0:
        return (
            challenger_auc,
            best,
            [f"embedding AUC {challenger_auc:.4f} is below that of the champion {version}, {best:.4f}"],
        )
    return challenger_auc, best, []
