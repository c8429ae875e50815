"""Statistics of the crowd: counted by hand, own rows taken out, lists against a brute-force twin."""

import math
from dataclasses import replace

import numpy as np
import pytest

from models.copying.crowd_candidates import Asked, SlotFinder
from models.copying.crowd_statistics import count_others
from models.copying.crowd_visits import HOUR_KERNEL, CrowdVisits
from models.data.catalogue import Catalogue
from models.data.geo import distance_km
from models.protocols.place_index import build_index
from tests.models.planted_city import some_pois

HOUR_MS = 3_600_000
NUM_POIS = 30


def by_hand():
    """u1: 0 -> 1 -> 2 -> 0 an hour apart; u2: 0 -> 1, and 25 hours later 2."""
    users = np.array(["u1"] * 4 + ["u2"] * 3)
    pois = np.array([0, 1, 2, 0, 0, 1, 2])
    hours = np.array([8, 9, 10, 11, 8, 9, 34])
    return count_others(users, pois, hours * HOUR_MS, np.zeros(7, np.int64), num_pois=3)


def random_training(seed: int = 0, num_rows: int = 300):
    rng = np.random.default_rng(seed)
    users = np.sort(np.array([f"u{n}" for n in rng.integers(0, 8, num_rows)]))
    hours = np.arange(num_rows) * 3 + rng.integers(0, 3, num_rows)
    return users, rng.integers(-1, NUM_POIS, num_rows), hours * HOUR_MS, np.zeros(num_rows, np.int64)


def random_requests(num: int = 12, seed: int = 1) -> Asked:
    rng = np.random.default_rng(seed)
    past = [rng.integers(-1, NUM_POIS, n) for n in rng.integers(0, 9, num)]
    places = some_pois(NUM_POIS)
    at = rng.integers(0, NUM_POIS, num)
    lons = places["longitude"].to_numpy()[at]
    lons[0] = np.nan  # nobody knows where this one is
    return Asked(
        users=rng.integers(-1, 8, num),
        current=np.array([own[-1] if len(own) else -1 for own in past]),
        lons=lons,
        lats=np.where(np.isnan(lons), np.nan, places["latitude"].to_numpy()[at]),
        hours=rng.integers(0, 24, num),
        past_requests=np.repeat(np.arange(num), [len(own) for own in past]),
        past_pois=np.concatenate(past).astype(np.int64),
    )


@pytest.fixture(scope="module")
def places() -> Catalogue:
    return build_index(some_pois(NUM_POIS)).catalogue


SIZES = {"num_followers": 4, "num_near": 6}


def finder_of(training, places) -> SlotFinder:
    return SlotFinder(count_others(*training, num_pois=NUM_POIS), places)


def test_transitions_count_three_steps_by_hand():
    found = by_hand()

    rows = zip(
        found.user_ids[found.transition_users],
        found.transition_pois,
        found.transition_next_pois,
        found.transition_weights,
        strict=True,
    )
    assert sorted((str(u), int(a), int(b), float(w)) for u, a, b, w in rows) == [
        ("u1", 0, 1, 1.0),
        ("u1", 0, 2, 0.5),  # over one step between
        ("u1", 1, 0, 0.5),
        ("u1", 1, 2, 1.0),
        ("u1", 2, 0, 1.0),  # 0 -> 0 over three steps is no transition
        ("u2", 0, 1, 1.0),  # 25 hours later is too late
    ]


def test_visits_are_counted_by_user_poi_and_local_hour():
    found = by_hand()
    at = {
        (str(u), int(p), int(h)): c
        for u, p, h, c in zip(
            found.user_ids[found.visit_users], found.visit_pois, found.visit_hours, found.visit_counts,
            strict=True,
        )
    }  # fmt: skip

    assert at == {
        ("u1", 0, 8): 1, ("u1", 1, 9): 1, ("u1", 2, 10): 1, ("u1", 0, 11): 1,
        ("u2", 0, 8): 1, ("u2", 1, 9): 1, ("u2", 2, 10): 1,
    }  # fmt: skip


def test_popularity_at_an_hour_is_a_sum_over_the_visits_of_others():
    visits = CrowdVisits(by_hand())

    at_hour, at_all = visits.popularity(np.array([0]), np.array([[0, 1, -1]]), np.array([9]))

    # u2's visits alone: POI 0 an hour earlier, POI 1 at that very hour; the third slot is empty.
    np.testing.assert_allclose(at_hour, [[0.6, 1.0, 0.0]])
    np.testing.assert_allclose(at_all, [[1.0, 1.0, 0.0]])


@pytest.mark.parametrize("seed", range(3))
def test_popularity_among_others_is_exactly_that_without_the_user(seed):
    """To the last bit: a rest of the own visits, however small, would tell a POI from one that nobody visits."""
    users, pois, times, offsets = training = random_training(seed)
    everybody = CrowdVisits(count_others(*training, num_pois=NUM_POIS))
    names = count_others(*training, num_pois=NUM_POIS).user_ids
    all_pois = np.arange(NUM_POIS)[None]

    for number, name in enumerate(names):
        rest = users != name
        alone = CrowdVisits(
            count_others(users[rest], pois[rest], times[rest], offsets[rest], num_pois=NUM_POIS)
        )
        for hour in (np.array([9]), np.array([23])):
            me, nobody = np.array([number]), np.array([-1])
            for own, other in zip(
                everybody.popularity(me, all_pois, hour),
                alone.popularity(nobody, all_pois, hour),
                strict=True,
            ):
                np.testing.assert_array_equal(own, other)
            np.testing.assert_array_equal(
                everybody.popularity_at(me, all_pois, hour), alone.popularity_at(nobody, all_pois, hour)
            )


def test_lists_do_not_depend_on_how_many_places_are_remembered(places, monkeypatch):
    asked = random_requests()
    expected = finder_of(random_training(), places).find(asked, **SIZES)
    monkeypatch.setattr("models.copying.crowd_candidates.MAX_PLACES", 1)

    found = finder_of(random_training(), places).find(asked, **SIZES)

    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_lists_equal_those_of_statistics_counted_without_the_user(seed, places):
    """The oracle: drop the user's rows, count again, ask as somebody unknown."""
    users, pois, times, offsets = training = random_training(seed)
    asked = random_requests(seed=seed + 10)
    names = count_others(*training, num_pois=NUM_POIS).user_ids

    found = finder_of(training, places).find(asked, **SIZES)

    for row, user in enumerate(asked.users):
        others = users != (names[user] if user >= 0 else "nobody")
        own_past = asked.past_requests == row
        stranger = Asked(
            np.array([-1]), asked.current[[row]], asked.lons[[row]], asked.lats[[row]], asked.hours[[row]],
            np.zeros(own_past.sum(), np.int64), asked.past_pois[own_past],
        )  # fmt: skip
        oracle = finder_of((users[others], pois[others], times[others], offsets[others]), places)
        expected = oracle.find(stranger, **SIZES)
        followers, near = found.pois[row][:4], found.pois[row][4:]
        assert followers.tolist() == expected.pois[0][:4].tolist()
        assert found.count[row].tolist() == expected.count[0].tolist()
        assert found.share[row].tolist() == expected.share[0].tolist()
        if user < 0:  # weights of POIs and means of popularity are made of all users' rows
            assert near.tolist() == expected.pois[0][4:].tolist()


def test_own_training_rows_change_no_list(places):
    """A leak would show here: the user's own rows, even those after the request, are replaced."""
    users, pois, times, offsets = random_training()
    asked = random_requests()
    own = users == "u3"
    asked = replace(asked, users=np.full(len(asked.users), 3))
    swapped = pois.copy()
    swapped[own] = np.random.default_rng(5).permutation(pois[own])  # same POIs, other order and hours

    first = finder_of((users, pois, times, offsets), places).find(asked, **SIZES)
    second = finder_of((users, swapped, times, offsets), places).find(asked, **SIZES)

    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, getattr(second, name), err_msg=name)


def test_near_pois_are_those_of_a_plain_loop(places):
    training = random_training()
    users, pois, times, _ = training
    asked = random_requests()
    names = count_others(*training, num_pois=NUM_POIS).user_ids
    finder = finder_of(training, places)

    found = finder.find(asked, num_followers=0, num_near=6).pois

    hours = times // HOUR_MS % 24
    for row in range(len(asked.users)):
        past = set(asked.past_pois[asked.past_requests == row].tolist()) - {-1}
        if math.isnan(asked.lons[row]):
            assert (found[row] == -1).all()
            continue
        who = names[asked.users[row]] if asked.users[row] >= 0 else "nobody"
        fit = _similar(users, pois, past, who) + 0.1 * _popular(users, pois, hours, asked.hours[row], who)
        km = distance_km(asked.lons[row], asked.lats[row], places.lons, places.lats)
        scores = fit * (0.1 + km) ** -1.2
        for poi in past | {int(asked.current[row])}:
            scores[poi] = 0.0
        expected = np.argsort(-scores, kind="stable")[:6]
        np.testing.assert_allclose(scores[found[row]], scores[expected], rtol=0.002)  # weights are rounded


def _similar(users, pois, past, who) -> np.ndarray:
    """Visits by users who share POIs with the past, one user after the other."""
    distinct = {user: set(pois[users == user].tolist()) - {-1} for user in np.unique(users)}
    weight = {
        poi: math.log(len(distinct) / max(1, sum(poi in own for own in distinct.values())))
        for poi in range(NUM_POIS)
    }
    scores = np.zeros(NUM_POIS)
    for user, own in distinct.items():
        if user != who and own:
            scores[list(own)] += sum(weight[poi] for poi in own & past) / math.sqrt(len(own))
    return scores / scores.mean() if scores.any() else scores


def _popular(users, pois, hours, hour, who) -> np.ndarray:
    scores, everybody = np.zeros(NUM_POIS), np.zeros((NUM_POIS, 24))
    for user, poi, at in zip(users, pois, hours, strict=True):
        if poi >= 0:
            for h in range(24):
                apart = min((h - at) % 24, (at - h) % 24)
                everybody[poi, h] += HOUR_KERNEL.get(int(apart), 1) / 10
            if user != who:
                apart = min((hour - at) % 24, (at - hour) % 24)
                scores[poi] += HOUR_KERNEL.get(int(apart), 1) / 10
    return scores / everybody.mean()


def test_nothing_known_gives_empty_lists(places):
    nothing = count_others(
        np.zeros(0, dtype=str), *(np.zeros(0, np.int64) for _ in range(3)), num_pois=NUM_POIS
    )

    strangers = replace(random_requests(), users=np.full(12, -1))

    found = SlotFinder(nothing, places).find(strangers, **SIZES)

    assert (found.pois == -1).all()
