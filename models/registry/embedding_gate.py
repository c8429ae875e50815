"""The embedding half of the gate: vectors that find clicked POIs, order impressions, and tell things apart.

A user's vector at a held-out request times the vectors of all live POIs ranks the POIs that were clicked; the MRR has
to beat popularity's on the same clicks. Nor may the vectors find or order clicks worse than those of the best of the
last champions, beyond what chance explains. Vectors that all look alike, or lie on a line, are refused whatever they
find. What is not a number is refused, and what cannot be judged is not promoted.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.data.ranks import Ranks
from models.evaluation.figures import SCORES_PER_CHUNK
from models.evaluation.impressions import Impressions, score_by_embeddings
from models.evaluation.metrics import (
    FloatArray,
    IntArray,
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
from models.registry.click_gate import AUC_TOLERANCE, take_impressions, tell_missing_class
from models.serving.bundle import ModelBundle
from models.serving.inference import encode_pois, encode_user_requests

STAGE = "sft_embedding"
MRR_TOLERANCE = 0.1
"""Share of a champion's MRR that a challenger's may lie below it."""
Vectors = np.ndarray


@dataclass(frozen=True)
class EmbeddingVerdict:
    """What the gate found on rows that all were asked.

    Attributes:
        requests: held-out requests looked at.
        clicks: clicked POIs looked for.
        mrr: of the challenger's vectors.
        popularity_mrr: of training visits.
        champion_mrr: the best of the champions'; None = there is none that embeds.
        auc: the challenger's, on the impressions.
        champion_auc: the best of the champions'.
        users: spread of the users' vectors.
        pois: spread of the POIs' vectors.
        reasons: why it is not promoted; empty = nothing against it.
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
    """Judges a challenger's vectors; None if it makes none.

    Args:
        rows: of the validation split, for their catalogue and counts; None = there are none.
        samples: `ranking_samples` of the validation split; None = there are none.
        challenger: the new bundle.
        champions: those in use now and before, for the same index version.
    """
    if STAGE not in challenger.stage_names:
        return None
    shown = take_impressions(samples)
    missing = tell_missing_class(shown)
    if rows is None or missing:
        nan, missing = math.nan, missing or "there is no validation row of pretrain_samples"
        reason = f"embeddings: no verdict, {missing}"
        return EmbeddingVerdict(0, 0, nan, nan, None, nan, None, None, None, (reason,))
    assert shown is not None
    clicks = find_clicks(shown, rows)
    users, pois = encode_both(shown, rows, challenger)
    num_bad = count_bad(users) + count_bad(pois)
    if num_bad:
        nan, told = math.nan, f"{num_bad} of {len(users) + len(pois)}"
        reason = f"{told} vectors hold what is not a finite number"
        return EmbeddingVerdict(
            len(users), len(clicks.pois), nan, nan, None, nan, None, None, None, (reason,)
        )
    theirs = {version: bundle for version, bundle in champions.items() if STAGE in bundle.stage_names}
    found, baseline, mark, reasons = _judge_retrieval(shown, rows, clicks, (users, pois), theirs)
    own_auc, best_auc, against = _judge_order(shown, challenger, theirs)
    # One request a user: several of one user lie close together and would pass for a collapse.
    first = np.unique(shown.requests["user_id"].to_numpy(), return_index=True)[1]
    of_users, of_pois = measure_spread(users[first]), measure_spread(pois)
    reasons += against
    reasons += describe_collapse(of_users, "user vectors") + describe_collapse(of_pois, "POI vectors")
    return EmbeddingVerdict(
        len(users),
        len(clicks.pois),
        found,
        baseline,
        mark,
        own_auc,
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
        users: who clicked.
    """

    requests: IntArray
    pois: IntArray
    times_ms: IntArray
    users: NDArray[np.generic]


def find_clicks(shown: Impressions, rows: EvaluationRows) -> Clicks:
    """Returns the clicks on POIs of the catalogue."""
    slots = (shown.flat(f"candidate_{name}").astype(np.int64) for name in ("block_ids", "inner_ids"))
    pois = rows.catalogue.find_rows(*slots)
    kept = np.flatnonzero((shown.labels == 1) & (pois >= 0))
    users, times = shown.per_request("user_id").astype(str), shown.per_request("request_ts_ms")
    return Clicks(shown.request_rows[kept], pois[kept], times[kept].astype(np.int64), users[kept])


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


def rank_clicks(clicks: Clicks, rows: EvaluationRows, users: Vectors, pois: Vectors) -> FloatArray:
    """Returns 1 / expected rank of every click by dot products, among all POIs live as of its request."""
    parts, chunk = [], max(1, SCORES_PER_CHUNK // max(len(pois), 1))
    for start in range(0, len(clicks.pois), chunk):
        own = slice(start, start + chunk)
        scores = users[clicks.requests[own]].astype(np.float64) @ pois.astype(np.float64).T
        live = rows.catalogue.live_mask(clicks.times_ms[own])
        parts.append(rank_targets(scores, clicks.pois[own], live))
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
) -> tuple[float, float, float | None, list[str]]:
    """Returns MRR of the challenger, of popularity, of the best champion, and what is against the challenger."""
    own = rank_clicks(clicks, rows, *vectors)
    # Popularity is one number per POI whoever asks: vectors of length one.
    visits = np.asarray(rows.counts.popularity, np.float64)[:, None]
    baseline = exact_mean(rank_clicks(clicks, rows, np.ones((shown.requests.num_rows, 1)), visits))
    found, best = exact_mean(own), None
    reasons = []
    if not found > baseline:
        reasons.append(f"embedding MRR {found:.4f} does not beat popularity {baseline:.4f}")
    values: dict[str, FloatArray] = {}
    for version, bundle in champions.items():
        theirs = encode_both(shown, rows, bundle)
        if not any(map(count_bad, theirs)):  # a damaged champion sets no mark
            values[version] = rank_clicks(clicks, rows, *theirs)
    if values:
        version = max(values, key=lambda name: exact_mean(values[name]))
        best = exact_mean(values[version])
        difference = bootstrap_mean(own - values[version], clicks.users)
        # With fewer than two users the interval is nan, which speaks against the challenger here.
        if found < (1 - MRR_TOLERANCE) * best and not difference.high >= 0:
            reasons.append(f"embedding MRR {found:.4f} is below that of the champion {version}, {best:.4f}")
    return found, baseline, best, reasons


def _judge_order(
    shown: Impressions, challenger: ModelBundle, champions: Champions
) -> tuple[float, float | None, list[str]]:
    """Returns AUC of the challenger, of the best champion, and what is against the challenger."""
    own = score_by_embeddings(shown, challenger)
    found = auc(own, shown.labels) if np.isfinite(own).all() else math.nan
    if math.isnan(found):
        return found, None, ["the embedding AUC is not a number"]
    scores = {version: score_by_embeddings(shown, bundle) for version, bundle in champions.items()}
    scores = {version: each for version, each in scores.items() if np.isfinite(each).all()}
    if not scores:
        return found, None, []
    version = max(scores, key=lambda name: auc(scores[name], shown.labels))
    best = auc(scores[version], shown.labels)
    users = shown.per_request("user_id").astype(str)
    difference = bootstrap_auc_difference(own, scores[version], shown.labels, users)
    if found < best - AUC_TOLERANCE and not difference.high >= 0:
        return found, best, [f"embedding AUC {found:.4f} is below that of the champion {version}, {best:.4f}"]
    return found, best, []
