"""Figures of Table 5 and of the A/B test, over all cities; intervals by user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conf.results import record
from models.data.arrays import BoolArray, Float64Array
from models.evaluation.metrics import Interval
from models.judging.verdicts import Tally, tally

COMMAND = "make bench-online"
NUM_RESAMPLES = 2_000
FIRST_DAYS = LAST_DAYS = 4
"""Days at either end of the A/B test between which drift is told."""


@dataclass(frozen=True)
class Rate:
    """Events of some users and what they are counted among; one entry per user."""

    events: Float64Array
    among: Float64Array

    @property
    def value(self) -> float:
        """Returns the rate."""
        return float(self.events.sum() / self.among.sum())

    def drawn(self, rng: np.random.Generator) -> Float64Array:
        """Returns the rate in each of many samples of users."""
        count = len(self.events)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)
        rates: Float64Array = (weights @ self.events) / (weights @ self.among)
        return rates


def relative_difference(one: Rate, other: Rate, *, seed: int = 0) -> Interval:
    """Returns `one / other - 1` with a 95 % interval; users of both are drawn independently."""
    rng = np.random.default_rng(seed)
    drawn = one.drawn(rng) / other.drawn(rng) - 1
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(one.value / other.value - 1, float(low), float(high))


def rate_by_user(users: NDArray[np.str_], events: BoolArray, among: BoolArray) -> Rate:
    """Counts events by user; users without anything to count among are left out."""
    _, of = np.unique(users, return_inverse=True)
    counted = np.bincount(of, weights=among.astype(np.float64))
    happened = np.bincount(of, weights=(events & among).astype(np.float64))
    return Rate(happened[counted > 0], counted[counted > 0])


class Shown:
    """All impressions of the A/B test, of one or more cities."""

    def __init__(self, tables: Mapping[int, pa.Table]) -> None:
        """Takes the impressions of each seed; users of different cities are different users."""
        every = pa.concat_tables(tables.values())
        seeds = np.repeat(list(tables), [table.num_rows for table in tables.values()]).astype(str)
        self.users = np.char.add(
            np.char.add(seeds, "/"), every["user_id"].to_numpy(zero_copy_only=False).astype(str)
        )
        self.is_click: BoolArray = every["label"].to_numpy() == 1
        self.is_visit: BoolArray = every["is_visit"].to_numpy(zero_copy_only=False).astype(bool)
        self.arm = every["arm"].to_numpy(zero_copy_only=False).astype(str)
        self.half, self.day = (every[name].to_numpy() for name in ("half", "day"))
        self.pois = every["poi_id"].to_numpy(zero_copy_only=False).astype(str)

    def ctr(self, part: BoolArray) -> Rate:
        """Clicks per shown POI of some impressions."""
        return rate_by_user(self.users[part], self.is_click[part], np.ones(int(part.sum()), bool))

    def visits(self, part: BoolArray) -> Rate:
        """Visits per shown POI of some impressions."""
        return rate_by_user(self.users[part], self.is_visit[part], np.ones(int(part.sum()), bool))

    def cvr(self, part: BoolArray) -> Rate:
        """Visits per click of some impressions."""
        return rate_by_user(self.users[part], self.is_visit[part], self.is_click[part])


def record_table5(compared: Mapping[int, Mapping[str, Any]], about: str, folder: str) -> None:
    """Records the shares of won, even and lost lists."""
    told = {}
    for system in ("generated", "ranked"):
        for what in ("lists", "pois"):
            told[system, what] = _tally([(seed, own[system][what]) for seed, own in compared.items()])
    lists, pois = told["generated", "lists"], told["generated", "pois"]
    means = "; ".join(
        f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in own["mean_value"].items())
        for seed, own in compared.items()
    )
    notes = (
        f"simulated; lists of the aligned model against those of the online system, {lists.pairs} requests: "
        f"{_describe(lists)}; per POI of equal rank: {_describe(pois)}. Not counted: lists that the ranking team's "
        f"model with our features makes of what both recall, {_describe(told['ranked', 'lists'])}. Mean click "
        f"probability of the shown POIs: {means}; {about}"
    )
    record("table5-win-share", round(lists.shares["win"].value, 4), "", ">= 0.60", COMMAND, notes, folder)
    record("table5-lose-share", round(lists.shares["lose"].value, 4), "", "<= 0.30", COMMAND, notes, folder)
    record("table5-poi-win-share", round(pois.shares["win"].value, 4), "", "", COMMAND, notes, folder)


def record_ab(tables: Mapping[int, pa.Table], conversions: str, about: str, folder: str) -> None:
    """Records the lifts of CTR and CVR, and the A/A difference."""
    shown = Shown(tables)
    in_a, in_b = (shown.arm == arm for arm in ("A", "B"))
    ctr, cvr, visits = (
        relative_difference(rate(in_b), rate(in_a)) for rate in (shown.ctr, shown.cvr, shown.visits)
    )
    halves = [in_a & (shown.half == half) for half in (0, 1)]
    same = relative_difference(shown.ctr(halves[0]), shown.ctr(halves[1]))
    each = "; ".join(
        f"seed {seed}: CTR {own.ctr(own.arm == 'A').value:.4f} and {own.ctr(own.arm == 'B').value:.4f}, "
        f"CVR {own.cvr(own.arm == 'A').value:.4f} and {own.cvr(own.arm == 'B').value:.4f}"
        for seed, own in ((seed, Shown({seed: table})) for seed, table in tables.items())
    )
    about = (
        f"CTR is clicks per shown POI, CVR visits per click; visits per shown POI {100 * visits.value:+.2f} % "
        f"({100 * visits.low:+.2f} to {100 * visits.high:+.2f}); {each}; {describe_drift(shown)}; {conversions}; "
        f"{about}"
    )
    intro = f"simulated; {len(np.unique(shown.users))} users, {len(shown.users)} impressions in {shown.day.max()} days"
    for name, interval, bar in (
        ("ab-ctr-lift", ctr, ">= 6"),
        ("ab-cvr-lift", cvr, ">= 4"),
        ("aa-ctr-difference", same, ""),
    ):
        told = f"{intro}; {100 * interval.low:+.2f} to {100 * interval.high:+.2f} % by user; {about}"
        record(name, round(100 * interval.value, 2), "%", bar, COMMAND, told, folder)


def describe_drift(shown: Shown) -> str:
    """Tells how both arms change from the first days to the last, and how many POIs they show."""
    last = int(shown.day.max())
    told = []
    for arm in ("A", "B"):
        own = shown.arm == arm
        early, late = own & (shown.day <= FIRST_DAYS), own & (shown.day > last - LAST_DAYS)
        pois = [len(np.unique(shown.pois[part])) for part in (early, late)]
        told.append(
            f"arm {arm} from the first {FIRST_DAYS} to the last {LAST_DAYS} days: CTR {shown.ctr(early).value:.4f} to "
            f"{shown.ctr(late).value:.4f}, distinct POIs {pois[0]} to {pois[1]}"
        )
    return "; ".join(told)


def _tally(of_cities: Sequence[tuple[int, Sequence[tuple[str, Any]]]]) -> Tally:
    users = [f"{seed}/{user}" for seed, own in of_cities for user, _ in own]
    return tally(users, [verdict for _, own in of_cities for _, verdict in own])


def _describe(found: Tally) -> str:
    return ", ".join(
        f"{name} {100 * own.value:.1f} % ({100 * own.low:.1f} to {100 * own.high:.1f})"
        for name, own in found.shares.items()
    )
