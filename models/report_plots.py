"""The drawings of the report: numbers in, SVG text out, to be put straight into an HTML page.

The SVG has no address of any kind in it (no namespaces, no metadata), takes its text, grid and background colours from
the page's CSS variables, so that it follows a light or dark page, and is the same text for the same numbers. Clouds of
many points are drawn as one embedded PNG.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

SERIES = ("#3b82f6", "#f59e0b", "#10b981", "#a855f7", "#ef4444", "#06b6d4", "#84cc16", "#ec4899")
OTHER = "#94a3b8"
INK, GRID, PAPER = "#010203", "#010204", "#010205"
"""Placeholders; no drawing uses these colours otherwise."""
VARIABLES = {INK: "var(--ink-soft)", GRID: "var(--line)", PAPER: "var(--card)"}
NUM_BINS = 40
MAX_VECTOR_SHAPES = 1500
"""More shapes than this are drawn as pixels."""

STYLE = {
    "svg.fonttype": "none",
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
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}


@dataclass(frozen=True)
class Cells:
    """Rectangles on the map.

    Attributes:
        west, south, east, north: edges in degrees.
        counts: what a cell's colour stands for.
    """

    west: FloatArray
    south: FloatArray
    east: FloatArray
    north: FloatArray
    counts: NDArray[np.int64]


def draw_map(cells: Cells, window: tuple[float, float, float, float], marks: Mapping[str, tuple[float, float]]) -> str:
    """Draws grid cells coloured by count.

    Args:
        cells: all cells, those outside the window too: the scale is the same for every window.
        window: west, south, east, north of what is shown, degrees.
        marks: short text -> lon, lat.
    """
    west, south, east, north = window
    stretch = 1 / max(0.15, np.cos(np.radians((south + north) / 2)))
    height = float(np.clip(4.4 * stretch * (north - south) / (east - west), 2.2, 5.0))
    figure, axes = _start(5.4, height)
    corners = np.stack([cells.west, cells.south, cells.west, cells.north, cells.east, cells.north, cells.east, cells.south])
    shapes = PolyCollection(
        corners.T.reshape(-1, 4, 2),
        array=cells.counts,
        cmap="viridis",
        norm=LogNorm(1, max(2, int(cells.counts.max()))),
        edgecolors="face",
        linewidths=0.8,
        rasterized=len(cells.counts) > MAX_VECTOR_SHAPES,
    )
    axes.add_collection(shapes)
    axes.set(xlim=(west, east), ylim=(south, north), xlabel="longitude, degrees", ylabel="latitude, degrees")
    axes.set_aspect(stretch, adjustable="box")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    for text, (lon, lat) in marks.items():
        axes.annotate(text, (lon, lat), ha="center", va="center", fontsize=6.5, color="#ffffff", weight="bold",
                      bbox={"boxstyle": "circle,pad=0.18", "fc": "#111827", "ec": "none", "alpha": 0.72})
    bar = figure.colorbar(shapes, ax=axes, fraction=0.035, pad=0.02, label="live POIs in a cell")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return _finish(figure)


def draw_histogram(
    values: FloatArray, *, label: str, unit: str, marks: Mapping[str, float], color: str = SERIES[0],
    starts_at_data: bool = False,
) -> str:
    """Draws how often values occur, with named vertical lines at thresholds; the axis starts at 0 or at the data."""
    figure, axes = _start(4.2, 2.5)
    top = float(max([*values, *marks.values()], default=1.0)) * 1.02 or 1.0
    low = float(np.min(values, initial=top)) if starts_at_data else min(0.0, float(np.min(values, initial=0.0)))
    low = min(low, top - 0.02)
    axes.hist(values, bins=np.linspace(low, top, NUM_BINS + 1), color=color, alpha=0.85)
    for number, (name, place) in enumerate(marks.items()):
        axes.axvline(place, color=INK, linewidth=1, linestyle="--")
        right = place > low + 0.6 * (top - low)
        axes.annotate(name, (place, 0.97 - 0.11 * number), xycoords=("data", "axes fraction"),
                      xytext=(-4 if right else 4, 0), textcoords="offset points", ha="right" if right else "left",
                      va="top", fontsize=7.5)
    axes.set(xlabel=label, ylabel=unit, xlim=(low, top))
    _plain_counts(axes)
    return _finish(figure)


def draw_curves(curves: Mapping[str, tuple[FloatArray, FloatArray]], *, ylabel: str) -> str:
    """Draws metrics over steps; long ones faint with a moving average on top, short ones with dots."""
    figure, axes = _start(4.2, 2.5)
    for color, (name, (steps, values)) in zip(SERIES, curves.items(), strict=False):
        if len(values) > 60:
            axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            width = max(5, len(values) // 30)
            kept = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[width - 1 :], kept, color=color, linewidth=1.6, label=name)
        else:
            axes.plot(steps, values, color=color, linewidth=1.4, marker="o", markersize=2.8, label=name)
    axes.set(xlabel="optimiser step", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(loc="best")
    return _finish(figure)


def draw_bars(
    groups: Sequence[str], figures: Mapping[str, Sequence[tuple[float, float, float]]], *, xlabel: str, baseline: float = 0.0
) -> str:
    """Draws grouped horizontal bars with intervals, the first method on top and in the main colour.

    Args:
        groups: names of the groups.
        figures: method -> per group (value, low, high); nan where unknown.
        xlabel: axis label.
        baseline: where the axis starts.
    """
    height = 0.8 / max(1, len(figures))
    figure, axes = _start(5.4, 0.7 + 0.24 * len(groups) * max(2, len(figures)))
    for number, (method, values) in enumerate(figures.items()):
        color = SERIES[0] if number == 0 else (OTHER, "#64748b", "#cbd5e1", SERIES[1], SERIES[2])[(number - 1) % 5]
        places = np.arange(len(groups)) + (number - (len(figures) - 1) / 2) * height
        rows = np.array(values, dtype=np.float64).reshape(-1, 3)
        axes.barh(places, rows[:, 0] - baseline, height * 0.9, left=baseline, color=color, label=method)
        spread = np.abs(np.nan_to_num(rows[:, 1:] - rows[:, :1])).T
        axes.errorbar(rows[:, 0], places, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.5)
    axes.set(yticks=np.arange(len(groups)), yticklabels=groups, xlabel=xlabel)
    axes.set_xlim(left=baseline)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=min(4, len(figures)))
    return _finish(figure)


def draw_reliability(predicted: FloatArray, observed: FloatArray, counts: NDArray[np.int64]) -> str:
    """Draws observed against predicted click rate; dots grow with their rows, the dashed line is perfect."""
    figure, axes = _start(4.2, 3.2)
    top = float(max(predicted.max(initial=0.0), observed.max(initial=0.0), 0.05)) * 1.1
    spread = 1.96 * np.sqrt(np.clip(observed * (1 - observed), 0, None) / np.maximum(counts, 1))
    axes.plot([0, top], [0, top], color=INK, linestyle="--", linewidth=0.9)
    axes.errorbar(predicted, observed, yerr=spread, fmt="none", ecolor=SERIES[0], elinewidth=1, alpha=0.6)
    axes.plot(predicted, observed, color=SERIES[0], linewidth=1)
    axes.scatter(predicted, observed, s=12 + 60 * counts / counts.max(), color=SERIES[0], zorder=3)
    axes.set(xlabel="predicted click probability (mean of a bin)", ylabel="observed click rate", xlim=(0, top), ylim=(0, top))
    return _finish(figure)


def draw_projection(points: FloatArray, colors: Sequence[str], users: FloatArray, shares: tuple[float, float]) -> str:
    """Draws POIs as coloured dots and users as hollow diamonds on two principal axes.

    Args:
        points: (POIs, 2).
        colors: one per POI.
        users: (users, 2), in the same axes; may be empty.
        shares: part of the POIs' variance that each axis holds.
    """
    figure, axes = _start(6.4, 4.6)
    if len(users):
        axes.scatter(users[:, 0], users[:, 1], s=14, marker="D", facecolors="none", edgecolors=INK, linewidths=0.5,
                     alpha=0.55, rasterized=len(users) > MAX_VECTOR_SHAPES // 3)
    axes.scatter(points[:, 0], points[:, 1], s=9, c=list(colors), alpha=0.75, linewidths=0,
                 rasterized=len(points) > MAX_VECTOR_SHAPES // 3)
    axes.set(xlabel=f"first principal axis, {shares[0]:.0%} of variance", ylabel=f"second, {shares[1]:.0%}")
    return _finish(figure)


def _start(width: float, height: float) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        return figure, figure.add_subplot()


def _plain_counts(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _finish(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", dpi=170, metadata={"Date": None})
    return _clean_svg(buffer.getvalue())


def _clean_svg(text: str) -> str:
    """Strips what a file needs and a page does not, and hands colours and fonts over to the page's CSS."""
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
