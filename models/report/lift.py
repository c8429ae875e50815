"""What the features are worth: the ranking model with and without them, first section of the page.

In: `lift.json` of the training behind the release (`models/lift/measure.py`). Out: one section.
"""

from collections.abc import Mapping
from typing import Any

from conf.files import read_json
from conf.releases import Release
from conf.settings import Settings
from models.lift.show import BASELINE_NAMES, LIFT_FILE, SET_NAMES, best_set, in_order, points
from models.report.data import NothingToShowError
from models.report.page import Figure, Section, TableView, Tile, Topic, format_count, format_figure
from models.report.plots import BASELINE_SERIES, SERIES, draw_bars
from models.report.training import find_training

LIFT = Topic(
    "lift",
    "What the features are worth",
    sees=(
        "A ranking model (gradient-boosted trees) trained on earlier requests and tested on later ones: with a "
        "ranking team's own features alone, and with those of this model."
    ),
    alarm="A lift whose interval holds 0, or a ranking model that is no better than distance or popularity alone.",
)
NUM_FEATURES = 12
"""Features listed by importance."""


def build_lift(settings: Settings, release: Release) -> Section:
    """Builds the section."""
    folder = find_training(settings, release)
    path = folder / LIFT_FILE
    if not path.is_file():
        raise NothingToShowError(
            f"The lift of the training of {folder.name} has not been measured (no {LIFT_FILE})."
        )
    figures = in_order(read_json(path, expected="the lift of a training"))
    if not figures.get("sets"):
        raise NothingToShowError(
            f"The lift of the training of {folder.name} has no figures: {figures.get('missing')}."
        )
    simulated = (
        "These clicks are simulated: the features are worth this if users click as the simulation says.",
    )
    return Section(
        LIFT,
        tiles=_tiles(figures),
        figures=(_bars(figures), *_slices(figures)),
        tables=(_table(figures), _importance(figures)),
        notes=simulated if figures.get("is_simulated") else (),
    )


def _tiles(figures: Mapping[str, Any]) -> tuple[Tile, ...]:
    best = best_set(figures)
    base = figures["sets"]["base"]["auc"]
    if best == "base":
        return (
            Tile("AUC, base features", format_figure(base), "this model has no features for a ranking model"),
        )
    difference = figures["differences"][best]["auc"]
    tone = "good" if difference["low"] > 0 else "bad" if difference["high"] < 0 else "warn"
    lists = figures["differences"][best]["ndcg_at_5"]
    rivals = {name: own["auc"] for name, own in figures["baselines"].items() if name != "oracle"}
    strongest = max(rivals, key=lambda name: rivals[name])
    tiles = [
        Tile("lift of AUC, points", f"{100 * difference['value']:+.2f}", _interval(difference), tone),
        Tile(
            "AUC with the features", format_figure(figures["sets"][best]["auc"]),
            f"without {format_figure(base)}; {BASELINE_NAMES[strongest]} {format_figure(rivals[strongest])}",
        ),
        Tile("lift of NDCG@5, points", f"{100 * lists['value']:+.2f}", _interval(lists)),
    ]  # fmt: skip
    if "oracle" in figures["baselines"]:
        oracle = figures["baselines"]["oracle"]["auc"]
        tiles.append(Tile("highest AUC possible", format_figure(oracle), BASELINE_NAMES["oracle"]))
    return tuple(tiles)


def _interval(difference: Mapping[str, float]) -> str:
    return f"95 % {points(difference).split(' ', 1)[1]}"


def _bars(figures: Mapping[str, Any]) -> Figure:
    sets, baselines = figures["sets"], figures["baselines"]
    names = [SET_NAMES[name] for name in sets] + [BASELINE_NAMES[name] for name in baselines]
    rows = [[(own["auc"], *own["auc_interval"])] for own in (*sets.values(), *baselines.values())]
    greys = iter(BASELINE_SERIES * 2)
    colors = [*SERIES[: len(sets)], *(next(greys) for _ in baselines)]
    svg = draw_bars(["AUC"], rows, colors, xlabel="0.5 = chance", baseline=0.4)
    requests, impressions = figures["requests"]["test"], figures["impressions"]["test"]
    caption = (
        f"AUC on {format_count(requests)} later requests ({format_count(impressions)} impressions); the ranking model "
        f"was trained on {format_count(figures['requests']['train'])} earlier ones"
    )
    return Figure(svg, caption, tuple(zip(names, colors, strict=True)))


def _slices(figures: Mapping[str, Any]) -> tuple[Figure, ...]:
    slices = figures.get("slices") or []
    if not slices:
        return ()
    rows = [[tuple(100 * own["difference"][end] for end in ("value", "low", "high")) for own in slices]]
    labels = [f"{own['name']} ({format_count(own['impressions'])})" for own in slices]
    svg = draw_bars(labels, rows, [SERIES[0]], xlabel="lift of AUC in points, with interval", baseline=0.0)
    return (Figure(svg, "Where the lift comes from: parts of the test rows, with their impressions"),)


def _table(figures: Mapping[str, Any]) -> TableView:
    rows = []
    for name, own in figures["sets"].items():
        difference = figures["differences"].get(name)
        rows.append(
            (SET_NAMES[name], *_judged(own), "-" if difference is None else points(difference["auc"]))
        )
    rows += [(BASELINE_NAMES[name], *_judged(own), "-") for name, own in figures["baselines"].items()]
    header = ("features", "AUC", "GAUC", "NDCG@5", "calibration error", "lift of AUC, points, 95 %")
    strong = (list(figures["sets"]).index(best_set(figures)),)
    return TableView("The ranking model with each set of features, and baselines without training", header,
                     tuple(rows), strong_rows=strong)  # fmt: skip


def _judged(own: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("auc", "gauc", "ndcg_at_5", "calibration_error")
    return tuple(format_figure(own[name]) if own.get(name) is not None else "-" for name in names)


def _importance(figures: Mapping[str, Any]) -> TableView:
    importance = figures["sets"][best_set(figures)]["importance"]
    shares = sorted(importance.items(), key=lambda item: (-item[1], item[0]))[:NUM_FEATURES]
    rows = tuple((name, f"{share:.1%}") for name, share in shares)
    return TableView(
        "Most used features of the ranking model, by share of the gain", ("feature", "share"), rows
    )
