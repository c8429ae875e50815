"""The page of the paper's Tables 6 and 7, made of cells: figures beside baselines, differences with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.data.arrays import BoolArray, Float64Array
from models.data.ranks import Ranks
from models.data.requests import Requests
from models.evaluation.baselines import count_training
from models.evaluation.figures import rank_baselines
from models.evaluation.metrics import Interval, bootstrap_mean, exact_mean, hit_values, reciprocal_values
from models.protocols.splits import PROTOCOLS, build_rows
from tests.bench.paper.runs import Cell, CellMaker
from tests.bench.paper.variants import FULL, TABLE7_ROWS, VARIANTS
from tests.bench.protocols import BASELINE_TITLES

PAPER_TABLE6 = (
    ("LSTM", 0.1305), ("STGCN", 0.1799), ("PLSPL", 0.1917), ("STAN", 0.2231), ("GETNext", 0.2435),
    ("STHGCN", 0.2734), ("Spacetime-GR", 0.2920),
)  # fmt: skip
"""Acc@1 on New York as the paper prints it; STHGCN reads other users' trajectories."""

Cells = Mapping[str, Sequence[Cell]]
"""Cells of one set of check-ins by variant, a seed each."""
Value = Callable[[Ranks], Float64Array]


def hr_at_1(ranks: Ranks) -> Float64Array:
    """Returns hits at 1 per row."""
    return hit_values(ranks, 1)


def hr_at_100(ranks: Ranks) -> Float64Array:
    """Returns hits at 100 per row."""
    return hit_values(ranks, 100)


@dataclass(frozen=True)
class Table7Row:
    """The full model minus one row of Table 7, paired row by row, interval by users.

    Attributes:
        variant: of the row.
        hr1, hr100: full minus row, mean of the seeds.
    """

    variant: str
    hr1: Interval
    hr100: Interval

    @property
    def reproduced_at(self) -> tuple[str, ...]:
        """Figures at which the full model is ahead and the interval excludes 0."""
        figures = {"hr@1": self.hr1, "hr@100": self.hr100}
        return tuple(name for name, interval in figures.items() if interval.low > 0)

    @property
    def is_reproduced(self) -> bool:
        """Is the row reproduced at both."""
        return len(self.reproduced_at) == 2

    @property
    def verdict(self) -> str:
        """What pages say of the row."""
        return (
            "yes"
            if self.is_reproduced
            else " ".join([*self.reproduced_at, "only"])
            if self.reproduced_at
            else "no"
        )


def compare_table7(requests: Requests, cells: Cells) -> list[Table7Row]:
    """Returns the rows of Table 7 for which there are cells."""
    if not cells.get(FULL):
        return []
    return [
        Table7Row(
            name,
            *(
                bootstrap_mean(_mean(cells[FULL], value) - _mean(cells[name], value), requests.users)
                for value in (hr_at_1, hr_at_100)
            ),
        )
        for name in TABLE7_ROWS
        if cells.get(name)
    ]


def describe_set(maker: CellMaker, cells: Cells) -> list[str]:
    """Returns the part of the page about one set of check-ins, as lines of Markdown."""
    requests, own = maker.rows.requests["test"], maker.checkins
    made = [cell for of_variant in cells.values() for cell in of_variant]
    lines = [
        f"## {own.title[0].upper()}{own.title[1:]}",
        "",
        f"{maker.rows.num_rows['train']:,} training rows, {len(maker.rows.poi_ids):,} POIs; {len(requests):,} scored "
        f"test rows of {len(np.unique(requests.users)):,} users (protocol `{own.protocol}`, digest "
        f"`{made[0].rows_digest if made else '-'}`). {len(made)} cells, "
        f"{sum(cell.seconds for cell in made) / 60:.0f} minutes of training.",
        "",
        "Table 7. Differences are the full model minus the row, mean of the seeds, with 95 % intervals from resampling "
        "users; a row is reproduced if both exclude 0 and the full model is ahead.",
        "",
        "| row | paper | hr@1 | hr@100 | difference hr@1 | difference hr@100 | reproduced | seeds | min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    differences = {row.variant: row for row in compare_table7(requests, cells)}
    for name in (*TABLE7_ROWS, FULL):
        if cells.get(name):
            lines.append(_table7_line(name, cells[name], differences.get(name)))
    lines += _table6(maker, cells)
    return [*lines, ""]


def _table7_line(name: str, cells: Sequence[Cell], row: Table7Row | None) -> str:
    published = VARIANTS[name].table7
    assert published is not None
    told = ["", "", ""] if row is None else [_show(row.hr1), _show(row.hr100), row.verdict]
    figures = [f"{exact_mean(_mean(cells, value)):.4f}" for value in (hr_at_1, hr_at_100)]
    parts = [
        VARIANTS[name].title,
        f"{published[0]:.4f} / {published[1]:.4f}",
        *figures,
        *told,
        _seeds(cells),
        _minutes(cells),
    ]
    return "| " + " | ".join(parts) + " |"


def _table6(maker: CellMaker, cells: Cells) -> list[str]:
    """Table 6: every variant beside the baselines; on the rows of `last_protocol` where there is one."""
    checkins, requests = maker.checkins, maker.rows.requests["test"]
    kept: BoolArray = np.ones(len(requests), np.bool_)
    if checkins.last_protocol:
        last = build_rows(PROTOCOLS[checkins.last_protocol], maker.folder).requests["test"]
        kept = np.isin(requests.row_ids, last.row_ids)
    counts = count_training(maker.rows.training_visits, num_pois=len(maker.rows.poi_ids))
    scored = f"{checkins.last_protocol or checkins.protocol}`, {int(kept.sum()):,} rows"
    lines = [
        "",
        f"Table 6 (rows of `{scored}), baselines first:",
        "",
        "| model | Acc@1 | Acc@10 | Acc@100 | MRR | weights | seeds | min |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, ranks in rank_baselines(requests.take(np.flatnonzero(kept)), counts).items():
        lines.append(
            _table6_line(f"*{BASELINE_TITLES.get(name, name.replace('_', ' '))}*", [ranks], "", "", "")
        )
    order = sorted(cells, key=lambda name: list(VARIANTS).index(name))
    for name in order:
        if cells[name]:
            ranks_of_seeds = [cell.ranks.take(kept) for cell in cells[name]]
            weights = f"{cells[name][0].num_parameters / 1e6:.2f} M"
            title = VARIANTS[name].title
            lines.append(
                _table6_line(title, ranks_of_seeds, weights, _seeds(cells[name]), _minutes(cells[name]))
            )
    if checkins.name == "nyc":
        told = ", ".join(f"{system} {value:.4f}" for system, value in PAPER_TABLE6)
        lines += ["", f"The paper's Table 6, Acc@1 on New York (its own rows, 1,347 to ours): {told}."]
    return lines


def _table6_line(title: str, ranks: Sequence[Ranks], *rest: str) -> str:
    values: list[Value] = [hr_at_1, lambda own: hit_values(own, 10), hr_at_100, reciprocal_values]
    figures = [f"{exact_mean(np.mean([value(own) for own in ranks], axis=0)):.4f}" for value in values]
    return "| " + " | ".join([title, *figures, *rest]) + " |"


def _mean(cells: Sequence[Cell], value: Value) -> Float64Array:
    """Returns the mean of the seeds, row by row."""
    mean: Float64Array = np.mean([value(cell.ranks) for cell in cells], axis=0)
    return mean


def _show(interval: Interval) -> str:
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _seeds(cells: Sequence[Cell]) -> str:
    return ", ".join(str(cell.seed) for cell in cells)


def _minutes(cells: Sequence[Cell]) -> str:
    return f"{exact_mean(np.array([cell.seconds for cell in cells])) / 60:.1f}"
