"""Pair features of the history copy: step x past action -> one row number per learned table.

The features are age, clock difference, day relation, visits, gaps, distance, and same previous POI or category. Clock
quantities are local time; "previous" is the user's previous action. They have no parameters and no gradients, and cost
O(steps x actions).

The module also defines the learned tables of the history copy: the pair features that choose a row, and the start of
each table.
"""

# Shape letters: B = sequences, Q = steps being predicted, L = past actions.

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from conf.units import EARTH_RADIUS_KM, MS_PER_HOUR, MS_PER_MINUTE
from models.data.batch import Steps, shift_right, take_actions
from models.data.features import Clock, is_known_place, place_on_sphere, split_time
from models.data.slots import pack_slots

NUM_AGES, NUM_MATCHES, NUM_GAPS, NUM_DISTANCES, NUM_COUNTS, NUM_FINE_GAPS, NUM_SIGNED = (
    32,
    3,
    8,
    12,
    8,
    16,
    40,
)
SAME_POI, SAME_CATEGORY, NO_MATCH = range(NUM_MATCHES)
_HALF_DAY_MIN, _DAY_MIN = 720, 1440


class Past(NamedTuple):
    """Raw features of past actions.

    Attributes:
        timestamps_BL, tz_offsets_BL, blocks_BL, inners_BL, categories_BL: int64, (B, L), as in `HistoryBatch`.
        poi_lonlat_BL2: float, (B, L, 2).
    """

    timestamps_BL: Tensor
    tz_offsets_BL: Tensor
    blocks_BL: Tensor
    inners_BL: Tensor
    categories_BL: Tensor
    poi_lonlat_BL2: Tensor


class PairFeatures(NamedTuple):
    """Pair features, int64, (B, Q, L) unless the name differs; undefined where the action is not before the step."""

    age: Tensor
    match: Tensor
    is_current: Tensor
    half_hours: Tensor
    day_relation: Tensor
    visits: Tensor
    last_visit: Tensor
    gap_BQ1: Tensor
    distance: Tensor
    gap_difference: Tensor
    two_back: Tensor
    hour_pair: Tensor
    signed_minutes: Tensor
    weekday_pair: Tensor
    previous_clock: Tensor


@torch.no_grad()
def compare_pairs(past: Past, steps: Steps) -> PairFeatures:
    """Compares every step with every past action."""
    slots_BL = pack_slots(past.blocks_BL, past.inners_BL)
    clock_q = _view_clock(split_time(steps.timestamps_BQ, steps.tz_offsets_BQ), dim=2)
    clock_j = _view_clock(split_time(past.timestamps_BL, past.tz_offsets_BL), dim=1)
    day_relation = _relate_days(clock_q.weekday, clock_j.weekday)
    signed = _signed_minutes(clock_q, clock_j)
    visits, last_ms = _count_visits(past, steps, slots_BL)
    previous = Clock(*(shift_right(part[:, 0], 1, fill=0)[:, None] for part in clock_j))
    now = steps.timestamps_BQ[..., None]
    gap_q, gap_j = _gaps_of_steps(past, steps), _gaps_of_actions(past)
    is_current, match, two_back = _match_contexts(past, steps, slots_BL)
    return PairFeatures(
        age=_bucket_age(now - past.timestamps_BL[:, None]),
        match=match,
        is_current=is_current,
        half_hours=_half_hours(signed),
        day_relation=day_relation,
        visits=bucket_visits(visits),
        last_visit=_bucket_age(now - last_ms),
        gap_BQ1=_bucket_gap(gap_q)[..., None],
        distance=_bucket_distance(past, steps),
        gap_difference=(_bucket_fine_gap(gap_q)[..., None] - _bucket_fine_gap(gap_j)[:, None]).abs(),
        two_back=two_back,
        hour_pair=clock_q.hour * 24 + clock_j.hour,
        signed_minutes=_bucket_signed(signed),
        weekday_pair=(clock_q.weekday * 7 + clock_j.weekday) * 6 + (signed.abs() // 90).clamp(max=5),
        previous_clock=_half_hours(_signed_minutes(clock_q, previous)) * 3
        + _relate_days(clock_q.weekday, previous.weekday),
    )


def bucket_step_gap(past: Past, steps: Steps) -> Tensor:
    """Returns the log bucket of the time since the user's last action, (B, Q)."""
    return _bucket_gap(_gaps_of_steps(past, steps))


def bucket_distance(places: Tensor, other_places: Tensor) -> Tensor:
    """Returns the log bucket of distances, as in the pair tables; places broadcast, (..., 2) -> (...)."""
    between = place_on_sphere(places) - place_on_sphere(other_places)
    known = is_known_place(places) & is_known_place(other_places)
    return torch.where(known, _bucket_chord(between.norm(dim=-1)), NUM_DISTANCES - 1)


def _view_clock(clock: Clock, dim: int) -> Clock:
    return Clock(*(part.unsqueeze(dim) for part in clock))


def _signed_minutes(clock_a: Clock, clock_b: Clock) -> Tensor:
    """Returns how much later in the day clock a is than clock b, -720 to 719 minutes."""
    return (clock_a.minute_of_day - clock_b.minute_of_day + _HALF_DAY_MIN) % _DAY_MIN - _HALF_DAY_MIN


def _half_hours(signed_min: Tensor) -> Tensor:
    return (signed_min.abs() + 15) // 30


def _relate_days(weekday_a: Tensor, weekday_b: Tensor) -> Tensor:
    """Returns 0 same weekday, 1 same type (workday or weekend), 2 other."""
    same_type = (weekday_a >= 5) == (weekday_b >= 5)
    return torch.where(weekday_a == weekday_b, 0, torch.where(same_type, 1, 2))


def bucket_visits(counts: Tensor) -> Tensor:
    """Returns the log bucket of visits to a POI."""
    return counts.clamp(min=1).float().log2().long().clamp(max=NUM_COUNTS - 1)


def _bucket_age(age_ms: Tensor) -> Tensor:
    hours = age_ms.clamp(min=0).double() / MS_PER_HOUR
    return (2 * (hours + 1).log2()).long().clamp(max=NUM_AGES - 1)


def _bucket_gap(gap_ms: Tensor) -> Tensor:
    minutes = gap_ms.clamp(min=0).double() / MS_PER_MINUTE
    return (minutes / 7.5 + 1).log2().long().clamp(max=NUM_GAPS - 1)


def _bucket_fine_gap(gap_ms: Tensor) -> Tensor:
    minutes = gap_ms.clamp(min=0).double() / MS_PER_MINUTE
    return (minutes + 1).log2().long().clamp(max=NUM_FINE_GAPS - 1)


def _bucket_signed(signed_min: Tensor) -> Tensor:
    magnitude = (2 * (signed_min.abs().float() + 1).log2()).long().clamp(max=NUM_SIGNED // 2 - 1)
    return magnitude + NUM_SIGNED // 2 * (signed_min < 0)


def _bucket_distance(past: Past, steps: Steps) -> Tensor:
    """Returns the log bucket of the distance from user to POI, (B, Q, L); unknown places have the last bucket."""
    # By default cdist uses a matrix product above 25 rows: near places would lose digits, and results would
    # depend on the batch's shape (docs/design.md, trap 4).
    chord = torch.cdist(
        place_on_sphere(steps.user_lonlat_BQ2),
        place_on_sphere(past.poi_lonlat_BL2),
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    known = is_known_place(steps.user_lonlat_BQ2)[..., None] & is_known_place(past.poi_lonlat_BL2)[:, None]
    return torch.where(known, _bucket_chord(chord), NUM_DISTANCES - 1)


def _bucket_chord(chord: Tensor) -> Tensor:
    return (1.5 * (chord * (EARTH_RADIUS_KM / 0.1) + 1).log2()).long().clamp(max=NUM_DISTANCES - 1)


def _gaps_of_actions(past: Past) -> Tensor:
    """Returns the time since the previous action, (B, L); a long time for the first."""
    first = torch.full_like(past.timestamps_BL[:, :1], 2**50)
    return torch.cat([first, past.timestamps_BL.diff(dim=1)], dim=1)


def _gaps_of_steps(past: Past, steps: Steps) -> Tensor:
    """Returns the time since the user's last action, (B, Q); a long time without one."""
    last_ms = take_actions(past.timestamps_BL, steps.num_past_BQ - 1, fill=-(2**50))
    return steps.timestamps_BQ - last_ms


def _match_contexts(past: Past, steps: Steps, slots_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compares the POIs before the step with those before the action: current, match, two back, (B, Q, L) each."""
    last_slot = take_actions(slots_BL, steps.num_past_BQ - 1, fill=-1)[..., None]
    last_category = take_actions(past.categories_BL, steps.num_past_BQ - 1, fill=-1)[..., None]
    slot_before_last = take_actions(slots_BL, steps.num_past_BQ - 2, fill=-1)[..., None]
    # Different fills, since a missing POI before the step must not match a missing POI before the action.
    same_poi = last_slot == shift_right(slots_BL, 1, fill=-2)[:, None]
    category_before = shift_right(past.categories_BL, 1, fill=-2)[:, None]
    same_category = (last_category == category_before) & (last_category > 0)
    match = torch.where(same_poi, SAME_POI, torch.where(same_category, SAME_CATEGORY, NO_MATCH))
    two_back = slot_before_last == shift_right(slots_BL, 2, fill=-2)[:, None]
    return (last_slot == slots_BL[:, None]).long(), match, two_back.long()


def _count_visits(past: Past, steps: Steps, slots_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the visits to each action's POI before the step, and the time of the last one, (B, Q, L) each."""
    B, L = slots_BL.shape
    Q = steps.num_past_BQ.shape[1]
    group = group_equal(slots_BL)[:, None].expand(B, Q, L)
    # Over the whole history, the target would count itself as a visit.
    is_past = torch.arange(L, device=slots_BL.device) < steps.num_past_BQ[..., None]
    counts = torch.zeros(B, Q, L, dtype=torch.int64, device=slots_BL.device).scatter_add_(
        2, group, is_past.long()
    )
    times = torch.where(is_past, past.timestamps_BL[:, None], 0)
    last = torch.zeros_like(counts).scatter_reduce_(2, group, times, reduce="amax")
    return counts.gather(2, group), last.gather(2, group)


def group_equal(values_BL: Tensor) -> Tensor:
    """Numbers the distinct values of each row from 0, (B, L), by sorting."""
    ordered, order = values_BL.sort(dim=1, stable=True)
    is_new = torch.zeros_like(ordered)
    is_new[:, 1:] = (ordered.diff(dim=1) != 0).long()
    return torch.empty_like(ordered).scatter_(1, order, is_new.cumsum(dim=1))


Features = TypeVar("Features")


@dataclass(frozen=True)
class PairTable(Generic[Features]):
    """One learned table over pair features: its number of rows, and the function that chooses a row."""

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
    """Returns the tables of a memory; tables of clocks and of hidden request times have switches."""
    return [
        table
        for table in TABLES
        if (clock_tables or not table.is_clock) and (hide_request_time or not table.needs_hidden_time)
    ]


def start_table(table: PairTable[Features]) -> Tensor:
    """Returns the initial table, (rows,): that of the recency-weighted visit baseline (docs/design.md 5), else zero."""
    # Tables add up before the exponential, so the baseline's factors become logarithms.
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
