"""Views of the published features: calibration of the scores, projection of the vectors.

In: the tables of a release. Out: two sections. Vectors are read for a sample of at most a few
thousand keys, picked by hash: the same on every run.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from models.data.arrays import Float64Array
from models.evaluation.metrics import CalibrationBins, auc, calibration_bins
from models.report.data import NothingToShowError, ReleaseTables, sample_keys
from models.report.page import (
    Figure,
    Section,
    TableView,
    Tile,
    Topic,
    format_count,
    format_figure,
    format_share,
)
from models.report.plots import OTHER, SERIES, draw_histogram, draw_projection, draw_reliability
from models.report.sequences import load_category_names

MAX_POIS, MAX_USERS = 3000, 800
NUM_COLORS = 7
COLLAPSED = 0.9

CALIBRATION = Topic(
    "calibration",
    "Score calibration",
    sees=(
        "Whether a score of 0.3 is clicked three times in ten: predicted against observed, and how the "
        "scores spread."
    ),
    alarm="Dots far from the dashed line, or all scores in one spike: the probabilities mean nothing.",
)
EMBEDDINGS = Topic(
    "embeddings",
    "Embedding space",
    sees=(
        "POI vectors on their two principal axes, coloured by category, users among them as hollow diamonds."
    ),
    alarm="One tight ball (collapsed vectors), or users in a region of their own that no POI reaches.",
)


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of some entities, in the order of their keys."""

    keys: np.ndarray
    matrix: Float64Array

    def align(self, other: "Vectors") -> tuple[Float64Array, Float64Array]:
        """Returns the vectors of the entities that both hold, row by row."""
        _, mine, theirs = np.intersect1d(self.keys, other.keys, assume_unique=True, return_indices=True)
        return self.matrix[mine], other.matrix[theirs]


# --- calibration --------------------------------------------------------------------------------------------


def load_scores(tables: ReleaseTables) -> pa.Table:
    """Reads the scores of the release's day."""
    scores = tables.scan("ranking_scores", ["request_id", "poi_id", "score"], tables.today)
    if not scores.num_rows:
        raise NothingToShowError(f"No request was scored on {tables.day}.")
    return scores


def join_labels(tables: ReleaseTables, scores: pa.Table) -> pa.Table:
    """Returns the scored candidates whose request has impressions, with `label`; empty if none has."""
    if not tables.exists("raw_impressions"):
        return scores.append_column("label", pa.nulls(scores.num_rows, pa.int32())).slice(0, 0)
    # Impressions are as delivered: a label may have any value, or be missing.
    condition = ds.field("request_id").isin(scores["request_id"].unique()) & ds.field("label").isin([0, 1])
    shown = tables.scan("raw_impressions", ["request_id", "poi_id", "label"], condition)
    labels = (
        shown.group_by(["request_id", "poi_id"])
        .aggregate([("label", "max")])
        .rename_columns({"label_max": "label"})
    )
    return scores.join(labels, ["request_id", "poi_id"], join_type="inner").sort_by(
        [("request_id", "ascending"), ("poi_id", "ascending")]
    )


def build_calibration(tables: ReleaseTables) -> Section:
    """Builds the section about scores."""
    scores = load_scores(tables)
    values = scores["score"].to_numpy().astype(np.float64)
    labelled = join_labels(tables, scores)
    svg = draw_histogram(values, label="score", unit="candidates", marks={}, color=SERIES[3])
    spread = Figure(svg, "All scores of the day")
    num_requests = format_count(len(scores["request_id"].unique()))
    tiles = (
        Tile("scored candidates", format_count(len(values)), f"{num_requests} requests"),
        Tile("mean score", format_figure(float(values.mean()), 3)),
    )
    if not labelled.num_rows:
        note = (
            "No impressions are known (yet) for the requests scored on this day, so there is nothing to "
            "hold the scores against."
        )
        return Section(CALIBRATION, tiles=tiles, figures=(spread,), notes=(note,))
    predicted = labelled["score"].to_numpy().astype(np.float64)
    clicked = labelled["label"].to_numpy().astype(np.int64)
    bins = calibration_bins(predicted, clicked)
    reliability = Figure(
        draw_reliability(bins.predicted, bins.observed, bins.counts),
        "Reliability: dots grow with their rows, bars are 95 % intervals",
    )
    return Section(
        CALIBRATION,
        tiles=(*tiles, *_click_tiles(predicted, clicked, bins)),
        figures=(reliability, spread),
        tables=(_bins_table(bins),),
    )


def _click_tiles(
    predicted: Float64Array, clicked: NDArray[np.int64], bins: CalibrationBins
) -> tuple[Tile, ...]:
    rate, count = format_figure(float(clicked.mean()), 3), format_count(len(clicked))
    area = format_figure(auc(predicted, clicked))
    return (
        Tile("click rate", rate, f"of {count} labelled candidates"),
        Tile("calibration error", format_figure(bins.expected_error), "mean gap, weighted by rows"),
        Tile("AUC on these rows", area, "serving view; the held-out figure is under Accuracy"),
    )


def _bins_table(bins: CalibrationBins) -> TableView:
    rows = tuple(
        (str(number), format_figure(predicted, 3), format_figure(observed, 3), format_count(int(count)))
        for number, (predicted, observed, count) in enumerate(
            zip(bins.predicted, bins.observed, bins.counts, strict=True), start=1
        )
    )
    return TableView(
        "Bins of about equally many rows", ("bin", "predicted", "observed", "rows"), rows, text_columns=()
    )


# --- projection ---------------------------------------------------------------------------------------------


def load_vectors(tables: ReleaseTables, name: str, key: str, *, size: int) -> Vectors:
    """Reads the current vectors of at most `size` entities, picked by hash, made by the release's model."""
    mine = ds.field("model_version") == tables.release.model_version
    keys = tables.latest(name, key, [], mine)[key].to_numpy()
    if not len(keys):
        raise NothingToShowError(f"{name} holds no vector of model {tables.release.model_version}.")
    return read_vectors(tables, name, key, sample_keys(keys, size))


def read_vectors(tables: ReleaseTables, name: str, key: str, keys: np.ndarray) -> Vectors:
    """Reads the current vectors of these entities; entities without a vector are left out."""
    where = (ds.field("model_version") == tables.release.model_version) & ds.field(key).isin(pa.array(keys))
    rows = tables.latest(name, key, ["embedding"], where)
    return Vectors(rows[key].to_numpy(), np.array(rows["embedding"].tolist(), dtype=np.float64))


def build_projection(tables: ReleaseTables) -> Section:
    """Builds the section with the two principal axes (SVD of the centred POI vectors)."""
    pois = load_vectors(tables, "poi_embeddings", "poi_id", size=MAX_POIS)
    users = load_vectors(tables, "user_embeddings", "user_id", size=MAX_USERS)
    if len(pois.keys) < 3:
        raise NothingToShowError(f"Only {len(pois.keys)} POIs have a vector; a projection needs three.")
    center = pois.matrix.mean(axis=0)
    _, strengths, axes = np.linalg.svd(pois.matrix - center, full_matrices=False)
    plane = axes[:2]
    # SVD does not fix the sign of an axis: make its largest entry positive.
    plane = plane * np.sign(plane[np.arange(2), np.abs(plane).argmax(axis=1)])[:, None]
    shares = strengths**2 / max(float((strengths**2).sum()), 1e-12)
    names = _group_names(tables, pois.keys)
    colors = dict(zip(_most_common(names), SERIES, strict=False))
    svg = draw_projection(
        (pois.matrix - center) @ plane.T,
        [colors.get(name, OTHER) for name in names],
        (users.matrix - center) @ plane.T,
        (float(shares[0]), float(shares[1])),
    )
    legend = (*colors.items(), *((("others", OTHER),) if len(colors) < len(set(names)) else ()))
    return Section(
        EMBEDDINGS,
        tiles=_space_tiles(pois, len(users.keys), names, effective_rank(strengths)),
        figures=(Figure(svg, "Principal axes of the POI vectors", legend, is_wide=True),),
    )


def _space_tiles(pois: Vectors, num_users: int, names: list[str], rank: float) -> tuple[Tile, ...]:
    likeness = mean_cosine(pois.matrix)
    agreement, chance = neighbour_agreement(pois.matrix, names)
    sample_text = f"POIs and {format_count(num_users)} users drawn, picked by hash"
    tone = "bad" if likeness > COLLAPSED else ""
    by_chance = f"same category; {format_share(chance, 1.0)} by chance"
    return (
        Tile("vectors", format_count(len(pois.keys)), sample_text),
        Tile("dimensions", str(pois.matrix.shape[1]), f"{rank:.0f} in effect"),
        Tile("mean cosine of two POIs", format_figure(likeness, 3), "1 = collapsed", tone),
        Tile("nearest POI alike", format_share(agreement, 1.0), by_chance),
    )


def mean_cosine(matrix: Float64Array) -> float:
    """Returns the mean cosine of all pairs of different unit vectors."""
    count = len(matrix)
    return float(
        (np.square(matrix.sum(axis=0)).sum() - np.square(matrix).sum()) / max(count * (count - 1), 1)
    )


def effective_rank(strengths: Float64Array) -> float:
    """Returns exp(entropy) of the variance shares, the effective number of directions of the vectors."""
    shares = strengths**2 / max(float((strengths**2).sum()), 1e-12)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def neighbour_agreement(matrix: Float64Array, names: list[str]) -> tuple[float, float]:
    """Returns the share of nearest neighbours with the same name, and the share for random neighbours."""
    labels = np.unique(names, return_inverse=True)[1]
    nearest = np.empty(len(matrix), dtype=np.int64)
    for start in range(0, len(matrix), 512):
        likeness = matrix[start : start + 512] @ matrix.T
        likeness[np.arange(len(likeness)), np.arange(start, start + len(likeness))] = -np.inf
        nearest[start : start + 512] = likeness.argmax(axis=1)
    counts = np.bincount(labels)
    by_chance = float((counts * (counts - 1)).sum() / max(len(labels) * (len(labels) - 1), 1))
    return float((labels[nearest] == labels).mean()), by_chance


def _group_names(tables: ReleaseTables, poi_ids: np.ndarray) -> list[str]:
    """Returns the top category of each POI, or its block if the release has no categories."""
    where = (ds.field("index_version") == tables.release.index_version) & ds.field("poi_id").isin(
        pa.array(poi_ids)
    )
    slots = tables.scan("poi_index", ["poi_id", "block_id", "category_id", "valid_from"], where).to_pandas()
    slots = (
        slots.sort_values(["poi_id", "valid_from"]).drop_duplicates("poi_id", keep="last").set_index("poi_id")
    )
    slots = slots.reindex(poi_ids)
    names = load_category_names(tables, top_level=True)
    if not names:
        return [f"block {block:.0f}" for block in slots["block_id"].fillna(-1)]
    return [names.get(category, "unknown") for category in slots["category_id"].fillna(0).astype(int)]


def _most_common(names: list[str]) -> list[str]:
    distinct, counts = np.unique(names, return_counts=True)
    return [str(name) for name in distinct[np.lexsort((distinct, -counts))][:NUM_COLORS]]
