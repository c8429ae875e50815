"""Pair features against a plain loop over steps and actions."""

import math
from datetime import UTC, datetime, timedelta

import pytest
import torch

from models.copying.pairs import (
    NO_MATCH,
    SAME_CATEGORY,
    SAME_POI,
    TABLES,
    PairFeatures,
    Past,
    compare_pairs,
    start_table,
)
from models.data.batch import Steps, steps_of
from models.network.trunk import past_of
from tests.models.tiny import tiny_history

HOUR_MS = 3_600_000


def past_and_steps(seed: int) -> tuple[Past, Steps]:
    history = tiny_history((12, 5, 1), seed=seed)
    index = torch.tensor([[0, 4, 11], [1, 2, 4], [0, 0, 0]])
    return past_of(history), steps_of(history, index)


def compare_one(past: Past, steps: Steps, b: int, q: int, j: int) -> dict[str, int]:
    """The same features, one pair at a time, in plain Python."""
    n, now = int(steps.num_past_BQ[b, q]), int(steps.timestamps_BQ[b, q])
    times = past.timestamps_BL[b].tolist()
    pois = list(zip(past.blocks_BL[b].tolist(), past.inners_BL[b].tolist(), strict=True))
    categories = past.categories_BL[b].tolist()
    visits = [k for k in range(n) if pois[k] == pois[j]]
    local_q = _local(now, int(steps.tz_offsets_BQ[b, q]))
    local_j = _local(times[j], int(past.tz_offsets_BL[b, j]))
    minutes_q, minutes_j = local_q.hour * 60 + local_q.minute, local_j.hour * 60 + local_j.minute
    signed = (minutes_q - minutes_j + 720) % 1440 - 720
    match = NO_MATCH
    if j >= 1 and pois[j - 1] == pois[n - 1]:
        match = SAME_POI
    elif j >= 1 and categories[j - 1] == categories[n - 1] > 0:
        match = SAME_CATEGORY
    relation = _relate(local_q, local_j)
    local_p = _local(times[j - 1] if j else 0, int(past.tz_offsets_BL[b, j - 1]) if j else 0)
    apart = (minutes_q - local_p.hour * 60 - local_p.minute + 720) % 1440 - 720
    gap_q = (now - times[n - 1]) / 60_000
    gap_j = (times[j] - times[j - 1]) / 60_000 if j >= 1 else math.inf
    fine_q, fine_j = (15 if math.isinf(gap) else min(15, int(math.log2(gap + 1))) for gap in (gap_q, gap_j))
    return {
        "age": _age(now - times[j]),
        "match": match,
        "is_current": int(pois[j] == pois[n - 1]),
        "half_hours": (abs(signed) + 15) // 30,
        "day_relation": relation,
        "visits": min(7, int(math.log2(len(visits)))),
        "last_visit": _age(now - times[visits[-1]]),
        "gap_BQ1": min(7, int(math.log2(gap_q / 7.5 + 1))),
        "distance": _distance(steps.user_lonlat_BQ2[b, q].tolist(), past.poi_lonlat_BL2[b, j].tolist()),
        "gap_difference": abs(fine_q - fine_j),
        "two_back": int(j >= 2 and n >= 2 and pois[j - 2] == pois[n - 2]),
        "hour_pair": local_q.hour * 24 + local_j.hour,
        "signed_minutes": min(19, int(2 * math.log2(abs(signed) + 1))) + 20 * (signed < 0),
        "weekday_pair": (local_q.weekday() * 7 + local_j.weekday()) * 6 + min(5, abs(signed) // 90),
        "previous_clock": (abs(apart) + 15) // 30 * 3 + _relate_first(local_q, local_p, j),
    }


def _relate(a: datetime, b: datetime) -> int:
    if a.weekday() == b.weekday():
        return 0
    return 1 if (a.weekday() >= 5) == (b.weekday() >= 5) else 2


def _relate_first(a: datetime, b: datetime, j: int) -> int:
    """Before a user's first action the clock stands at Monday, 00:00."""
    return _relate(a, b if j else datetime(2026, 1, 5, tzinfo=UTC))


def _local(time_ms: int, offset_min: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC) + timedelta(minutes=offset_min)


def _age(age_ms: int) -> int:
    return min(31, int(2 * math.log2(age_ms / HOUR_MS + 1)))


def _distance(a: list[float], b: list[float]) -> int:
    if any(math.isnan(part) for part in a + b):
        return 11

    def xyz(lonlat: list[float]) -> list[float]:
        lon, lat = (math.radians(part) for part in lonlat)
        return [math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)]

    return min(11, int(1.5 * math.log2(math.dist(xyz(a), xyz(b)) * 63_710.088 + 1)))


@pytest.mark.parametrize("seed", range(4))
def test_features_equal_those_of_a_plain_loop(seed):
    past, steps = past_and_steps(seed)

    found = compare_pairs(past, steps)

    for b, q in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
        for j in range(int(steps.num_past_BQ[b, q])):
            expected = compare_one(past, steps, b, q, j)
            shape = found.age.shape
            got = {name: int(getattr(found, name).expand(shape)[b, q, j]) for name in PairFeatures._fields}
            assert got == expected, f"user {b}, step {q}, action {j}"


def test_what_comes_after_a_step_does_not_move_its_features():
    past, steps = past_and_steps(0)
    changed = past._replace(
        blocks_BL=past.blocks_BL.clone(),
        inners_BL=past.inners_BL.clone(),
        timestamps_BL=past.timestamps_BL.clone(),
    )
    changed.blocks_BL[0, 4:], changed.inners_BL[0, 4:], changed.timestamps_BL[0, 4:] = 1, 1, 0

    before, after = compare_pairs(past, steps), compare_pairs(changed, steps)

    for name in PairFeatures._fields:  # step 1 of user 0 predicts action 4
        assert torch.equal(getattr(before, name)[0, 1, :4], getattr(after, name)[0, 1, :4]), name


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_rows_stay_within_their_table(table):
    for seed in range(3):
        rows = table.row(compare_pairs(*past_and_steps(seed)))
        assert int(rows.min()) >= 0
        assert int(rows.max()) < table.num_rows


def test_tables_start_at_the_weights_of_the_kernel_counter():
    tables = {table.name: (table, start_table(table)) for table in TABLES}
    zeros = torch.zeros(1, 1, 1, dtype=torch.int64)
    base = PairFeatures(*(zeros for _ in PairFeatures._fields))

    def start(name: str, **features: int) -> float:
        table, rows = tables[name]
        return float(rows[table.row(base._replace(**{k: zeros + v for k, v in features.items()}))])

    assert start("age_match", age=0) == pytest.approx(math.log(1.05), abs=0.01)
    assert start("age_match", age=31) == pytest.approx(math.log(0.05), abs=0.01)
    assert start("clock_count", half_hours=0, day_relation=1) == pytest.approx(math.log(2.55))
    assert start("clock_count", half_hours=0, day_relation=2) == pytest.approx(math.log(1.05))
    assert start("clock_count", half_hours=24, day_relation=0) == pytest.approx(math.log(0.05))
    assert start("gap_match", match=SAME_POI) == pytest.approx(math.log(7))
    assert start("gap_match", match=NO_MATCH, is_current=1) == pytest.approx(math.log(0.1))
    assert start("hour_pair") == 0
