"""Routine features against a plain loop over steps and actions."""

from datetime import UTC, datetime, timedelta

import pytest
import torch

from models.copying.pairs import Past
from models.copying.routines import ROUTINE_TABLES, RoutineFeatures, compare_routines
from models.data.batch import Steps, steps_of
from models.network.trunk import past_of
from tests.models.tiny import tiny_history


def past_and_steps(seed: int) -> tuple[Past, Steps]:
    """Few POIs, so that runs and visits of a day repeat."""
    history = tiny_history((40, 12, 1), seed=seed)
    history = history._replace(blocks_BL=history.blocks_BL % 2, inners_BL=history.inners_BL * 0)
    return past_of(history), steps_of(history, torch.tensor([[0, 4, 20, 39], [1, 2, 7, 11], [0, 0, 0, 0]]))


def compare_one(past: Past, steps: Steps, b: int, q: int, j: int) -> RoutineFeatures:
    """The same features, one pair at a time, in plain Python."""
    n = int(steps.num_past_BQ[b, q])
    pois = past.blocks_BL[b].tolist()
    days = [
        local_day(time, offset)
        for time, offset in zip(past.timestamps_BL[b].tolist(), past.tz_offsets_BL[b].tolist(), strict=True)
    ]
    today = local_day(int(steps.timestamps_BQ[b, q]), int(steps.tz_offsets_BQ[b, q]))
    run = 0
    while run < 5 and j - run > 0 and pois[j - run - 1] == pois[n - run - 1]:
        run += 1
    first_of_day = j
    while first_of_day > 0 and days[first_of_day - 1] == days[j]:
        first_of_day -= 1
    so_far = sum(day == today for day in days[:n])
    visits = [k for k in range(n) if pois[k] == pois[j]]
    again = sum(days[k] == today for k in visits)
    return RoutineFeatures(
        run, min(so_far, 5) * 6 + min(j - first_of_day, 5), min(again, 2) * 8 + (len(visits)).bit_length() - 1
    )


def local_day(time_ms: int, offset_min: int) -> object:
    return (datetime.fromtimestamp(time_ms / 1000, UTC) + timedelta(minutes=offset_min)).date()


@pytest.mark.parametrize("seed", range(3))
def test_features_equal_those_of_a_plain_loop(seed):
    past, steps = past_and_steps(seed)

    found = compare_routines(past, steps)

    seen = set()
    for b, q in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        for j in range(int(steps.num_past_BQ[b, q])):
            expected = compare_one(past, steps, b, q, j)
            assert RoutineFeatures(*(int(part[b, q, j]) for part in found)) == expected, (b, q, j)
            seen.add(expected.equal_run)
    assert seen >= {0, 1, 2, 3, 4}  # the data tell runs apart


@pytest.mark.parametrize("table", ROUTINE_TABLES, ids=lambda table: table.name)
def test_rows_stay_within_their_table(table):
    for seed in range(3):
        rows = table.row(compare_routines(*past_and_steps(seed)))
        assert int(rows.min()) >= 0
        assert int(rows.max()) < table.num_rows


def test_what_comes_after_a_step_does_not_move_its_features():
    past, steps = past_and_steps(0)
    changed = past._replace(blocks_BL=past.blocks_BL.clone(), timestamps_BL=past.timestamps_BL.clone())
    changed.blocks_BL[0, 20:], changed.timestamps_BL[0, 20:] = 1, past.timestamps_BL[0, 19]

    before, after = compare_routines(past, steps), compare_routines(changed, steps)

    for old, new in zip(before, after, strict=True):  # step 2 of user 0 predicts action 20
        assert torch.equal(old[0, 2, :20], new[0, 2, :20])


def test_a_user_without_past_has_nothing_to_compare():
    history = tiny_history((0, 0))

    asked = Steps(*(torch.zeros(2, 1, dtype=torch.int64) for _ in range(3)), torch.zeros(2, 1, 2))

    found = compare_routines(past_of(history), asked)

    assert [tuple(part.shape) for part in found] == [(2, 1, 0)] * 3
