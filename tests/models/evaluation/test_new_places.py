"""Figures of places that are new to the user, on rows that can be checked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from models.data.ranks import Ranks
from models.evaluation.new_places import describe_new_places, rank_baselines_among_new
from models.protocols.run import build_finder
from models.protocols.splits import PROTOCOLS, build_rows
from models.protocols.tables import build_evaluation_rows, build_tables
from models.serving.inference import ShiftedRanks
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
