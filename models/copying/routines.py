"""Routines in the history copy: optional pair features, step x past action (`memory.routine_tables`).

The features are the number of equal actions in a row before both, the number of each within its local day, and the
visits to the action's POI on the step's local day. They have no parameters and no gradients, and cost
O(steps x actions).
"""

# Shape letters: B = sequences, Q = steps being predicted, L = past actions.

from typing import NamedTuple

import torch
from torch import Tensor

from conf.units import MS_PER_DAY, MS_PER_MINUTE
from models.copying.pairs import NUM_COUNTS, PairTable, Past, bucket_visits, group_equal
from models.data.batch import Steps, shift_right, take_actions
from models.data.slots import pack_slots

MOST_EQUAL, MOST_OF_DAY, MOST_TODAY = 5, 5, 2


class RoutineFeatures(NamedTuple):
    """Routine features, int64, (B, Q, L); undefined where the action is not strictly before the step.

    Attributes:
        equal_run: number of last actions before the step that equal those before the action, in order, up to 5.
        day_places: actions of its local day before the step, up to 5, x the same number for the action.
        visits_today: visits to the action's POI on the step's local day, up to 2, x bucket of all its visits.
    """

    equal_run: Tensor
    day_places: Tensor
    visits_today: Tensor


ROUTINE_TABLES: tuple[PairTable[RoutineFeatures], ...] = (
    PairTable("equal_run", MOST_EQUAL + 1, lambda f: f.equal_run),
    PairTable("day_places", (MOST_OF_DAY + 1) ** 2, lambda f: f.day_places),
    PairTable("visits_today", (MOST_TODAY + 1) * NUM_COUNTS, lambda f: f.visits_today),
)


@torch.no_grad()
def compare_routines(past: Past, steps: Steps) -> RoutineFeatures:
    """Compares every step with every past action."""
    slots_BL = pack_slots(past.blocks_BL, past.inners_BL)
    is_past_BQL = torch.arange(slots_BL.shape[1], device=slots_BL.device) < steps.num_past_BQ[..., None]
    days_BL = _local_days(past.timestamps_BL, past.tz_offsets_BL)
    days_BQ = _local_days(steps.timestamps_BQ, steps.tz_offsets_BQ)
    is_today_BQL = (days_BL[:, None] == days_BQ[..., None]) & is_past_BQL
    of_step = is_today_BQL.sum(dim=-1).clamp(max=MOST_OF_DAY)
    of_action = _count_day_before(days_BL).clamp(max=MOST_OF_DAY)
    group = group_equal(slots_BL)[:, None].expand(is_past_BQL.shape)
    today, ever = (
        torch.zeros(group.shape, dtype=torch.int64, device=group.device)
        .scatter_add_(2, group, counts.long())
        .gather(2, group)
        for counts in (is_today_BQL, is_past_BQL)
    )
    return RoutineFeatures(
        equal_run=_count_equal_run(slots_BL, steps),
        day_places=of_step[..., None] * (MOST_OF_DAY + 1) + of_action[:, None],
        visits_today=today.clamp(max=MOST_TODAY) * NUM_COUNTS + bucket_visits(ever),
    )


def _local_days(timestamps_ms: Tensor, tz_offsets_min: Tensor) -> Tensor:
    return (timestamps_ms + tz_offsets_min * MS_PER_MINUTE).div(MS_PER_DAY, rounding_mode="floor")


def _count_day_before(days_BL: Tensor) -> Tensor:
    """Returns the number of actions of the same local day directly before each action, (B, L)."""
    place = torch.arange(days_BL.shape[1], device=days_BL.device).expand_as(days_BL)
    is_first = torch.ones_like(days_BL, dtype=torch.bool)
    is_first[:, 1:] = days_BL.diff(dim=1) != 0
    return place - torch.where(is_first, place, 0).cummax(dim=1).values


def _count_equal_run(slots_BL: Tensor, steps: Steps) -> Tensor:
    """Returns the length of the run of equal POIs that ends before the step and before the action, (B, Q, L)."""
    still_equal: Tensor | None = None
    length = torch.zeros((), dtype=torch.int64, device=slots_BL.device)
    for back in range(1, MOST_EQUAL + 1):
        before_step = take_actions(slots_BL, steps.num_past_BQ - back, fill=-1)[..., None]
        is_equal = before_step == shift_right(slots_BL, back, fill=-2)[:, None]
        still_equal = is_equal if still_equal is None else still_equal & is_equal
        length = length + still_equal
    return length
