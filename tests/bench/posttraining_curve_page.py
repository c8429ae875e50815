"""The ledger's figures of Table 8's curve, and its page with a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from conf.results import record

COMMAND = "make bench-posttraining-curve"
STAGES = ("embedding", "ranking")
STARTS = ("scratch", "pretrained")
RANKERS = ("base", "labels alone", "visits")
COLD = ("cold_users", "cold_pois")
BARS = {
    ("ranking", 2_000): ">= 3", ("embedding", 2_000): ">= 4.5", ("ranking", 0): ">= 3", ("embedding", 0): ">= 3",
}  # fmt: skip
"""Targets of the gain by stage and number of requests; 0 = all."""
PROBES = {
    "attribute": "planted attribute of a POI, one of six",
    "liking": "attribute that a user likes, from the visited POIs",
    "towers_auc": "AUC of the towers before any SFT",
}
Figures = dict[str, object]


class Curves:
    """The curves of several cities."""

    def __init__(self, cities: Mapping[int, Figures], numbers: Sequence[int]) -> None:
        self.cities, self.numbers = cities, numbers

    def values(self, *path: str) -> list[float]:
        """Returns a figure of every city."""
        return [_get(own, path) for own in self.cities.values()]

    def mean(self, *path: str) -> float:
        """Returns the mean of a figure over the cities."""
        return math.fsum(self.values(*path)) / len(self.cities)

    def tell(self, *path: str) -> str:
        """Returns the mean of a figure, and its values, as text."""
        return f"{self.mean(*path):.4f} ({', '.join(f'{value:.4f}' for value in self.values(*path))})"

    def gain(self, stage: str, number: int, part: str = "auc") -> float:
        """Returns what pre-training adds to the AUC of a stage, in points."""
        pretrained, scratch = (self.mean(str(number), f"{stage}-{start}", part) for start in reversed(STARTS))
        return 100 * (pretrained - scratch)

    def spans(self, stage: str, number: int) -> str:
        """Returns the intervals of the gain, in points, one for each city."""
        low, high = (self.values(str(number), f"{stage}-gain", end) for end in ("low", "high"))
        return ", ".join(
            f"{100 * one:.2f} to {100 * other:.2f}" for one, other in zip(low, high, strict=True)
        )

    @property
    def about(self) -> str:
        """What was measured on."""
        hashes = sorted({str(own["config_hash"]) for own in self.cities.values()})
        seeds = ", ".join(map(str, self.cities))
        return f"simulated cities of seeds {seeds}, configuration {', '.join(hashes)}"


def record_curve(curves: Curves, folder: str) -> None:
    """Records the gains at 2,000 and at all requests, and the probe, as means over the cities."""
    for (stage, number), bar in BARS.items():
        if number not in curves.numbers:
            continue
        rows = [f"{stage}-{start}" for start in STARTS]
        told = "; ".join(f"{name} {curves.tell(str(number), name, 'auc')}" for name in (*rows, *RANKERS))
        cold = "; ".join(
            f"gain on {part.replace('_', ' ')} {_signed(curves.gain(stage, number, part))}" for part in COLD
        )
        record(
            f"table8-pretrain-gain-{stage}" + (f"-{number}" if number else ""),
            round(curves.gain(stage, number), 4),
            "points",
            bar,
            COMMAND,
            f"AUC on test requests after {number or 'all'} SFT requests, and of base rankers trained on the same "
            f"(alone, with classes of clicks, with classes of visits): {told}; intervals of the gain by user "
            f"{curves.spans(stage, number)}; {cold}; {curves.about}",
            folder,
        )
    told = "; ".join(f"{title}: {curves.tell('probes', name)}" for name, title in PROBES.items())
    record(
        "interest-probe",
        round(curves.mean("probes", "attribute"), 4),
        "",
        ">= 0.55",
        COMMAND,
        f"share of POIs whose planted attribute a linear probe reads off their pre-trained vectors; {told}; "
        f"{curves.about}",
        folder,
    )


def write_page(curves: Curves, page: Path, recipe: str) -> None:
    """Writes the page and its picture."""
    titles = (
        "SFT requests", "SFT", "from scratch", "pre-trained", "gain, points", "cold users", "cold POIs",
        *(f"*{name}*" for name in RANKERS),
    )  # fmt: skip
    lines = [
        "# Table 8 as a curve: what pre-training is worth, by the number of labelled requests",
        "",
        f"Made by `{COMMAND}`; not written by hand. Every action and click is simulated; {curves.about}; recipe",
        f"`{recipe}`. AUC on later requests, means over the cities; in brackets 95 % intervals of the gain by user,",
        "one for each city. In italics: base rankers trained on the same requests, alone, with latent classes of",
        "clicks (labels alone) and with latent classes of visits (visits).",
        "",
        f"![AUC by number of requests]({page.with_suffix('.png').name})",
        "",
        f"| {' | '.join(titles)} |",
        "|" + "---|" * len(titles),
    ]
    for number in curves.numbers:
        for stage in STAGES:
            own = [
                f"{number:,}" if number else "all", stage,
                *(f"{curves.mean(str(number), f'{stage}-{start}', 'auc'):.4f}" for start in STARTS),
                f"{curves.gain(stage, number):+.2f} ({curves.spans(stage, number)})",
                *(_signed(curves.gain(stage, number, part)) for part in COLD),
                *(f"{curves.mean(str(number), name, 'auc'):.4f}" for name in RANKERS),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(own)} |")
    probes = "; ".join(f"{title}: {curves.tell('probes', name)}" for name, title in PROBES.items())
    lines += ["", f"Probes of pre-training alone, mean and each city: {probes}."]
    page.write_text("\n".join(lines) + "\n")
    _draw(curves, page.with_suffix(".png"))


def _draw(curves: Curves, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True, layout="constrained")
    places = [curves.mean(str(number), "requests") for number in curves.numbers]
    starts = {"scratch": ("from scratch", "#8a94a3"), "pretrained": ("pre-trained", "#2b6cb0")}
    for stage, axis in zip(STAGES, axes, strict=True):
        for start, (title, colour) in starts.items():
            values = [curves.mean(str(number), f"{stage}-{start}", "auc") for number in curves.numbers]
            axis.plot(places, values, color=colour, marker="o", label=title)
        for name, style in zip(RANKERS, (":", "--", "-."), strict=True):
            values = [curves.mean(str(number), name, "auc") for number in curves.numbers]
            axis.plot(places, values, style, color="#b7791f", linewidth=1, label=f"base ranker: {name}")
        axis.set_xscale("log")
        axis.set_title(f"{stage} SFT", fontsize=10)
        axis.set_xlabel("SFT requests (simulated)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("AUC on later requests")
    axes[1].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _signed(points: float) -> str:
    """Returns points with their sign; a dash if there is no such row, as at all requests, which every user has."""
    return "-" if math.isnan(points) else f"{points:+.2f}"


def _get(figures: object, path: Sequence[str]) -> float:
    for part in path:
        assert isinstance(figures, Mapping)
        figures = figures[part]
    assert isinstance(figures, int | float)
    return float(figures)
