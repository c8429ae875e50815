"""Histograms of a day as the gates compare them: rows by value, shares, and how far two of them lie apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Histogram:
    """Rows by value; false without any row."""

    counts: Mapping[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """Returns the share of the rows that each value has."""
        total = sum(self.counts.values())
        return {value: count / total for value, count in self.counts.items()} if total else {}

    def __bool__(self) -> bool:
        return any(self.counts.values())


def mean_shares(days: Sequence[Histogram]) -> Histogram:
    """Returns the mean of the shares of some days; days have equal weight, regardless of their number of rows."""
    values = sorted({value for each in days for value in each.counts})
    shares = [each.shares for each in days]
    return Histogram(
        {value: sum(day_shares.get(value, 0.0) for day_shares in shares) / len(days) for value in values}
    )


def shift_between(one: Histogram, other: Histogram) -> tuple[float, str]:
    """Returns the total variation between two histograms, and the value with the largest difference in words."""
    first, second = one.shares, other.shares
    gaps = {value: first.get(value, 0.0) - second.get(value, 0.0) for value in sorted({*first, *second})}
    if not gaps:
        return 0.0, ""
    value = max(gaps, key=lambda key: abs(gaps[key]))
    text = f"most at {value}: {first.get(value, 0.0):.3f} instead of {second.get(value, 0.0):.3f}"
    return sum(abs(gap) for gap in gaps.values()) / 2, text


def shift_to_nearest(one: Histogram, days: Sequence[Histogram]) -> tuple[float, str]:
    """Returns `shift_between` a histogram and the most similar histogram of some days."""
    return min((shift_between(one, day) for day in days), key=lambda shift: shift[0])
