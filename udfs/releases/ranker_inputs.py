"""Looks up the features of one release for shown POIs, as a ranking team needs them, without Spark.

    inputs = read_ranker_inputs("warehouse", request_ids, user_ids, poi_ids)
    features = np.column_stack([base, inputs.click_logits, (inputs.users * inputs.pois).sum(axis=1)])

`models.lift.ranker` trains on such columns. Values that the release lacks are NaN; tree models accept NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from conf.releases import find_release
from models.data.arrays import Float64Array
from udfs.releases.reader import read_release
from udfs.releases.release_log import load_releases


@dataclass(frozen=True)
class RankerInputs:
    """Features of a release for shown POIs.

    Attributes:
        release_id: the release of all features.
        click_logits: (rows,), calibrated log-odds of a click; NaN = not scored.
        users: (rows, E), vector of the user; NaN = none.
        pois: (rows, E), vector of the POI; NaN = none.
    """

    release_id: int
    click_logits: Float64Array
    users: Float64Array
    pois: Float64Array


def read_ranker_inputs(
    root: str,
    request_ids: Sequence[str],
    user_ids: Sequence[str],
    poi_ids: Sequence[str],
    *,
    release: int | None = None,
) -> RankerInputs:
    """Looks up shown POIs in one release.

    Args:
        root: table root.
        request_ids: request of each row.
        user_ids: user of each row.
        poi_ids: POI of each row.
        release: number of the release; the current one if None.

    Raises:
        NoReleaseError: there is no such release.
    """
    # The release is resolved once: one published between two reads must not be mixed in.
    number = find_release(load_releases(None, root), root, release).release_id
    scores = read_release(None, root, "ranking_scores", release=number)
    keys = zip(scores["request_id"].to_pylist(), scores["poi_id"].to_pylist(), strict=True)
    logits = dict(zip(keys, scores["click_logit"].to_pylist(), strict=True))
    shown = zip(request_ids, poi_ids, strict=True)
    return RankerInputs(
        release_id=number,
        click_logits=np.array([logits.get(key, np.nan) for key in shown], dtype=np.float64),
        users=_look_up(read_release(None, root, "user_embeddings", release=number), "user_id", user_ids),
        pois=_look_up(read_release(None, root, "poi_embeddings", release=number), "poi_id", poi_ids),
    )


def _look_up(vectors: pa.Table, key: str, ids: Sequence[str]) -> Float64Array:
    """Returns the vector of each id, (rows, E); NaN where there is none."""
    row_of = {name: row for row, name in enumerate(vectors[key].to_pylist())}
    flat = vectors["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix = flat.reshape(vectors.num_rows, -1).astype(np.float64)
    rows = np.array([row_of.get(name, -1) for name in ids], dtype=np.int64)
    if not len(matrix):
        return np.full((len(rows), 1), np.nan)
    looked_up: Float64Array = np.where((rows >= 0)[:, None], matrix[rows], np.nan)
    return looked_up
