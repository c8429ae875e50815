"""Verdicts on pairs of lists, and their shares: win, even, lose, as seen from our list.

A judge is anything that gives one verdict per pair: known values of POIs (`judge_by_values`), or people and language
models (`models/judging/page.py`), whose choices name sides and are turned into verdicts by `unblind`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conf.errors import CorruptInputError
from models.data.arrays import Float64Array
from models.evaluation.metrics import Interval, bootstrap_mean
from models.judging.lists import LEFT, RIGHT, Pair

Verdict = Literal["win", "even", "lose"]
VERDICTS: tuple[Verdict, ...] = ("win", "even", "lose")
EVEN = "even"
MARGIN = 0.01
"""Values within this share of theirs are even."""
NUM_RESAMPLES = 1_000


@dataclass(frozen=True)
class Tally:
    """Shares of the verdicts, with 95 % intervals by user.

    Attributes:
        pairs: number of judged pairs, or of ranks.
        shares: verdict -> share.
    """

    pairs: int
    shares: dict[Verdict, Interval]

    def as_json(self) -> dict[str, object]:
        """Returns plain numbers; None where one user leaves no interval."""
        shares: dict[str, object] = {
            name: {
                end: None if math.isnan(getattr(own, end)) else getattr(own, end)
                for end in ("value", "low", "high")
            }
            for name, own in self.shares.items()
        }
        return {"judged": self.pairs, **shares}


def compare_values(ours: float, theirs: float, margin: float = MARGIN) -> Verdict:
    """Returns our verdict for two values; even if they differ by at most `margin` of theirs."""
    if abs(ours - theirs) <= margin * abs(theirs):
        return "even"
    return "win" if ours > theirs else "lose"


def judge_by_values(
    pairs: Iterable[Pair], values: Mapping[tuple[str, str], float], margin: float = MARGIN
) -> tuple[dict[str, Verdict], list[tuple[str, Verdict]]]:
    """Judges lists by the mean value of their POIs, and POIs of equal rank by their own.

    Args:
        pairs: lists of the requests.
        values: value of (request, POI), for example the probability of a click; every POI shown needs one.
        margin: share of their value within which ours is even.

    Returns:
        Request -> verdict on the list, and (user, verdict) for every rank that both lists have.

    Raises:
        KeyError: a POI has no value.
    """
    lists: dict[str, Verdict] = {}
    ranks: list[tuple[str, Verdict]] = []
    for pair in pairs:
        ours, theirs = ([values[pair.request_id, poi] for poi in own] for own in (pair.ours, pair.theirs))
        lists[pair.request_id] = compare_values(float(np.mean(ours)), float(np.mean(theirs)), margin)
        both = zip(ours, theirs, strict=False)  # a list may be shorter
        ranks += [(pair.user_id, compare_values(one, other, margin)) for one, other in both]
    return lists, ranks


def unblind(
    choices: Mapping[str, str], pairs: Sequence[Pair], seed: int, *, source: str
) -> dict[str, Verdict]:
    """Turns choices of a side into verdicts.

    Args:
        choices: request -> left, right or even.
        pairs: lists of the requests; choices of other requests are refused.
        seed: of the sides.
        source: where the choices come from, for the error.

    Raises:
        CorruptInputError: a choice is none of these, or of an unknown request.
    """
    by_request = {pair.request_id: pair for pair in pairs}
    verdicts: dict[str, Verdict] = {}
    for request, choice in choices.items():
        if request not in by_request or choice not in (LEFT, RIGHT, EVEN):
            raise CorruptInputError(
                path=source, expected="choices left, right or even of the compared requests",
                cause=f"request {request!r} has {choice!r}",
            )  # fmt: skip
        is_ours = choice == by_request[request].our_side(seed)
        verdicts[request] = "even" if choice == EVEN else "win" if is_ours else "lose"
    return verdicts


def tally(users: Sequence[str], verdicts: Sequence[Verdict]) -> Tally:
    """Counts verdicts; both sequences have one entry per judged pair."""
    names = np.array(users, dtype=str)
    shares: dict[Verdict, Interval] = {}
    for verdict in VERDICTS:
        hits: Float64Array = np.array([own == verdict for own in verdicts], dtype=np.float64)
        shares[verdict] = bootstrap_mean(hits, names, num_resamples=NUM_RESAMPLES)
    return Tally(len(verdicts), shares)


def tally_lists(pairs: Iterable[Pair], verdicts: Mapping[str, Verdict]) -> Tally:
    """Counts the verdicts on lists."""
    judged = [pair for pair in pairs if pair.request_id in verdicts]
    return tally([pair.user_id for pair in judged], [verdicts[pair.request_id] for pair in judged])
