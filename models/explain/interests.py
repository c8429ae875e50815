"""Interests of a user as embedding SFT has learned them: the POIs nearest to the user's vector, and their categories.

The vector is that of the request, so it knows hour and place, too; POIs that lie far away are not compared. A category
counts as an interest by how often it is among the nearest POIs, against how often it is there at all.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.data.catalogue import Catalogue
from models.data.geo import distance_km
from models.explain.attribution import Explanation, Place
from models.serving.bundle import ModelBundle
from models.serving.inference import encode_pois, encode_user_requests

MAX_COMPARED = 5_000
"""Live POIs that are compared, those nearest to the user."""
NUM_NEAREST = 50
"""POIs whose categories are counted."""
STAGE = "sft_embedding"


@dataclass(frozen=True)
class SimilarPoi:
    """A POI near the user's vector: id, cosine of both vectors, and the user's visits before."""

    poi_id: str
    cosine: float
    num_visits: int


@dataclass(frozen=True)
class CategoryInterest:
    """A category: its share of the POIs nearest to the user's vector, and of all POIs that were compared."""

    category_id: int
    share: float
    usual: float


@dataclass(frozen=True)
class Interests:
    """What a user likes, by the user's vector.

    Attributes:
        pois: nearest POIs, most similar first.
        categories: categories of the `NUM_NEAREST` nearest POIs, those that stand out most first.
        num_compared: number of POIs that were compared.
    """

    pois: tuple[SimilarPoi, ...]
    categories: tuple[CategoryInterest, ...]
    num_compared: int


def find_interests(
    bundle: ModelBundle,
    request: pa.RecordBatch,
    catalogue: Catalogue,
    explanation: Explanation,
    *,
    top_k: int,
) -> Interests | None:
    """Compares the user's vector at a request with those of live POIs; None if the bundle has no embedding stage.

    Args:
        bundle: bundle with the stage `sft_embedding`.
        request: one row.
        catalogue: slots of the bundle's index version.
        explanation: explanation of the same request.
        top_k: number of POIs and of categories, at most.
    """
    if STAGE not in bundle.stage_names:
        return None
    rows = _nearest_rows(catalogue, explanation.place, explanation.timestamp_ms)
    if not len(rows):
        return None
    user = encode_user_requests(bundle, request)[0].astype(np.float64)
    vectors = encode_pois(bundle, catalogue.take(rows))
    cosines = vectors.astype(np.float64) @ user
    order = np.argsort(-cosines, kind="stable")
    visits = Counter(explanation.past.poi_ids)
    ids = [str(poi_id) for poi_id in catalogue.poi_ids[rows[order[:top_k]]]]
    pois = tuple(
        SimilarPoi(poi_id, float(cosine), visits[poi_id])
        for poi_id, cosine in zip(ids, cosines[order[:top_k]], strict=True)
    )
    usual = Counter(catalogue.category_ids[rows].tolist())
    nearest = Counter(catalogue.category_ids[rows[order[:NUM_NEAREST]]].tolist())
    num_nearest = min(NUM_NEAREST, len(rows))
    categories = [
        CategoryInterest(category, count / num_nearest, usual[category] / len(rows))
        for category, count in nearest.items()
    ]
    categories.sort(key=lambda found: (found.usual - found.share, found.category_id))
    return Interests(pois, tuple(categories[:top_k]), len(rows))


def _nearest_rows(catalogue: Catalogue, place: Place, timestamp_ms: int) -> np.ndarray:
    """Returns the catalogue rows of live POIs, at most `MAX_COMPARED`, nearest first; of any place if it is unknown."""
    rows = np.flatnonzero(catalogue.live_mask(np.array([timestamp_ms]))[0])
    if np.isnan(place[0]):
        return rows[:MAX_COMPARED]
    distances = distance_km(
        np.full(len(rows), place[0]), np.full(len(rows), place[1]), catalogue.lons[rows], catalogue.lats[rows]
    )
    return rows[np.argsort(distances, kind="stable")[:MAX_COMPARED]]
