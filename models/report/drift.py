"""Changes since the previous release: rows, scores, vectors.

In: the tables of a release and of the one before. Out: one section.
"""

import numpy as np

from conf.releases import Release
from models.data.arrays import Float64Array
from models.report.data import NothingToShowError, ReleaseTables, sample_keys
from models.report.features import load_scores, read_vectors
from models.report.page import Figure, Section, TableView, Tile, Topic, format_count, format_figure
from models.report.plots import SERIES, draw_histogram

ENTITIES = (("poi_embeddings", "poi_id", "POI"), ("user_embeddings", "user_id", "user"))
KEYS = {name: key for name, key, _ in ENTITIES}
FEATURES = {
    "user_embeddings": "users with a vector",
    "poi_embeddings": "POIs with a vector",
    "ranking_scores": "scores of the day",
    "poi_candidates": "generated candidates of the day",
}
COLORS = {"POI": SERIES[0], "user": SERIES[1]}
MAX_COMPARED = 4000
COSINE_LOW = 0.9
NUM_NEIGHBOURS, OVERLAP_LOW = 10, 0.8
PSI_SMALL, PSI_LARGE = 0.1, 0.25
"""Customary bounds of the population stability index: stable below, another population above."""
NUM_PSI_BINS = 10
PSI_FLOOR = 1e-4
"""Share taken for an empty bin, so that the logarithm exists."""

DRIFT = Topic(
    "drift",
    "Drift",
    sees=(
        "What changed for readers since the release before: rows, scores, and the vectors of the same POIs "
        "and users."
    ),
    alarm=(
        f"A PSI above {PSI_LARGE}, a mean cosine below {COSINE_LOW} under one model version, or rows that "
        "vanish."
    ),
)


def build_drift(tables: ReleaseTables, before: Release | None) -> Section:
    """Builds the section; without a previous release there is nothing to compare."""
    if before is None:
        raise NothingToShowError("This is the first release; from the next one on, this section compares.")
    earlier = ReleaseTables(tables.root, before)
    tiles, figures, notes = [_compare_scores(tables, earlier)], [], []
    if before.model_version == tables.release.model_version:
        for name, key, label in ENTITIES:
            now, then, num_both = read_both(tables, earlier, name, key)
            cosines: Float64Array = (now * then).sum(axis=1)
            if not len(cosines):
                notes.append(f"No {label} has a vector in both releases.")
                continue
            tiles.append(_describe_cosines(cosines, num_both, label))
            tiles.append(_describe_overlap(now, then, label))
            figures.append(_draw_cosines(cosines, label))
    else:
        notes.append(
            f"The model changed from {before.model_version} to {tables.release.model_version}: their vectors "
            "have no common space, so cosines would be noise and are not shown. Readers switch both together."
        )
    rows = _compare_rows(tables, earlier)
    return Section(DRIFT, tiles=tuple(tiles), figures=tuple(figures), tables=(rows,), notes=tuple(notes))


def _describe_cosines(cosines: Float64Array, num_both: int, label: str) -> Tile:
    mean = float(cosines.mean())
    tone = "good" if mean >= COSINE_LOW else "bad"
    return Tile(f"mean cosine, same {label}", format_figure(mean), f"{format_count(num_both)} in both", tone)


def _draw_cosines(cosines: Float64Array, label: str) -> Figure:
    svg = draw_histogram(
        np.clip(cosines, -1, 1),
        label="cosine of the vector now and before",
        unit=f"{label}s",
        marks={},
        color=COLORS[label],
        starts_at_data=True,
    )
    return Figure(svg, f"Same {label} in both releases")


def compute_psi(before: Float64Array, now: Float64Array) -> float:
    """Returns the population stability index of `now` over the deciles of `before`."""
    edges = np.unique(np.quantile(before, np.linspace(0, 1, NUM_PSI_BINS + 1)[1:-1]))
    old, new = (
        np.maximum(
            np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) / len(values),
            PSI_FLOOR,
        )
        for values in (before, now)
    )
    return float(((new - old) * np.log(new / old)).sum())


def read_both(
    tables: ReleaseTables, earlier: ReleaseTables, name: str, key: str
) -> tuple[Float64Array, Float64Array, int]:
    """Returns vectors of the same entities now and before (a sample by hash), and the number in both."""
    keys, old_keys = (each.latest(name, key, [])[key].to_numpy() for each in (tables, earlier))
    both = np.intersect1d(keys, old_keys)
    if not len(both):
        return np.zeros((0, 1)), np.zeros((0, 1)), 0
    chosen = sample_keys(both, MAX_COMPARED)
    now, then = read_vectors(tables, name, key, chosen).align(read_vectors(earlier, name, key, chosen))
    return now, then, len(both)


def compute_overlap(now: Float64Array, then: Float64Array, neighbours: int = NUM_NEIGHBOURS) -> float:
    """Returns the share of nearest neighbours that are the same now and before, mean over all rows.

    Neighbours are the largest inner products among the given rows, without the row itself.
    """
    neighbours = min(neighbours, len(now) - 1)
    if neighbours < 1:
        return 1.0
    nearest = []
    for vectors in (now, then):
        products = vectors @ vectors.T
        np.fill_diagonal(products, -np.inf)
        nearest.append(np.argpartition(-products, neighbours - 1, axis=1)[:, :neighbours])
    shares = [np.isin(own, other).mean() for own, other in zip(*nearest, strict=True)]
    return float(np.mean(shares))


def _describe_overlap(now: Float64Array, then: Float64Array, label: str) -> Tile:
    overlap = compute_overlap(now, then)
    tone = "good" if overlap >= OVERLAP_LOW else "warn"
    detail = f"nearest {label}s that are the same, of {NUM_NEIGHBOURS}, among {format_count(len(now))}"
    return Tile(f"neighbour overlap, {label}", format_figure(overlap), detail, tone)


def _compare_scores(tables: ReleaseTables, earlier: ReleaseTables) -> Tile:
    try:
        now, then = (load_scores(each)["score"].to_numpy().astype(np.float64) for each in (tables, earlier))
    except NothingToShowError as missing:
        return Tile("PSI of the scores", "-", str(missing))
    psi = compute_psi(then, now)
    tone = "good" if psi < PSI_SMALL else "warn" if psi < PSI_LARGE else "bad"
    return Tile(
        "PSI of the scores",
        format_figure(psi, 3),
        f"below {PSI_SMALL:g} stable, above {PSI_LARGE:g} another population",
        tone,
    )


def _compare_rows(tables: ReleaseTables, earlier: ReleaseTables) -> TableView:
    rows = []
    for name, label in FEATURES.items():
        if name in KEYS:
            now, then = (each.count_distinct(name, KEYS[name], each.until) for each in (tables, earlier))
        else:
            now, then = (each.count(name, each.today) for each in (tables, earlier))
        rows.append((label, format_count(then), format_count(now), f"{now - then:+,}"))
    header = ("", f"release {earlier.release.release_id}", f"release {tables.release.release_id}", "change")
    return TableView("What a reader gets", header, tuple(rows))
