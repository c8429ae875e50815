"""The learned tables of the history copy: which pair features choose a row, and where a table starts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from models.copying.pairs import (
    NUM_AGES,
    NUM_COUNTS,
    NUM_DISTANCES,
    NUM_FINE_GAPS,
    NUM_GAPS,
    NUM_SIGNED,
    SAME_POI,
    PairFeatures,
)

Features = TypeVar("Features")


@dataclass(frozen=True)
class PairTable(Generic[Features]):
    """One learned table over pair features: its rows and how features choose one."""

    name: str
    num_rows: int
    row: Callable[[Features], Tensor]
    is_clock: bool = False
    needs_hidden_time: bool = False


TABLES: tuple[PairTable[PairFeatures], ...] = (
    PairTable("age_match", NUM_AGES * 6, lambda f: (f.age * 3 + f.match) * 2 + f.is_current),
    PairTable("clock_count", 25 * 3 * 4, lambda f: (f.half_hours * 3 + f.day_relation) * 4 + f.visits // 2),
    PairTable("gap_match", NUM_GAPS * 6, lambda f: (f.gap_BQ1 * 3 + f.match) * 2 + f.is_current),
    PairTable(
        "gap_distance_match",
        NUM_GAPS * NUM_DISTANCES * 3,
        lambda f: (f.gap_BQ1 * NUM_DISTANCES + f.distance) * 3 + f.match,
    ),
    PairTable("last_visit_gap", NUM_AGES * NUM_GAPS, lambda f: f.last_visit * NUM_GAPS + f.gap_BQ1),
    PairTable("count", NUM_COUNTS, lambda f: f.visits),
    PairTable("gap_difference_match", NUM_FINE_GAPS * 3, lambda f: f.gap_difference * 3 + f.match),
    PairTable("two_back", 2, lambda f: f.two_back),
    PairTable("hour_pair", 24 * 24 * 3, lambda f: f.hour_pair * 3 + f.day_relation, is_clock=True),
    PairTable("signed_clock", NUM_SIGNED * 3, lambda f: f.signed_minutes * 3 + f.day_relation, is_clock=True),
    PairTable("weekday_pair", 7 * 7 * 6, lambda f: f.weekday_pair, is_clock=True),
    PairTable("previous_clock", 25 * 3 * 3, lambda f: f.previous_clock * 3 + f.match, needs_hidden_time=True),
)


def select_tables(*, clock_tables: bool, hide_request_time: bool) -> list[PairTable[PairFeatures]]:
    """Returns the tables of a memory: those of clocks, and of hidden request times, have switches."""
    return [
        table
        for table in TABLES
        if (clock_tables or not table.is_clock) and (hide_request_time or not table.needs_hidden_time)
    ]


def start_table(table: PairTable[Features]) -> Tensor:
    """Returns the start of a table, (rows,): the weights of the kernel counter (docs/design.md 5), else zero."""
    # Tables add up before the exponential, so the factors of the counter start as logarithms.
    if table.name == "age_match":
        # The age in the middle of each bucket: the inverse of `_bucket_age`.
        hours = 2 ** ((torch.arange(NUM_AGES) + 0.5) / 2) - 1
        return (torch.exp(-hours / (60 * 24)) + 0.05).log().repeat_interleave(6)
    if table.name == "clock_count":
        row = torch.arange(table.num_rows)
        hours, same_type = (row // 12) / 2, (row // 4) % 3 < 2
        return (0.05 + torch.exp(-((hours / 1.5) ** 2)) * (1 + 1.5 * same_type)).log()
    if table.name == "gap_match":
        row = torch.arange(table.num_rows)
        return math.log(7) * ((row // 2) % 3 == SAME_POI) + math.log(0.1) * (row % 2)
    return torch.zeros(table.num_rows)
