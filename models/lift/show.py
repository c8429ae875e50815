"""Shows a lift: a table for the terminal, and the few figures of a job's summary."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from models.evaluation.metrics import Interval

LIFT_FILE = "lift.json"
"""File of a training with the lift of its model; the report reads it."""
SET_NAMES = {
    "base": "base features", "embedding": "+ embeddings", "scores": "+ scores", "both": "+ both",
}  # fmt: skip
BASELINE_NAMES = {
    "distance": "distance alone", "popularity": "popularity alone", "kernel": "recency-weighted visits alone",
    "oracle": "the city's own click model",
}  # fmt: skip
LOG_WIDTH = 110
"""Width of a table that is not printed in a terminal, in characters."""


def in_order(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns figures that were read from JSON with sets and baselines in the order in which they are shown."""
    ordered = dict(figures)
    for key, names in (("sets", SET_NAMES), ("baselines", BASELINE_NAMES)):
        if key in figures:
            ordered[key] = {name: figures[key][name] for name in names if name in figures[key]}
    return ordered


def best_set(figures: Mapping[str, Any]) -> str:
    """Returns the feature set that holds all that the model gives."""
    return next(name for name in ("both", "scores", "embedding", "base") if name in figures["sets"])


def points(interval: Interval | Mapping[str, float]) -> str:
    """Returns a difference of AUC in points, with its interval."""
    value, low, high = (
        (interval.value, interval.low, interval.high)
        if isinstance(interval, Interval)
        else (interval["value"], interval["low"], interval["high"])
    )
    return f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def describe_lift(figures: Mapping[str, Any]) -> str:
    """Returns the lift as one sentence."""
    best = best_set(figures)
    if best == "base":
        return "the model gives no features for a ranking model"
    difference = figures["differences"][best]["auc"]
    simulated = " (simulated clicks)" if figures.get("is_simulated") else ""
    return (
        f"AUC of the ranking model {figures['sets']['base']['auc']:.4f} without and {figures['sets'][best]['auc']:.4f} "
        f"with the features{simulated}: {points(difference)} points, {figures['requests']['test']} requests"
    )


def print_lift(figures: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints one table: the ranking model with each feature set, then the baselines."""
    console = console or Console(stderr=True, width=None if sys.stderr.isatty() else LOG_WIDTH)
    simulated = " (simulated)" if figures.get("is_simulated") else ""
    impressions, requests = (figures[name]["test"] for name in ("impressions", "requests"))
    title = f"a ranking model with and without the features{simulated}: {requests} requests, {impressions} impressions"
    table = Table(title=title, title_justify="left")
    for name in ("features", "AUC", "lift in points, 95 %", "GAUC", "NDCG@5", "calibration error"):
        table.add_column(name, justify="left" if name == "features" else "right")
    for label, judged in figures["sets"].items():
        difference = figures["differences"].get(label)
        table.add_row(
            SET_NAMES[label], f"{judged['auc']:.4f}", "" if difference is None else points(difference["auc"]),
            f"{judged['gauc']:.4f}", f"{judged['ndcg_at_5']:.4f}", f"{judged['calibration_error']:.4f}",
        )  # fmt: skip
    table.add_section()
    for label, judged in figures["baselines"].items():
        numbers = (f"{judged[name]:.4f}" for name in ("gauc", "ndcg_at_5"))
        table.add_row(BASELINE_NAMES[label], f"{judged['auc']:.4f}", "", *numbers, "")
    console.print(table)


def headline(figures: Mapping[str, Any]) -> dict[str, object]:
    """Returns the main figures for the summary of a job."""
    best = best_set(figures)
    notes: dict[str, object] = {
        f"ranker_{name}_auc": round(own["auc"], 4) for name, own in figures["sets"].items()
    }
    if best != "base":
        difference = figures["differences"][best]["auc"]
        notes["lift_points"] = round(100 * difference["value"], 2)
        notes["lift_interval_points"] = [round(100 * difference[end], 2) for end in ("low", "high")]
    return notes
