"""The rules of the gates: bounds on the figures of `etl/quality/table_statistics.py`, and the severity of a failure.

The rules are derived from the contract (`conf/tables.py`), from the watch list beyond it (`conf/gates.py`), from the
settings `gates.*` and from the same figures on earlier days. This is pure Python on a few hundred numbers: Spark has
counted the figures, and Great Expectations judges them (`etl/quality/expectations.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import median
from typing import cast

from conf.gates import Rate, Severity, TableGates, Watched, gates_of
from conf.settings import GateSettings
from conf.tables import TABLES, Column
from etl.quality import table_statistics as stats
from etl.quality.histograms import Histogram, mean_shares, shift_to_nearest

EPOCH = date(1970, 1, 1)
LEAST_ROWS = 20
"""Fewer rows than these say nothing about a share."""


@dataclass(frozen=True)
class Figure:
    """One figure of one table on one day.

    Attributes:
        value: number of rows, days since 1970-01-01 where it is a date; None = there was no row to look at.
        example: one of the values counted, as text.
    """

    value: float | None
    example: str | None = None


Figures = Mapping[tuple[str, str], Figure]
"""Figures of one table on one day, by column and statistic."""


@dataclass(frozen=True)
class Rule:
    """A bound on one figure.

    Attributes:
        table: table of `conf/tables.py`.
        label: names the figure in the Data Docs; several rules may share one.
        found: the figure.
        low: smallest value that passes; None = any.
        high: largest value that passes.
        severity: effect of a failure.
        says: the expectation in words, for the Data Docs.
        failure: message of a failure: table, observed and expected value.
    """

    table: str
    label: str
    found: float
    low: float | None
    high: float | None
    severity: Severity
    says: str
    failure: str


def build_rules(
    table: str, today: Figures, earlier: Mapping[date, Figures], *, day: date, settings: GateSettings
) -> tuple[list[Rule], list[str]]:
    """Derives the rules of one table for one day.

    Args:
        table: table of `conf/tables.py`.
        today: its figures of the day.
        earlier: its figures of earlier days, as published; only the last `history_days` are used.
        day: the day that is audited.
        settings: bounds.

    Returns:
        The rules, and a sentence for each comparison that needs more earlier days than there are.
    """
    gates = gates_of(table)
    in_sight = [
        figures
        for then, figures in sorted(earlier.items())
        if day - timedelta(days=settings.history_days) <= then < day
    ]
    comparison = _Comparison(table, today, in_sight, settings)
    if gates.volume is not None:
        comparison.add_volume(gates.volume, stats.ROWS_OF_DAY if gates.counted_by else stats.ROWS)
    if gates.may_be_empty and not _count(today, "", stats.ROWS):
        return comparison.rules, comparison.unjudged
    for name in gates.shares:
        comparison.add_share(name)
    for rate in gates.rates:
        comparison.add_rate(rate)
    for name, statistic in gates.means:
        comparison.add_mean(name, statistic)
    for watched in gates.histograms:
        comparison.add_histogram(watched)
    if gates.crowded_by:
        comparison.add_top(gates.crowded_by)
    for column in TABLES[table].columns:
        if column.nullable and stats.is_checked(column):
            comparison.add_null_share(column.name)
    rules = _contract_rules(table, today)
    if gates.repeated_after_days:
        rules += _sent_again(table, today, gates, max_share=settings.max_repeated_share)
    if gates.newest:
        rules += _freshness(table, today, gates.newest, day=day, max_age_days=settings.max_age_days)
    return rules + comparison.rules, comparison.unjudged


def _contract_rules(table: str, today: Figures) -> list[Rule]:
    """Returns the rules of every day: rows, nulls, bounds, closed lists, lengths, unit vectors, keys, ids."""
    contract, gates = TABLES[table], gates_of(table)
    rows = _count(today, "", stats.ROWS)
    rules = [
        Rule(
            table, "rows", rows, 1, None, "critical", "there is a row",
            f"{table}: {rows:.0f} rows, expected at least 1",
        )
    ]  # fmt: skip

    def forbid(column: str, statistic: str, expected: str) -> None:
        """Adds the rule that a count is zero."""
        figure = today[column, statistic]
        count = figure.value or 0.0
        shown = f", for example {figure.example}" if figure.example else ""
        problem = statistic.replace("_", " ")
        rules.append(
            Rule(
                table, f"{column}: {problem}", count, None, 0, "critical", f"{column}: {expected}",
                f"{table}: {count:.0f} of {rows:.0f} rows break {column} ({problem}): expected {expected}{shown}",
            )
        )  # fmt: skip

    for column in contract.columns:
        if not stats.is_checked(column) or contract.raw:
            continue
        if not column.nullable:
            forbid(column.name, stats.NULLS, "no nulls")
        if stats.has_bounds(column):
            forbid(column.name, stats.OUT_OF_BOUNDS, _bounds_in_words(column))
        if column.allowed:
            forbid(column.name, stats.NOT_ALLOWED, f"one of {', '.join(column.allowed)}")
    for group in contract.equal_lengths:
        forbid(group[0], stats.LENGTHS_DIFFER, "parallel arrays of equal length")
    if stats.EMBEDDING in contract.column_names:
        low, high = 1 - stats.UNIT_TOLERANCE, 1 + stats.UNIT_TOLERANCE
        forbid(stats.EMBEDDING, stats.NOT_UNIT_LENGTH, f"a length of {low:g} to {high:g}")
    for columns in (contract.key, *gates.unique):
        if columns:
            forbid(", ".join(columns), stats.REPEATED, "values that occur once")
    if (", ".join(gates.frozen), stats.CHANGED) in today:
        forbid(", ".join(gates.frozen), stats.CHANGED, "what they were before the night, for every key")
    return rules


def _freshness(table: str, today: Figures, column: str, *, day: date, max_age_days: int) -> list[Rule]:
    figure = today[column, stats.NEWEST_DAY]
    if figure.value is None:
        return []
    oldest = day - timedelta(days=max_age_days)
    return [
        Rule(
            table, f"{column}: newest day", figure.value, (oldest - EPOCH).days, None, "critical",
            f"the newest {column} is of {oldest} or later",
            f"{table}: the newest {column} is of {EPOCH + timedelta(days=int(figure.value))}, expected {oldest} or "
            "later; was an old delivery sent again?",
        )
    ]  # fmt: skip


def _sent_again(table: str, today: Figures, gates: TableGates, *, max_share: float) -> list[Rule]:
    columns = ", ".join(gates.repeated_after_days)
    figure, rows = today.get((columns, stats.SENT_AGAIN)), _count(today, "", stats.ROWS)
    if figure is None or not rows:
        return []
    share = (figure.value or 0.0) / rows
    return [
        Rule(
            table, "rows of the day before, a day later", share, None, max_share, "critical",
            f"at most {max_share:g} of the rows are those of the day before with another date",
            f"{table}: {share:.3f} of the rows are those of the day before, a day later to the millisecond "
            f"({columns}), expected at most {max_share:g}, for example {figure.example}; was yesterday's delivery sent "
            "again with its dates moved?",
        )
    ]  # fmt: skip


class _Comparison:
    """Collects the rules that compare a day with earlier days, and the comparisons that need more of these."""

    def __init__(self, table: str, today: Figures, earlier: list[Figures], settings: GateSettings) -> None:
        self.table, self.today, self.earlier, self.settings = table, today, earlier, settings
        self.rules: list[Rule] = []
        self.unjudged: list[str] = []

    def add_volume(self, severity: Severity, statistic: str) -> None:
        """Compares the number of rows; a number that is 0 on most days is not judged."""
        settings, count = self.settings, _count(self.today, "", statistic)
        noun = "rows" if statistic == stats.ROWS else "rows of the day itself"
        days = [_count(figures, "", statistic) for figures in self.earlier]
        usual = self._usual(days, f"number of {noun}")
        if not usual:
            return
        text = f"{count:.0f} {noun}, usual are {usual:.0f} (median of {len(days)} days before)"
        low, high = settings.low_volume * usual, settings.high_volume * usual
        self._add(noun, count, low, high, "warning", f"{low:.0f} to {high:.0f}", text)
        least = settings.min_volume * usual
        self._add(noun, count, least, None, severity, f"at least {least:.0f}", text)

    def add_share(self, column: str) -> None:
        """Compares the share of rows where a boolean column is true."""
        label = f"share of {column}"
        usual = self._usual(self._shares(column, stats.TRUE), label)
        share = _share(self.today, column, stats.TRUE)
        if usual is None or share is None:
            return
        text = f"{label} is {share:.3f}, usual is {usual:.3f}"
        shift = self.settings.max_share_shift
        self._add(label, share, usual - shift, usual + shift, "warning", f"{usual:.3f} +- {shift:g}", text)
        least = self.settings.min_share * usual
        self._add(label, share, least, None, "critical", f"at least {least:.3f}", text)

    def add_rate(self, rate: Rate) -> None:
        """Compares one figure as a share of another."""

        def share(figures: Figures) -> float | None:
            part, whole = figures.get(rate.part), figures.get(rate.whole)
            if part is None or whole is None or not whole.value:
                return None
            return (part.value or 0.0) / whole.value

        shares = [each for each in map(share, self.earlier) if each is not None]
        usual, value = self._usual(shares, rate.label), share(self.today)
        if usual is None or value is None or _count(self.today, *rate.whole) < LEAST_ROWS:
            return
        text = f"{rate.label}: {value:.3f}, usual is {usual:.3f}"
        shift = self.settings.max_share_shift
        self._add(
            rate.label, value, usual - shift, usual + shift, "warning", f"{usual:.3f} +- {shift:g}", text
        )
        least = self.settings.min_volume * usual
        self._add(rate.label, value, least, None, "critical", f"at least {least:.3f}", text)

    def add_mean(self, column: str, statistic: str) -> None:
        """Compares a mean of numbers up to 1, such as cosines."""
        label = f"{column}: {statistic}"
        known = (figures.get((column, statistic)) for figures in self.earlier)
        values = [figure.value for figure in known if figure is not None and figure.value is not None]
        usual, today = self._usual(values, label), self.today.get((column, statistic))
        if usual is None or today is None or today.value is None:
            return
        mean, settings = today.value, self.settings
        text = f"{label} is {mean:.3f} on average, usual is {usual:.3f}"
        for severity, bound in (("warning", settings.max_mean_fall), ("critical", settings.stop_mean_fall)):
            least = usual - bound
            self._add(label, mean, least, None, cast(Severity, severity), f"at least {least:.3f}", text)

    def add_histogram(self, watched: Watched) -> None:
        """Compares how the rows of the day spread over the watched values."""
        days = [_histogram(figures, watched.name) for figures in self.earlier]
        days = [each for each in days if each]
        needed = self.settings.min_history_days
        if len(days) < needed:
            self.unjudged.append(
                f"{self.table}: {watched.name} not judged, {len(days)} of {needed} days needed before it"
            )
            return
        today = _histogram(self.today, watched.name)
        if not today:
            return
        if watched.keeps_shape:
            self._add_shape(watched.name, today, days)
        if watched.keeps_values:
            self._add_vanished(watched.name, today, days)

    def _add_shape(self, name: str, today: Histogram, days: list[Histogram]) -> None:
        """Compares with the most similar earlier day: a Saturday looks like a Saturday, and a wrong day like none.

        The shift is half the sum of the differences of all shares: the part of the rows that lies elsewhere. The limit
        is the bound plus the usual shift. That is the largest shift of any earlier day to its most similar day, or the
        shift that this number of rows shows by chance, if that is larger.
        """
        settings = self.settings
        moved, where = shift_to_nearest(today, days)
        shifts = [
            shift_to_nearest(histogram, days[:number] + days[number + 1 :])
            for number, histogram in enumerate(days)
        ]
        rows = max(sum(today.counts.values()), 1.0)
        shares = mean_shares(days).shares.values()
        by_chance = sum(math.sqrt(share * (1 - share) / rows) for share in shares) / 2
        allowed = max(by_chance, *(shift for shift, _ in shifts))
        text = f"{name}: {moved:.3f} of the rows lie elsewhere than on any day before ({where})"
        label = f"{name}: rows that lie elsewhere than usual"
        bounds: list[tuple[Severity, float]] = [
            ("warning", settings.max_shape_shift), ("critical", settings.stop_shape_shift)
        ]  # fmt: skip
        for severity, bound in bounds:
            high = allowed + bound
            self._add(label, moved, None, high, severity, f"at most {high:.3f}", text)

    def _add_vanished(self, name: str, today: Histogram, days: list[Histogram]) -> None:
        """Looks for values with a large share on the days before that have almost no row today."""
        settings, usual = self.settings, mean_shares(days)
        rows = sum(today.counts.values())
        left = {
            value: today.shares.get(value, 0.0) / share
            for value, share in usual.shares.items()
            # Large on every earlier day, and with enough expected rows that their absence is not chance.
            if min(each.shares.get(value, 0.0) for each in days) >= settings.large_value
            and share * rows >= LEAST_ROWS
        }
        if not left:
            return
        value = min(sorted(left), key=left.__getitem__)
        text = f"{name} {value} has {today.shares.get(value, 0.0):.3f} of the rows, usual are {usual.shares[value]:.3f}"
        least = settings.min_volume
        expected = f"at least {least:g} of its usual share"
        self._add(
            f"{name}: least part left of a usual share", left[value], least, None, "critical", expected, text
        )

    def add_top(self, column: str) -> None:
        """Compares the share of the rows that one value has, such as the most active user."""
        of_day, label = "", f"share of the most frequent {column}"
        rows_of = stats.ROWS_OF_DAY if (of_day, stats.ROWS_OF_DAY) in self.today else stats.ROWS

        def share(figures: Figures) -> float | None:
            rows, top = _count(figures, of_day, rows_of), figures.get((column, stats.TOP))
            return None if not rows or top is None or top.value is None else top.value / rows

        usual = self._usual([each for each in map(share, self.earlier) if each is not None], label)
        value = share(self.today)
        if usual is None or value is None:
            return
        high = usual + self.settings.max_top_share_rise
        text = f"{label} is {value:.3f}, usual is {usual:.3f}"
        if _count(self.today, of_day, rows_of) >= LEAST_ROWS:
            self._add(label, value, None, high, "critical", f"at most {high:.3f}", text)

    def add_null_share(self, column: str) -> None:
        """Compares the share of nulls of a column that may be null."""
        label = f"{column}: share of nulls"
        usual = self._usual(self._shares(column, stats.NULLS), label)
        share = _share(self.today, column, stats.NULLS)
        if usual is None or share is None:
            return
        shift = self.settings.max_null_shift
        text = f"{label} is {share:.3f}, usual is {usual:.3f}"
        self._add(label, share, usual - shift, usual + shift, "warning", f"{usual:.3f} +- {shift:g}", text)

    def _shares(self, column: str, statistic: str) -> list[float]:
        shares = (_share(figures, column, statistic) for figures in self.earlier)
        return [share for share in shares if share is not None]

    def _usual(self, values: list[float], label: str) -> float | None:
        """Returns the median: unlike the mean, it is not moved by one odd day (a first delivery of all history)."""
        needed = self.settings.min_history_days
        if len(values) < needed:
            self.unjudged.append(
                f"{self.table}: {label} not judged, {len(values)} of {needed} days needed before it"
            )
            return None
        return median(values)

    def _add(
        self, label: str, value: float, low: float | None, high: float | None,
        severity: Severity, expected: str, text: str,
    ) -> None:  # fmt: skip
        failure = f"{self.table}: {text}, expected {expected}"
        self.rules.append(
            Rule(self.table, label, value, low, high, severity, f"{label}: {expected}", failure)
        )


def _bounds_in_words(column: Column) -> str:
    if column.low is None and column.high is None:
        return "finite numbers"
    low, high = ("any" if bound is None else f"{bound:g}" for bound in (column.low, column.high))
    return f"{low} to {high}"


def _histogram(figures: Figures, name: str) -> Histogram:
    prefix = stats.COUNTED
    return Histogram(
        {
            statistic.removeprefix(prefix): figure.value or 0.0
            for (column, statistic), figure in figures.items()
            if column == name and statistic.startswith(prefix)
        }
    )


def _count(figures: Figures, column: str, statistic: str) -> float:
    figure = figures.get((column, statistic))
    return 0.0 if figure is None or figure.value is None else figure.value


def _share(figures: Figures, column: str, statistic: str) -> float | None:
    """Returns a count as a share of all rows; None where it was not counted, or there were no rows."""
    rows, figure = _count(figures, "", stats.ROWS), figures.get((column, statistic))
    return None if not rows or figure is None or figure.value is None else figure.value / rows
