"""An explanation as one picture: the blocks' probabilities on a map, and the main past actions as bars.

Equal explanations give equal pictures. The plot loads no external data, so it has no street map.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from conf.units import EARTH_RADIUS_KM
from models.explain.attribution import Explanation
from models.explain.text import format_time, group_by_poi

WIDTH, HEIGHT, DPI = 13.5, 7.2, 130
INK, SOFT, LINE = "#1f2937", "#6b7280", "#e5e7eb"
BLOCK_COLOR, POI_COLOR, GENERATOR_COLOR = "#3b82f6", "#f59e0b", "#cbd5e1"
SHADES = LinearSegmentedColormap.from_list("shades", ("#eff6ff", "#93c5fd", "#2563eb", "#1e3a8a"))
LOWEST_PROBABILITY = 1e-4
"""Blocks below are drawn in the lightest shade."""
SHOWN_MASS = 0.9
"""Probability of the blocks that the map shows at least, in addition to the top POIs."""
FLATTEST = 0.8
"""Shorter side of the map over the longer one, at least."""
NUM_ACTIONS, NUM_POIS = 8, 7
"""Bars of single actions, and of all visits to a POI."""
LONGEST_NAME = 26
LABEL_ANGLES = (105, 255, 40, 320, 150, 210)
"""Directions of the rank labels from their POIs, in turn from west to east, so that few labels overlap."""
LEGEND: dict[str, Any] = {
    "loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "ncols": 3, "frameon": False, "labelcolor": SOFT,
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@matplotlib.rc_context(STYLE)
def draw_explanation(
    explanation: Explanation, names: Mapping[str, str], path: Path, *, cell_km: float
) -> None:
    """Writes the picture as PNG.

    Args:
        explanation: the explanation to draw.
        names: names by POI id; a POI without a name is shown by its id.
        path: path of the PNG; its folder must exist.
        cell_km: side of a block's grid cell.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1.0), height_ratios=(NUM_ACTIONS + 2, NUM_POIS))
    _draw_map(figure.add_subplot(grid[:, 0]), explanation, cell_km)
    if explanation.has_memory:
        _draw_shares(figure.add_subplot(grid[0, 1]), explanation, names)
        _draw_visits(figure.add_subplot(grid[1, 1]), explanation, names)
    else:
        _draw_pois(figure.add_subplot(grid[:, 1]), explanation, names)
    when = format_time(explanation.timestamp_ms, explanation.tz_offset_min)
    title = f"User {explanation.user_id}, {when} local time, after {len(explanation.past)} actions"
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def _draw_map(axes: Axes, explanation: Explanation, cell_km: float) -> None:
    """Blocks shaded by probability, past visits, top POIs by rank, and the user."""
    blocks = [block for block in explanation.blocks if not math.isnan(block.place[0])]
    corners = [_outline(block.place, cell_km) for block in blocks]
    if corners:
        chances = np.array([max(block.probability, LOWEST_PROBABILITY) for block in blocks])
        scale = LogNorm(LOWEST_PROBABILITY, 1.0)
        shapes = PolyCollection(
            corners, array=chances, cmap=SHADES, norm=scale, edgecolors="white", linewidths=1.2
        )
        axes.add_collection(shapes)
        assert axes.figure is not None
        bar = axes.figure.colorbar(shapes, ax=axes, fraction=0.03, pad=0.015, label="P(block)")
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2%}".replace(".00", "")))
    _mark_visits(axes, explanation)
    _mark_user(axes, explanation)
    _mark_pois(axes, explanation)
    _frame_map(axes, explanation, corners)
    axes.set(title="Where to", xlabel="longitude, degrees", ylabel="latitude, degrees")
    axes.legend(**LEGEND)


def _mark_visits(axes: Axes, explanation: Explanation) -> None:
    past = explanation.past
    visits = Counter(zip(past.lons.tolist(), past.lats.tolist(), strict=True))
    if visits:
        lons, lats = np.array(list(visits)).T
        sizes = 18 + 22 * np.sqrt(np.array(list(visits.values())))
        axes.scatter(
            lons, lats, s=sizes, facecolors="#ffffffb0", edgecolors=INK, linewidths=0.9, zorder=3,
            label="visited before (larger: more often)",
        )  # fmt: skip


def _mark_user(axes: Axes, explanation: Explanation) -> None:
    if not math.isnan(explanation.place[0]):
        axes.scatter(
            *explanation.place, s=190, marker="*", color="#ef4444", edgecolors="white", linewidths=0.8, zorder=6,
            label="the user",
        )  # fmt: skip


def _mark_pois(axes: Axes, explanation: Explanation) -> None:
    """Numbers the top POIs, the best one on top; the numbers are next to the places, not over them."""
    eastwards = sorted(range(len(explanation.pois)), key=lambda n: explanation.pois[n].place)
    for rank, poi in reversed(list(enumerate(explanation.pois, 1))):
        label = "top POIs, by rank" if rank == 1 else None
        axes.scatter(
            *poi.place, s=24, color=POI_COLOR, edgecolors="white", linewidths=0.6, zorder=5, label=label
        )
        angle = math.radians(LABEL_ANGLES[eastwards.index(rank - 1) % len(LABEL_ANGLES)])
        axes.annotate(
            str(rank), poi.place, (15 * math.cos(angle), 15 * math.sin(angle)), textcoords="offset points",
            ha="center", va="center", size=7, color="white", weight="bold", zorder=20 - rank,
            bbox={"boxstyle": "circle,pad=0.22", "fc": "#b45309", "ec": "white", "lw": 0.7},
            arrowprops={"arrowstyle": "-", "color": "#b45309", "lw": 0.7, "shrinkA": 0, "shrinkB": 1},
        )  # fmt: skip


def _frame_map(axes: Axes, explanation: Explanation, corners: list[np.ndarray]) -> None:
    """Sets the window to the main blocks and the top POIs, with equal scale eastwards and northwards."""
    placed = [block for block in explanation.blocks if not math.isnan(block.place[0])]
    mass = np.cumsum([block.probability for block in placed])
    shown_corners = corners[: int(np.searchsorted(mass, SHOWN_MASS)) + 1]
    places = np.concatenate(
        [*shown_corners, *(np.array([poi.place]) for poi in explanation.pois)] or [np.zeros((1, 2))]
    )
    (west, south), (east, north) = places.min(axis=0), places.max(axis=0)
    stretch = 1 / max(0.15, math.cos(math.radians((south + north) / 2)))
    side = max(east - west, stretch * (north - south), 0.02) * 1.08
    middle_lon, middle_lat = (west + east) / 2, (south + north) / 2
    # A flat or thin window would leave most of the panel empty.
    half_lon = max(east - west, FLATTEST * side) * 0.54
    half_lat = max(north - south, FLATTEST * side / stretch) * 0.54
    axes.set_xlim(middle_lon - half_lon, middle_lon + half_lon)
    axes.set_ylim(middle_lat - half_lat, middle_lat + half_lat)
    axes.set_aspect(stretch, adjustable="box", anchor="N")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(useOffset=False)


def _draw_shares(axes: Axes, explanation: Explanation, names: Mapping[str, str]) -> None:
    """Draws the shares of the generator and of the main past actions in both predictions."""
    past, of_block, of_poi = explanation.past, explanation.block_shares, explanation.poi_shares
    chosen = explanation.leaned_on(NUM_ACTIONS)
    rows = [("generator", of_block.generator, of_poi.generator)]
    if of_block.crowd or of_poi.crowd:
        rows.append(("crowd candidates", of_block.crowd, of_poi.crowd))
    for place in chosen:
        when = format_time(int(past.timestamps_ms[place]), int(past.tz_offsets_min[place]))
        name = _shorten(names.get(past.poi_ids[place], past.poi_ids[place]))
        rows.append((f"{name}, {when[:4]}{when[9:]}", of_block.actions[place], of_poi.actions[place]))
    rest = np.setdiff1d(np.arange(len(past)), chosen)
    if len(rest):
        parts = (of_block.actions[rest].sum(), of_poi.actions[rest].sum())
        rows.append((f"the other {len(rest)} actions", *parts))
    _draw_bars(axes, [name for name, *_ in rows], np.array([parts for _, *parts in rows]))
    axes.set(title="What it leans on")


def _draw_visits(axes: Axes, explanation: Explanation, names: Mapping[str, str]) -> None:
    """Draws the same shares by POI, so that many small shares of one POI add up."""
    rows = [
        (
            f"{_shorten(names.get(visits.poi_id, visits.poi_id))}, {visits.num_visits} visits",
            visits.of_block,
            visits.of_poi,
        )
        for visits in group_by_poi(explanation, NUM_POIS)
    ]
    _draw_bars(axes, [name for name, *_ in rows], np.array([parts for _, *parts in rows]).reshape(-1, 2))
    axes.set(title="The same by POI", xlabel="part of the prediction; all parts together are 100 %")
    if rows:
        axes.legend(**{**LEGEND, "bbox_to_anchor": (0.5, -0.22)})


def _draw_bars(axes: Axes, labels: list[str], parts_N2: np.ndarray) -> None:
    places = np.arange(len(labels))
    for column, (name, color) in enumerate((("block", BLOCK_COLOR), ("POI", POI_COLOR))):
        at = places + (column - 0.5) * 0.36
        axes.barh(at, parts_N2[:, column], 0.34, color=color, label=f"in predicting the {name}")
    largest = max(float(parts_N2.max(initial=0.0)), 0.01)
    for place, parts in enumerate(parts_N2.tolist()):
        text = " and ".join(f"{part:.1%}" for part in parts)
        axes.text(max(parts) + 0.012 * largest, place, text, va="center", color=SOFT, size=8)
    axes.set(
        yticks=places, yticklabels=labels, ylim=(max(len(labels), 1) - 0.4, -0.6), xlim=(0, largest * 1.32)
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _draw_pois(axes: Axes, explanation: Explanation, names: Mapping[str, str]) -> None:
    """Draws the top POIs and their probabilities, for a model without memory."""
    labels = [
        f"{rank} {_shorten(names.get(poi.poi_id, poi.poi_id))}"
        for rank, poi in enumerate(explanation.pois, 1)
    ]
    chances = np.array([poi.probability for poi in explanation.pois])
    axes.barh(np.arange(len(labels)), chances, 0.6, color=POI_COLOR)
    axes.set(
        title="Top POIs", xlabel="P(POI); the history copy is off, so nothing of the past is copied",
        yticks=np.arange(len(labels)), yticklabels=labels, ylim=(max(len(labels), 1) - 0.4, -0.6),
    )  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1%}"))
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)


def _outline(center: tuple[float, float], cell_km: float) -> np.ndarray:
    """Returns the corners of a block's grid cell, (4, 2) degrees; the side is `cell_km` up to grid rounding."""
    lon, lat = center
    half_lat = math.degrees(cell_km / EARTH_RADIUS_KM) / 2
    half_lon = half_lat / max(0.02, math.cos(math.radians(lat)))
    return np.array(
        [(lon + x * half_lon, lat + y * half_lat) for x, y in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    )


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3].rstrip() + "..."
