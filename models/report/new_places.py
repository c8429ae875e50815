"""What a shift towards places that are new to the user gives and costs, as parts of the accuracy section.

In: `new_places` of `evaluation.json`, as `models/evaluation/new_places.py` writes it. Out: the trade-off curve and two
tables.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.report.page import Figure, TableView, format_count, format_figure
from models.report.plots import SERIES, draw_curves

GROUPS = {"all": "all rows", "returns": "returns", "new": "new POIs"}
BASELINES = {
    "near_popular": "nearness x popularity",
    "near_crowd": "nearness x (similar users + popularity at the hour)",
}


def show_new_places(content: Mapping[str, Any]) -> tuple[list[Figure], list[TableView]]:
    """Draws Acc@10 over the shift of the odds of new POIs, and lists it with P(new) and the ranking among new POIs."""
    curve = content["curve"]
    logits = np.array([point["new_logit"] for point in curve], np.float64)
    curves = {
        label: (logits, np.array([_number(point[group]) for point in curve]))
        for group, label in GROUPS.items()
    }
    svg = draw_curves(curves, ylabel="Acc@10", xlabel="features.new_logit", has_whole_steps=False)
    rows = format_count(content["rows"])
    caption = f"Acc@10 over the shift towards POIs that are new to their user, {rows} rows; 0 = as the model expects"
    legend = tuple(zip(GROUPS.values(), SERIES, strict=False))
    shifts = TableView(
        "The same in numbers: choose features.new_logit by what it costs",
        ("features.new_logit", *(f"Acc@10, {label}" for label in GROUPS.values())),
        tuple(
            (f"{point['new_logit']:g}", *(format_figure(point[group]) for group in GROUPS)) for point in curve
        ),
        (),
    )
    return [Figure(svg, caption, legend)], [shifts, _describe_p_new(content)]


def _describe_p_new(content: Mapping[str, Any]) -> TableView:
    among = content["among_new"]
    count = format_count(among["rows"])
    lines = [
        ("P(new): AUC", format_figure(content["p_new_auc"])),
        ("P(new): mean", format_figure(content["mean_p_new"])),
        ("share of new POIs", format_figure(content["share_new"])),
        ("P(new): calibration error", format_figure(content["calibration"]["expected_error"])),
        (f"Acc@10 of {count} new POIs among new ones", format_figure(among["hr_at_10"]["value"])),
    ]
    lines += [
        (f"the same by {BASELINES.get(name, name)}, without training", format_figure(own["hr_at_10"]))
        for name, own in among["baselines"].items()
    ]
    return TableView(
        "Is the next POI new, and which of the new ones is it?", ("figure", "value"), tuple(lines)
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
