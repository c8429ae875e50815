"""Accuracy of the release's model and of baselines without training, on the same rows.

In: `evaluation.json` of the training behind the release, as `models/evaluation/evaluate.py` writes it from
`models/evaluation/figures.py`. Out: one section. A model that does not beat the best baseline has learned nothing, so
both are always printed together.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conf.releases import Release
from conf.settings import Settings
from models.report.data import NothingToShowError
from models.report.new_places import show_new_places
from models.report.page import Figure, Section, TableView, Tile, Topic, format_count, format_figure
from models.report.plots import BASELINE_SERIES, SERIES, draw_bars, draw_reliability
from models.report.training import find_training

ACCURACY = Topic(
    "accuracy",
    "Accuracy beside the baselines",
    sees=(
        "The model and the training-free baselines on the same held-out rows, ranked among all live POIs, "
        "never sampled."
    ),
    alarm="A model that is not above every baseline, or an interval that holds a baseline's figure.",
)
BASELINES = ("kernel_counter", "visit_counter", "popularity", "distance", "random")
"""Methods that need no training, strongest first."""
STAGES = ("align_dpo", "pretrain", "sft_ranking", "sft_embedding")
"""Stages of the model; of stages for the same task, the served one comes first."""
METHOD_NAMES = {
    "align_dpo": "after DPO",
    "pretrain": "pre-trained",
    "sft_ranking": "ranking SFT",
    "sft_embedding": "embedding SFT",
    "kernel_counter": "recency-weighted visits",
    "visit_counter": "visit counter",
    "next_poi": "the next POI",
    "ranking": "ranking",
}
GROUPS = {"all": "all rows", "returns": "returns", "discoveries": "discoveries"}
HITS = {f"hr_at_{k}": f"Acc@{k}" for k in (1, 5, 10, 20, 100)}
COLUMNS = HITS | {"mrr": "MRR", "ndcg_at_10": "NDCG@10"}
NAN = (np.nan, np.nan, np.nan)

Methods = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Result:
    """Figures of several methods on one set of rows.

    Attributes:
        name: name of the task, for example next_poi.
        protocol: protocol that chose the rows.
        methods: next POI: method -> group -> figures; ranking: method -> figures.
        calibration: columns of the reliability diagram of the served stage.
        differences: stage -> metric -> paired difference to the recency-weighted visit baseline, with interval.
    """

    name: str
    protocol: str
    rows: int
    users: int
    digest: str
    methods: Methods
    rows_by_group: Mapping[str, int]
    calibration: Mapping[str, Any]
    differences: Mapping[str, Mapping[str, Mapping[str, float | None]]]

    @property
    def is_ranking(self) -> bool:
        return any("auc" in figures for figures in self.methods.values())

    @property
    def ordered(self) -> list[str]:
        """Models first, then the baselines, strongest first."""
        order = (*STAGES, *sorted(set(self.methods) - {*STAGES, *BASELINES}), *BASELINES)
        return [name for name in order if name in self.methods]

    @property
    def models(self) -> list[str]:
        return [name for name in self.ordered if name not in BASELINES]

    def figure(self, method: str, metric: str, group: str = "all") -> tuple[float, float, float]:
        """Returns a figure and its interval; nan if there is none."""
        figures = self.methods[method] if self.is_ranking else self.methods[method].get(group, {})
        value = figures.get(metric)
        bounds = (
            value if isinstance(value, Mapping) else figures.get(f"{metric}_interval") or {"value": value}
        )
        interval = tuple(
            np.nan if bounds.get(end) is None else float(bounds[end]) for end in ("value", "low", "high")
        )
        return interval if len(interval) == 3 else NAN


def build_accuracy(settings: Settings, release: Release) -> Section:
    """Builds the section."""
    folder = find_training(settings, release)
    path = folder / "evaluation.json"
    if not path.is_file():
        raise NothingToShowError(
            f"The training of {folder.name} has not been evaluated (no evaluation.json)."
        )
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise NothingToShowError(f"The evaluation of {folder.name} is not JSON: {error}") from error
    results = find_results(content)
    skipped = [f"{_name(task)} is not evaluated: {why}." for task, why in content.get("skipped", {}).items()]
    if not results:
        raise NothingToShowError(" ".join([f"The evaluation of {folder.name} holds no figures.", *skipped]))
    tiles: list[Tile] = []
    figures: list[Figure] = []
    tables: list[TableView] = []
    for result in results:
        tiles += _headline_tiles(result)
        figures += _draw(result)
        tables += [_ranking_table(result)] if result.is_ranking else _next_poi_tables(result)
    if isinstance(content.get("new_places"), Mapping):
        new_figures, new_tables = show_new_places(content["new_places"])
        figures += new_figures
        tables += new_tables
    is_simulated = bool(content.get("is_simulated")) or any(_is_simulated(part) for part in content.values())
    simulated = (
        "These rows are simulated: the figures say how the pipeline works, not how good the method is."
    )
    return Section(
        ACCURACY,
        tiles=tuple(tiles),
        figures=tuple(figures),
        tables=tuple(tables),
        notes=(*([simulated] if is_simulated else []), *skipped),
    )


def find_results(content: Mapping[str, Any], name: str = "evaluation", protocol: str = "") -> list[Result]:
    """Finds all results with figures by method in an evaluation, next POI before ranking."""
    protocol = str(content.get("protocol") or protocol or name)
    split = content.get("split")
    if isinstance(content.get("methods"), Mapping):
        methods = content["methods"]
        label = f"{protocol}, {split}" if split else protocol
        if not content.get("rows"):
            return []
        if content.get("drawn_of", 0) > content["rows"]:
            label += f", drawn of {format_count(content['drawn_of'])} targets"
        return [
            Result(
                name,
                label,
                int(content["rows"]),
                int(content.get("users", 0)),
                str(content.get("digest", "-")),
                methods,
                content.get("rows_by_group", {}),
                content.get("calibration", {}),
                content.get("minus_kernel_counter", {}),
            )
        ]
    label = f"{protocol}, {split}" if split else protocol
    results = [
        result
        for key, part in content.items()
        if isinstance(part, Mapping)
        for result in find_results(part, key, label)
    ]
    return sorted(results, key=lambda result: result.is_ranking)


def _headline_tiles(result: Result) -> list[Tile]:
    metrics = {"auc": "AUC"} if result.is_ranking else {"hr_at_1": "Acc@1", "hr_at_10": "Acc@10"}
    tiles = []
    for model in result.models[:1]:
        for metric, label in metrics.items():
            value, low, high = result.figure(model, metric)
            baselines = {name: result.figure(name, metric)[0] for name in result.ordered if name in BASELINES}
            best = max(baselines, key=lambda name: np.nan_to_num(baselines[name], nan=-1.0), default="")
            hint = (
                f"best baseline {format_figure(baselines[best])} ({_name(best)})"
                if best
                else "no baseline on these rows"
            )
            tone = "" if not best or np.isnan(value) else "good" if value > baselines[best] else "bad"
            interval = f" [{format_figure(low, 3)}, {format_figure(high, 3)}]" if not np.isnan(low) else ""
            tiles.append(
                Tile(
                    f"{label}, {_name(model)}",
                    format_figure(value),
                    f"{hint}{interval and '; 95 %' + interval}",
                    tone,
                )
            )
    return tiles


def _draw(result: Result) -> list[Figure]:
    metrics = {"auc": "AUC", "gauc": "GAUC"} if result.is_ranking else HITS
    what, xlabel = (
        ("Ranking", "0.5 = chance")
        if result.is_ranking
        else ("Next POI", "share of rows with the target among the first k")
    )
    rows = [[result.figure(name, metric) for metric in metrics] for name in result.ordered]
    colors = _pick_colors(result)
    svg = draw_bars(
        list(metrics.values()), rows, colors, xlabel=xlabel, baseline=0.4 if result.is_ranking else 0.0
    )
    legend = tuple(zip(map(_name, result.ordered), colors, strict=True))
    charts = [Figure(svg, f"{what}, {result.protocol}: {format_count(result.rows)} rows", legend)]
    if result.calibration.get("counts"):
        bins = [np.array(result.calibration[name]) for name in ("predicted", "observed", "counts")]
        error = format_figure(result.calibration.get("expected_error"))
        charts.append(
            Figure(draw_reliability(*bins), f"Reliability on the held-out rows, calibration error {error}")
        )
    return charts


def _pick_colors(result: Result) -> list[str]:
    """Returns bright colours for models, greys for baselines."""
    bright, grey = iter(SERIES * 4), iter(BASELINE_SERIES * 4)
    return [next(bright if name in result.models else grey) for name in result.ordered]


def _next_poi_tables(result: Result) -> list[TableView]:
    rows: list[tuple[str, ...]] = []
    strong: list[int] = []
    for group, label in GROUPS.items():
        for method in result.ordered:
            if group not in result.methods[method]:
                continue
            if method in result.models:
                strong.append(len(rows))
            _, low, high = result.figure(method, "hr_at_1", group)
            count = result.rows_by_group.get(group)
            rows.append(
                (
                    label,
                    _name(method),
                    format_count(count) if count is not None else "-",
                    *(format_figure(result.figure(method, metric, group)[0]) for metric in COLUMNS),
                    "-" if np.isnan(low) else f"{low:.3f} to {high:.3f}",
                )
            )
    header = ("rows", "method", "count", *COLUMNS.values(), "Acc@1, 95 %")
    tables = [TableView(_caption("Next POI", result), header, tuple(rows), (0, 1), tuple(strong))]
    return [*tables, *_difference_tables(result)]


def _difference_tables(result: Result) -> list[TableView]:
    rows = tuple(
        (
            _name(stage),
            COLUMNS.get(metric, metric),
            *(_signed(found.get(end)) for end in ("value", "low", "high")),
        )
        for stage in result.models
        for metric, found in result.differences.get(stage, {}).items()
    )
    header = ("method", "metric", "difference", "95 % from", "to")
    return (
        [
            TableView(
                "Minus the recency-weighted visit baseline, paired on the same rows", header, rows, (0, 1)
            )
        ]
        if rows
        else []
    )


def _ranking_table(result: Result) -> TableView:
    rows = tuple(
        (
            _name(method),
            *(format_figure(value) for value in result.figure(method, "auc")),
            format_figure(result.figure(method, "gauc")[0]),
        )
        for method in result.ordered
    )
    strong = tuple(number for number, method in enumerate(result.ordered) if method in result.models)
    return TableView(
        _caption("Ranking", result), ("method", "AUC", "95 % from", "to", "GAUC"), rows, (0,), strong
    )


def _caption(what: str, result: Result) -> str:
    users = f", {format_count(result.users)} users" if result.users else ""
    rows = f"{format_count(result.rows)} rows{users}, digest of the row ids {result.digest}"
    return f"{what}: protocol {result.protocol}, {rows}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _name(method: str) -> str:
    return METHOD_NAMES.get(method, method)


def _is_simulated(part: object) -> bool:
    return isinstance(part, Mapping) and bool(part.get("is_simulated"))
