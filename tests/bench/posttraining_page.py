"""Pages of Tables 4, 8 and 9: figures of every city with intervals, baselines beside, and one picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

Figures = Mapping[str, object]
TABLE4_TITLES = {
    "distance": "*distance alone*",
    "popularity": "*popularity alone*",
    "kernel": "*recency-weighted visit baseline alone*",
    "base": "base ranker",
    "embedding": "+ embeddings",
    "scores": "+ ranking scores",
    "both": "+ both",
    "oracle": "*oracle: the click model itself, positions hidden*",
}
TABLE8_TITLES = {
    "scratch": "from scratch",
    "pretrained": "pre-trained",
    "multimodal": "pre-trained, with POI texts",
}
TABLE9_TITLES = {
    "pretrained": "pre-trained",
    "dpo": "DPO",
    "s-dpo": "S-DPO",
    "control": "*control: cross-entropy on the clicks, same steps*",
}
NOTE = (
    "Figures are of test requests later than everything that was trained on; in brackets 95 % intervals from "
    "resampling users; means are over the cities."
)


def write_page(all_figures: Mapping[str, Figures], page: Path, *, title: str, about: str) -> None:
    """Writes the page and, of Table 4, its picture beside it.

    Args:
        all_figures: of each city by its name, as `posttraining_tables.measure_city` makes them; what a city lacks is
            left out.
        page: Markdown file.
        title: of the page.
        about: what was measured, on what, by which command.
    """
    lines = [f"# {title}", "", about, "", NOTE, ""]
    if all("table4" in figures for figures in all_figures.values()):
        picture = page.with_suffix(".png")
        page.parent.mkdir(parents=True, exist_ok=True)
        _draw_table4([_part(figures, "table4") for figures in all_figures.values()], picture)
        lines += [
            f"![AUC of the ranking model with each feature set, beside its baselines]({picture.name})",
            "",
        ]
    writers = {"table4": _table4, "table8": _table8, "table9": _table9, "meal_rule": _meal_rule}
    for part, write in writers.items():
        if all(part in figures for figures in all_figures.values()):
            lines += [
                *write([_part(figures, part) for figures in all_figures.values()], list(all_figures)),
                "",
            ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip() + "\n")


def _table4(cities: Sequence[Figures], names: Sequence[str]) -> list[str]:
    requests = ", ".join(f"{_number(city, 'requests'):,.0f}" for city in cities)
    lines = [
        "## Table 4: what the features lift an existing ranking model by",
        "",
        f"{requests} test requests. Rows in italics are not in the paper.",
        "",
        _header("features", ["AUC", *names, "GAUC", "NDCG@5", "calibration error"]),
    ]
    for name in _measured(cities):
        own = [_part(city, name) for city in cities]
        error = f"{_mean(own, 'calibration_error'):.4f}" if "calibration_error" in own[0] else ""
        each = _each(own, "auc")
        others = [f"{_mean(own, key):.4f}" for key in ("gauc", "ndcg_at_5")]
        lines.append(_row(TABLE4_TITLES[name], [f"{_mean(own, 'auc'):.4f}", *each, *others, error]))
    lifts = ", ".join(_interval(city, "lift_interval") for city in cities)
    return [*lines, "", f"Lift of both over the base ranker, paired, per city: {lifts}."]


def _table8(cities: Sequence[Figures], names: Sequence[str]) -> list[str]:
    lines = [
        "## Table 8: what pre-training and POI texts give both SFTs",
        "",
        "AUC of the score alone; the same steps from every start.",
        "",
        _header("SFT", ["start", "AUC", *names]),
    ]
    for stage in ("embedding", "ranking"):
        own = [_part(city, stage) for city in cities]
        for kind, title in TABLE8_TITLES.items():
            lines.append(_row(stage, [title, f"{_mean(own, kind):.4f}", *_each(own, kind)]))
    return lines


def _table9(cities: Sequence[Figures], names: Sequence[str]) -> list[str]:
    lines = [
        "## Table 9: what alignment does to generated candidates",
        "",
        "Rank of later clicked POIs among all live ones.",
        "",
        _header("model", ["hr@1", "hr@10", *(f"hr@10, {name}" for name in names)]),
    ]
    for kind, title in TABLE9_TITLES.items():
        own = [_part(city, kind) for city in cities]
        means = [f"{_mean(own, key):.4f}" for key in ("hr_at_1", "hr_at_10")]
        lines.append(_row(title, [*means, *_each(own, "hr_at_10")]))
    return lines


def _meal_rule(cities: Sequence[Figures], names: Sequence[str]) -> list[str]:
    lines = [
        "## A rule instilled: places to eat at meal times",
        "",
        "Share of places to eat among ten generated POIs, before and after preference pairs of the rule `meal_time`.",
        "",
        _header("when", ["before", "after", *names]),
    ]
    for when in ("meal_times", "other_times"):
        before, after = ([_part(city, kind) for city in cities] for kind in ("pretrained", "meal-time"))
        each = [
            f"{_number(a, when):.4f} → {_number(b, when):.4f}" for a, b in zip(before, after, strict=True)
        ]
        means = [f"{_mean(own, when):.4f}" for own in (before, after)]
        lines.append(_row(when.replace("_", " "), [*means, *each]))
    return lines


def _draw_table4(cities: Sequence[Figures], path: Path) -> None:
    names = _measured(cities)
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for row, name in enumerate(names):
        own = [_part(city, name) for city in cities]
        is_ranker = name in ("base", "embedding", "scores", "both")
        axes.barh(
            row, _mean(own, "auc") - 0.5, left=0.5, color="#2b6cb0" if is_ranker else "#c3c8d0", height=0.7
        )
        axes.plot([_number(found, "auc") for found in own], [row] * len(own), "k.", markersize=4)
        axes.text(_mean(own, "auc") + 0.006, row, f"{_mean(own, 'auc'):.3f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [TABLE4_TITLES[name].strip("*").split(":")[0] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0.5, max(_number(_part(city, name), "auc") for city in cities for name in names) + 0.04)
    axes.set_xlabel("AUC on test requests; dots: each city")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _measured(cities: Sequence[Figures]) -> list[str]:
    """Returns the rows of Table 4 that every city has; only the click model of a simulated city is known."""
    return [name for name in TABLE4_TITLES if all(name in city for city in cities)]


def _header(first: str, columns: Sequence[str]) -> str:
    return _row(first, columns) + "\n" + "|---" * (1 + len(columns)) + "|"


def _row(first: str, values: Sequence[str]) -> str:
    return f"| {' | '.join([first, *values])} |"


def _part(figures: Figures, name: str) -> Figures:
    part = figures[name]
    assert isinstance(part, Mapping)
    return part


def _number(figures: Figures, name: str) -> float:
    value = figures[name]
    assert isinstance(value, int | float)
    return value


def _mean(cities: Sequence[Figures], name: str) -> float:
    return math.fsum(_number(city, name) for city in cities) / len(cities)


def _interval(figures: Figures, name: str) -> str:
    found = figures[name]
    assert isinstance(found, list)
    return f"[{found[0]:.4f}, {found[1]:.4f}]"


def _each(cities: Sequence[Figures], name: str) -> list[str]:
    return [f"{_number(city, name):.4f} {_interval(city, f'{name}_interval')}" for city in cities]
