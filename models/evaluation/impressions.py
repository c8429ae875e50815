"""Flat impressions of ranking samples, one row per shown POI, and their scores by a bundle.

Evaluation and the gate share this code, so they score the same rows in the same way.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from models.data.arrays import Float64Array, IntArray
from models.data.ragged import rows_and_places
from models.serving.bundle import ModelBundle
from models.serving.inference import encode_pois, encode_user_requests


@dataclass(frozen=True)
class Impressions:
    """One row per shown POI of ranking samples.

    Attributes:
        requests: the samples.
        request_rows: sample of each impression.
        positions: place of each impression in its sample's candidates.
        labels: 1 clicked, 0 shown.
    """

    requests: pa.Table
    request_rows: IntArray
    positions: IntArray
    labels: IntArray

    @classmethod
    def from_samples(cls, samples: pa.Table) -> "Impressions":
        """Flattens `ranking_samples`."""
        labels = samples["labels"].combine_chunks()
        lengths = np.array([len(row) for row in labels], dtype=np.int64)
        rows, positions = rows_and_places(lengths)
        flat = np.array([label for row in labels.to_pylist() for label in row], dtype=np.int64)
        return cls(samples, rows, positions, flat)

    def flat(self, column: str) -> np.ndarray:
        """Returns a candidate column, one value per impression."""
        return np.array([value for row in self.requests[column].to_pylist() for value in row])

    def per_request(self, column: str) -> np.ndarray:
        """Returns a request column repeated for every impression."""
        return self.requests[column].to_numpy()[self.request_rows]


def score_by_embeddings(
    shown: Impressions, bundle: ModelBundle, device: str = "cpu", *, stage: str = "sft_embedding"
) -> Float64Array:
    """Returns the dot product of the user's vector at the request and the POI's vector for each impression.

    `stage` names the stage of the bundle whose towers make the vectors.
    """
    batches = [part for part in shown.requests.combine_chunks().to_batches() if part.num_rows]
    users = np.concatenate(
        [encode_user_requests(bundle, part, device=device, stage=stage) for part in batches]
    )
    columns = {"block_id": "block_ids", "inner_id": "inner_ids", "category_id": "category_ids",
               "poi_lon": "lons", "poi_lat": "lats"}  # fmt: skip
    pois = pa.record_batch({name: pa.array(shown.flat(f"candidate_{old}")) for name, old in columns.items()})
    vectors = encode_pois(bundle, pois, device=device, stage=stage)
    return (users[shown.request_rows].astype(np.float64) * vectors).sum(axis=1)
