"""Figures of places that are new to the user, on rows that can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data.ranks import Ranks
from models.evaluation.new_places import describe_new_places, fit_p_new, rank_baselines_among_new
from models.protocols.run import build_finder
from models.protocols.splits import PROTOCOLS, build_rows
from models.protocols.tables import build_evaluation_rows, build_tables
from models.serving.inference import ShiftedRanks
from models.serving.new_places import LogitMap
from tests.models.protocols.tiny_checkins import RECIPE, write_checkins


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = write_checkins(tmp_path_factory.mktemp("checkins"))
    tables = build_tables(build_rows(PROTOCOLS["calgary"], folder), folder)
    recipe = RECIPE.model_copy(
        update={
            "decoder": RECIPE.decoder.model_copy(
                update={"crowd": RECIPE.decoder.crowd.model_copy(update={"enabled": True})}
            )
        }
    )
    built = replace(build_evaluation_rows(tables, "test"), finder=build_finder(tables, recipe))
    requests, targets = built.requests, built.requests.targets.copy()
    for number in range(
        0, len(requests), 2
    ):  # every second target becomes a POI that the user has not been to
        past = requests.visits.pois[requests.starts[number] : requests.stops[number]]
        targets[number] = np.setdiff1d(np.arange(len(built.catalogue)), past)[number % 3]
    return replace(built, requests=replace(requests, targets=targets))


def ranks(values) -> Ranks:
    values = np.asarray(values, np.int64)
    return Ranks(values - 1, np.ones_like(values))


def test_the_baselines_rank_among_the_pois_that_the_user_has_not_been_to(rows):
    """The rank of a target by nearness x popularity equals a count by hand over all other POIs."""
    found = rank_baselines_among_new(rows)

    assert set(found) == {"near_popular", "near_crowd"}
    requests, catalogue = rows.requests, rows.catalogue
    for number in range(0, len(requests), 7):
        past = set(requests.visits.pois[requests.starts[number] : requests.stops[number]].tolist())
        radians = np.radians([rows.user_lons[number], rows.user_lats[number]])
        lons, lats = np.radians(catalogue.lons), np.radians(catalogue.lats)
        chord = (
            np.sin((lats - radians[1]) / 2) ** 2
            + np.cos(lats) * np.cos(radians[1]) * np.sin((lons - radians[0]) / 2) ** 2
        )
        km = 2 * 6371.0088 * np.arcsin(np.sqrt(chord))
        score = -1.2 * np.log(0.1 + km) + 0.7 * np.log(rows.counts.popularity + 0.3)
        target = int(requests.targets[number])
        others = [poi for poi in range(len(catalogue)) if poi not in past and poi != target]
        higher = sum(score[poi] > score[target] + 1e-9 for poi in others)
        assert found["near_popular"].num_higher[number] == higher


def test_figures_are_of_the_rows_that_they_name(rows):
    is_new = ~rows.requests.returns()
    number = len(is_new)
    plain, shifted = np.where(is_new, 20, 1), np.where(is_new, 5, 11)
    made = ShiftedRanks(
        {0.0: ranks(plain), 1.0: ranks(shifted)}, ranks(np.full(number, 3)), is_new.astype(float)
    )

    found = describe_new_places(rows, [made])

    share = is_new.mean()
    assert share > 0.4
    assert found["share_new"] == pytest.approx(share)
    assert found["curve"] == [
        {"new_logit": 0.0, "all": pytest.approx(1 - share), "new": 0.0, "returns": 1.0},
        {"new_logit": 1.0, "all": pytest.approx(share), "new": 1.0, "returns": 0.0},
    ]
    assert found["among_new"]["hr_at_10"]["value"] == 1.0
    assert found["among_new"]["rows"] == is_new.sum()
    assert found["p_new_auc"] == 1.0
    assert found["calibration"]["expected_error"] == 0.0


def test_the_calibration_finds_the_map_that_was_planted():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=40_000)
    is_new = rng.random(40_000) < 1 / (1 + np.exp(-(0.5 * log_odds - 1.0)))

    found = fit_p_new(1 / (1 + np.exp(-log_odds)), is_new)

    assert found.scale == pytest.approx(0.5, abs=0.03)
    assert found.offset == pytest.approx(-1.0, abs=0.03)
    half = found.apply(torch.tensor([0.5, 0.0, 1.0]))
    assert half[0].item() == pytest.approx(1 / (1 + np.exp(1.0)), abs=0.01)
    assert 0 < half[1] < half[2] < 1


@pytest.mark.parametrize("kind", [False, True])
def test_rows_of_one_kind_leave_p_new_as_it_is(kind):
    assert fit_p_new(np.array([0.2, 0.4]), np.full(2, kind)) == LogitMap()


def test_p_new_that_orders_rows_the_wrong_way_round_becomes_the_mean():
    found = fit_p_new(np.array([0.9, 0.8, 0.2, 0.1]), np.array([False, False, True, False]))

    assert found.apply(torch.tensor([0.9, 0.1])).tolist() == pytest.approx([0.25, 0.25])
