"""The parts of Table 5 and the A/B test that need no city: recall by rule, best POIs, rates and their intervals."""

import numpy as np
import pyarrow as pa
import pytest

from models.data.catalogue import Catalogue
from tests.bench.online.experiment import open_experiment
from tests.bench.online.figures import Rate, Shown, rate_by_user, relative_difference
from tests.bench.online.lists import Morning, best_rows
from tests.bench.online.loop import arm_of, half_of
from tests.bench.online.truth import visits_after_clicks
from tests.bench.posttraining_city import open_city

USERS = [f"u{number:07d}" for number in range(4_000)]


@pytest.fixture
def street() -> Catalogue:
    """Five POIs along a street, one a kilometre or so; all live from the first day on."""
    count = 5
    return Catalogue.from_arrow(
        pa.table(
            {
                "poi_id": [f"p{number}" for number in range(count)], "block_id": [1] * count,
                "inner_id": list(range(count)), "poi_lon": [0.01 * number for number in range(count)],
                "poi_lat": [0.0] * count, "category_id": [7, 7, 8, 7, 7],
                "valid_from": pa.array([0] * count, pa.date32()), "valid_to": pa.array([None] * count, pa.date32()),
            }
        )
    )  # fmt: skip


def _morning(street: Catalogue, may_be_shown: list[bool], past: list[int]) -> Morning:
    samples = pa.table(
        {
            "request_id": ["r"], "user_lon": [0.0], "user_lat": [0.0],
            "block_ids": pa.array([[1] * len(past)], pa.list_(pa.int32())),
            "inner_ids": pa.array([past], pa.list_(pa.int32())),
        }
    )  # fmt: skip
    return Morning(samples, street, np.array([may_be_shown]), history=None)


def test_the_rule_recalls_the_nearest_pois_and_those_where_the_user_has_been(street):
    morning = _morning(street, [True] * 5, past=[4, 4])

    assert morning.nearest_and_own(2)[0].tolist() == [0, 1, 4]


def test_what_may_not_be_shown_is_neither_nearest_nor_own(street):
    morning = _morning(street, [True, False, False, True, False], past=[4])

    assert morning.nearest_and_own(2)[0].tolist() == [0, 3]
    assert morning.nearest_and_own(5)[0].tolist() == [0, 3]


def test_the_best_rows_are_in_order_and_ties_go_to_the_lower_row():
    scores = np.array([0.2, 0.9, 0.9, 0.5, 0.1])
    requests, rows = np.array([0, 0, 0, 2, 2]), np.array([5, 9, 3, 1, 2])

    found = [own.tolist() for own in best_rows(scores, requests, rows, 3, top=2)]

    assert found == [[3, 9], [], [1, 2]]


def test_arms_and_halves_split_users_evenly_and_independently():
    arms, halves = ([of(user) for user in USERS] for of in (arm_of, half_of))
    shares = [
        np.mean([arm == "A" for arm in arms]),
        np.mean(halves),
        np.mean([half for arm, half in zip(arms, halves, strict=True) if arm == "A"]),
    ]
    assert shares == pytest.approx([0.5] * 3, abs=0.03)
    assert arms == [arm_of(user) for user in USERS]


def test_a_rate_counts_events_by_user():
    users = np.array(["u", "u", "v", "w"])
    found = rate_by_user(users, np.array([True, False, True, True]), np.array([True, True, True, False]))

    assert (found.events.tolist(), found.among.tolist()) == ([1, 1], [2, 1])
    assert found.value == pytest.approx(2 / 3)


def test_a_difference_is_found_with_its_interval_and_none_where_there_is_none():
    rng = np.random.default_rng(3)
    among = np.full(800, 50.0)
    one, other, same = (Rate(rng.binomial(50, rate, 800).astype(float), among) for rate in (0.33, 0.30, 0.30))

    lift, none = relative_difference(one, other), relative_difference(same, other)

    assert lift.low < 0.10 < lift.high
    assert lift.low > 0.05
    assert none.low < 0 < none.high


def test_users_of_two_cities_are_different_users():
    table = pa.table(
        {
            "user_id": ["u1"], "label": [1], "is_visit": [True], "arm": ["A"], "half": [0], "day": [1], "poi_id": ["p"],
        }
    )  # fmt: skip
    shown = Shown({301: table, 302: table})

    assert len(shown.ctr(shown.arm == "A").events) == 2


def test_only_clicks_that_were_followed_become_visits():
    shown = pa.table(
        {
            "request_id": ["r1", "r1"], "user_id": ["u", "u"], "request_ts_ms": [1_000, 1_000],
            "tz_offset_min": [60, 60], "user_lon": [0.0, 0.0], "user_lat": [0.0, 0.0], "poi_id": ["p1", "p2"],
            "is_visit": [False, True], "poi_lon": [0.0, 0.1], "poi_lat": [0.0, 0.0], "category": ["a", "b"],
        }
    )  # fmt: skip

    (visit,) = visits_after_clicks(shown).to_pylist()

    assert visit["action_id"] == "v-r1-p2"
    assert visit["action_ts_ms"] == 1_000 + 30 * 60_000
    assert (visit["poi_id"], visit["category"], visit["action_type"]) == ("p2", "b", "navigate")


def test_clicks_are_those_of_the_other_tables(tmp_path):
    online = open_experiment(301, tmp_path).content["settings"]["city"]
    posttraining = open_city(102, tmp_path).content["settings"]["city"]

    assert online["clicks"] == posttraining["clicks"]
    assert online["attribute_tries"] == posttraining["attribute_tries"]
