"""The drawings of the report: numbers in, SVG text out, to be put straight into an HTML page.

The SVG contains no addresses (no namespaces, no metadata). Its text, grid and background colours come from the page's
CSS variables, so that it follows a light or dark page. Equal numbers give equal text. Clouds of many points are drawn
as one embedded PNG.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from models.data.arrays import Float64Array

SERIES = ("#3b82f6", "#f59e0b", "#10b981", "#a855f7", "#ef4444", "#06b6d4", "#84cc16", "#ec4899")
BASELINE_SERIES = ("#94a3b8", "#64748b", "#b9c4d3", "#7c8aa0")
OTHER = "#94a3b8"
USERS = "#7b8798"
MARK_BOX = {"boxstyle": "circle,pad=0.18", "fc": "#111827", "ec": "none", "alpha": 0.72}
HEAT = LinearSegmentedColormap.from_list("heat", ("#fcd34d", "#f97316", "#db2777", "#7c3aed"))
"""Low to high; every step of it stands out on a light and on a dark page."""
INK, GRID = "#010203", "#010204"
"""Placeholders; no drawing uses these colours otherwise."""
VARIABLES = {INK: "var(--ink-soft)", GRID: "var(--line)"}
NUM_BINS = 40
TALLEST_MAP, FLATTEST_MAP = 0.95, 0.5
"""Height of a map over its width, at most and at least."""
MAX_VECTOR_SHAPES = 1500
"""More shapes than this are drawn as pixels."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # names of clip paths would be random otherwise
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}


@dataclass(frozen=True)
class Cells:
    """Rectangles on the map.

    Attributes:
        west, south, east, north: edges in degrees.
        counts: value shown by each grid cell's colour.
    """

    west: Float64Array
    south: Float64Array
    east: Float64Array
    north: Float64Array
    counts: NDArray[np.int64]


@matplotlib.rc_context(STYLE)
def draw_map(
    cells: Cells, window: tuple[float, float, float, float], marks: Mapping[str, tuple[float, float]]
) -> str:
    """Draws grid cells coloured by count.

    Args:
        cells: all cells, those outside the window too: the scale is the same for every window.
        window: west, south, east, north of the shown area, degrees.
        marks: short text -> lon, lat.
    """
    west, south, east, north = window
    stretch = 1 / max(0.15, np.cos(np.radians((south + north) / 2)))
    # A few far cities make a window that is all height or all width: show more around it instead.
    tall = stretch * (north - south) / (east - west)
    grow_x = max(0.0, tall / TALLEST_MAP - 1) * (east - west) / 2
    grow_y = max(0.0, FLATTEST_MAP / tall - 1) * (north - south) / 2
    west, south, east, north = west - grow_x, south - grow_y, east + grow_x, north + grow_y
    figure, axes = _start(5.4, float(4.4 * stretch * (north - south) / (east - west)))
    corners = np.stack(
        [cells.west, cells.south, cells.west, cells.north, cells.east, cells.north, cells.east, cells.south]
    )
    shapes = PolyCollection(
        list(corners.T.reshape(-1, 4, 2)),
        array=cells.counts,
        cmap=HEAT,
        norm=LogNorm(1, max(2, int(cells.counts.max()))),
        edgecolors="face",
        linewidths=0.8,
        rasterized=len(cells.counts) > MAX_VECTOR_SHAPES,
    )
    axes.add_collection(shapes)
    axes.set(xlim=(west, east), ylim=(south, north), xlabel="longitude, degrees", ylabel="latitude, degrees")
    axes.set_aspect(stretch, adjustable="box")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    look: dict[str, Any] = {"ha": "center", "va": "center", "size": 6.5, "color": "#ffffff", "weight": "bold"}
    for text, place in marks.items():
        axes.annotate(text, place, bbox=MARK_BOX, **look)
    bar = figure.colorbar(shapes, ax=axes, fraction=0.035, pad=0.02, label="live POIs in a cell")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return _finish(figure)


@matplotlib.rc_context(STYLE)
def draw_histogram(
    values: Float64Array,
    *,
    label: str,
    unit: str,
    marks: Mapping[str, float],
    color: str = SERIES[0],
    starts_at_data: bool = False,
) -> str:
    """Draws how often values occur, with named lines at thresholds; the axis starts at 0 or at the data."""
    figure, axes = _start(4.2, 2.5)
    top = float(max([*values, *marks.values()], default=1.0)) * 1.02 or 1.0
    low = min(float(np.min(values, initial=top if starts_at_data else 0.0)), top - 0.02)
    axes.hist(values, bins=np.linspace(low, top, NUM_BINS + 1).tolist(), color=color, alpha=0.85)
    for number, (name, place) in enumerate(marks.items()):
        axes.axvline(place, color=INK, linewidth=1, linestyle="--")
        right = place > low + 0.6 * (top - low)
        at: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "textcoords": "offset points",
            "va": "top",
        }
        shift, side = ((-4, 0), "right") if right else ((4, 0), "left")
        axes.annotate(name, (place, 0.97 - 0.11 * number), shift, ha=side, **at)
    axes.set(xlabel=label, ylabel=unit, xlim=(low, top))
    axes.set_ylim(top=axes.get_ylim()[1] * (1.12 if marks else 1.0))  # room for the names
    _plain_counts(axes)
    return _finish(figure)


@matplotlib.rc_context(STYLE)
def draw_curves(
    curves: Mapping[str, tuple[Float64Array, Float64Array]],
    *,
    ylabel: str,
    xlabel: str = "optimiser step",
    has_whole_steps: bool = True,
) -> str:
    """Draws metrics over steps; long curves are faint with a moving average, short ones have dots."""
    figure, axes = _start(4.2, 2.5)
    for color, (steps, values) in zip(SERIES, curves.values(), strict=False):
        if len(values) > 60:
            axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            width = max(5, len(values) // 30)
            average = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[width - 1 :], average, color=color, linewidth=1.6)
        else:
            axes.plot(steps, values, color=color, linewidth=1.4, marker="o", markersize=2.8)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=has_whole_steps))
    return _finish(figure)


@matplotlib.rc_context(STYLE)
def draw_bars(
    groups: Sequence[str],
    rows: Sequence[Sequence[tuple[float, float, float]]],
    colors: Sequence[str],
    *,
    xlabel: str,
    baseline: float = 0.0,
) -> str:
    """Draws grouped horizontal bars with intervals.

    Args:
        groups: names of the groups.
        rows: per method, per group: value, low, high; nan where unknown.
        colors: one per method.
        xlabel: axis label.
        baseline: where the bars start; the axis does too, unless a value lies below.
    """
    height = 0.8 / max(1, len(rows))
    figure, axes = _start(5.0, 0.6 + 0.19 * len(groups) * max(2, len(rows)))
    for number, (values, color) in enumerate(zip(rows, colors, strict=True)):
        places = np.arange(len(groups)) + (number - (len(rows) - 1) / 2) * height
        intervals = np.array(values, dtype=np.float64).reshape(-1, 3)
        axes.barh(places, intervals[:, 0] - baseline, height * 0.88, left=baseline, color=color)
        known = ~np.isnan(intervals).any(axis=1)
        spread = np.abs(intervals[known, 1:] - intervals[known, :1]).T
        axes.errorbar(
            intervals[known, 0],
            places[known],
            xerr=spread,
            fmt="none",
            ecolor=INK,
            elinewidth=0.9,
            capsize=1.5,
        )
    axes.set(yticks=np.arange(len(groups)), yticklabels=groups, xlabel=xlabel, ylim=(len(groups) - 0.5, -0.5))
    lowest = np.nanmin([bound for values in rows for triple in values for bound in triple], initial=baseline)
    axes.set_xlim(left=lowest if lowest < baseline else baseline)
    axes.grid(axis="y", visible=False)
    return _finish(figure)


@matplotlib.rc_context(STYLE)
def draw_reliability(predicted: Float64Array, observed: Float64Array, counts: NDArray[np.int64]) -> str:
    """Draws observed against predicted click rate; dots grow with their rows, the dashed line is perfect."""
    figure, axes = _start(4.2, 3.2)
    top = float(max(predicted.max(initial=0.0), observed.max(initial=0.0), 0.05)) * 1.1
    spread = 1.96 * np.sqrt(np.clip(observed * (1 - observed), 0, None) / np.maximum(counts, 1))
    axes.plot([0, top], [0, top], color=INK, linestyle="--", linewidth=0.9)
    axes.errorbar(predicted, observed, yerr=spread, fmt="none", ecolor=SERIES[0], elinewidth=1, alpha=0.6)
    axes.plot(predicted, observed, color=SERIES[0], linewidth=1)
    axes.scatter(predicted, observed, s=12 + 60 * counts / counts.max(), color=SERIES[0], zorder=3)
    axes.set(
        xlabel="predicted click probability (mean of a bin)",
        ylabel="observed click rate",
        xlim=(0, top),
        ylim=(0, top),
    )
    return _finish(figure)


@matplotlib.rc_context(STYLE)
def draw_projection(
    points: Float64Array, colors: Sequence[str], users: Float64Array, shares: tuple[float, float]
) -> str:
    """Draws POIs as coloured dots and users as hollow diamonds on two principal axes.

    Args:
        points: (POIs, 2).
        colors: one per POI.
        users: (users, 2), in the same axes; may be empty.
        shares: part of the POIs' variance that each axis holds.
    """
    figure, axes = _start(6.4, 4.6)
    if len(users):
        axes.scatter(
            users[:, 0],
            users[:, 1],
            s=14,
            marker="D",
            facecolors="none",
            edgecolors=USERS,
            linewidths=0.6,
            alpha=0.8,
            rasterized=len(users) > MAX_VECTOR_SHAPES // 3,
        )
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=9,
        c=list(colors),
        alpha=0.75,
        linewidths=0,
        rasterized=len(points) > MAX_VECTOR_SHAPES // 3,
    )
    axes.set(xlabel=f"first principal axis, {shares[0]:.0%} of variance", ylabel=f"second, {shares[1]:.0%}")
    return _finish(figure)


def _start(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    return figure, figure.add_subplot()


def _plain_counts(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _finish(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", dpi=170, bbox_inches="tight", pad_inches=0.04, metadata={"Date": None}
    )
    return _clean_svg(buffer.getvalue())


def _clean_svg(text: str) -> str:
    """Removes parts of the SVG that only a file needs, and leaves colours and fonts to the page's CSS."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sid="[a-zA-Z][\w.]*_\d+"', "", text)  # of groups; what is referred to is named by a hash
    text = re.sub(r"\s?font-family: [^;\"]*;?", "", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    return re.sub(r"\n\s*", "\n", text)
