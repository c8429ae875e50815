"""What the crowd did, read from tables: the same as counted from the rows, of one day, of slots that exist."""

from datetime import date

import numpy as np
import pytest
from deltalake import write_deltalake

from conf.errors import MissingInputError
from models.copying.crowd_batches import collate_asked
from models.copying.crowd_statistics import count_others
from models.copying.crowd_tables import CROWD_TABLES, CrowdAt, last_crowd, open_finder, read_crowd
from models.data.dataset import TableAt
from models.serving.bundle import ModelBundle
from models.serving.inference import generate_candidates, rank_targets_by_model
from tests.models.planted_city import DAY, NUM_USERS, other_rows, to_arrow, user_history


def crowd_of(root, day: str = DAY.isoformat(), index_version: int = 1) -> CrowdAt:
    return CrowdAt(*(TableAt(str(root / name)) for name in CROWD_TABLES), day, index_version)


def write(root, **changed) -> None:
    for name, rows in (other_rows() | changed).items():
        write_deltalake(str(root / name), to_arrow(name, rows), partition_by=["day"], mode="append")


def test_the_tables_give_the_statistics_of_the_rows_that_they_were_made_of(city_root, catalogue):
    rows = [
        (f"u{user}", block, inner, time)
        for user in sorted(range(NUM_USERS), key=str)
        for history in [user_history(user)]
        for block, inner, time in zip(
            *(history[name][:40] for name in ("block_ids", "inner_ids", "timestamps_ms")), strict=True
        )
    ]
    users, blocks, inners, times = (np.array(values) for values in zip(*rows, strict=True))
    pois = catalogue.find_rows(blocks, inners)
    hour = np.full(len(rows), 60)

    found = read_crowd(crowd_of(city_root), catalogue)

    expected = count_others(users, pois, times, hour, num_pois=len(catalogue))
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


def test_rows_of_slots_that_are_not_in_the_catalogue_are_left_out_and_told(tmp_path, catalogue, caplog):
    rows = other_rows()
    stray = [row | {"block_id": 77} for row in rows["training_visits"][:3]]
    write(tmp_path, training_visits=rows["training_visits"] + stray)

    found = read_crowd(crowd_of(tmp_path), catalogue)

    assert found.visit_counts.sum() == NUM_USERS * 40
    assert "training_visits: 3 of" in caplog.text


def test_the_latest_day_that_is_not_later_than_asked_is_read(tmp_path):
    for day in (date(2026, 2, 1), date(2026, 2, 8), date(2026, 2, 15)):
        rows = {name: [row | {"day": day} for row in own] for name, own in other_rows().items()}
        write(tmp_path, **rows)
    visits, transitions = (TableAt(str(tmp_path / name)) for name in CROWD_TABLES)

    assert last_crowd(visits, transitions, date(2026, 2, 14), 1).day == "2026-02-08"
    assert last_crowd(visits, transitions, date(2026, 2, 15), 1).day == "2026-02-15"
    with pytest.raises(MissingInputError, match="training_others --day 2026-01-31"):
        last_crowd(visits, transitions, date(2026, 1, 31), 1)
    with pytest.raises(MissingInputError, match="index version 2"):
        last_crowd(visits, transitions, date(2026, 2, 14), 2)


@pytest.mark.parametrize("asked", [{"day": "2026-01-01"}, {"index_version": 2}])
def test_a_day_or_version_without_rows_says_what_to_run(city_root, catalogue, asked):
    with pytest.raises(MissingInputError, match="training_others"):
        read_crowd(crowd_of(city_root, **asked), catalogue)


ON = {"enabled": True, "num_followers": 2, "num_near": 3}


def test_a_model_that_copies_refuses_to_do_without_the_statistics(make_decoder, requests_batch, catalogue):
    model, targets = make_decoder(crowd=ON), np.zeros(requests_batch.num_rows, np.int64)

    with pytest.raises(MissingInputError, match="training_visits"):
        rank_targets_by_model(model, requests_batch, targets, catalogue)


def test_a_model_that_copies_nothing_looks_nothing_up(make_decoder, requests_batch):
    assert collate_asked(requests_batch, None, make_decoder().config).crowd is None


def test_what_the_user_did_cannot_reach_the_user_through_the_statistics(
    tmp_path, catalogue, make_decoder, requests_batch
):
    """Drop the rows of the user who asks: what is looked up for that user stays the same."""
    rows, asking = other_rows(), requests_batch.slice(3, 1)
    user = asking["user_id"][0].as_py()
    without = {name: [row for row in own if row["user_id"] != user] for name, own in rows.items()}
    write(tmp_path / "all")
    write(tmp_path / "without", **without)
    config = make_decoder(crowd=ON).config

    slots = [
        collate_asked(asking, open_finder(crowd_of(tmp_path / name), catalogue), config).crowd
        for name in ("all", "without")
    ]

    assert slots[0].is_real_BQC.any()
    for name in ("blocks_BQC", "inners_BQC", "count_BQC", "share_BQC", "popularity_BQC", "is_real_BQC"):
        np.testing.assert_array_equal(*(getattr(own, name) for own in slots), err_msg=name)


def holding(model, folder) -> ModelBundle:
    """A bundle of one stage, held in memory."""
    return ModelBundle(folder, model.config.layout, ("pretrain",), 8, True, {}, {("pretrain", "cpu"): model})


def test_generation_and_ranking_agree_on_a_model_that_copies(
    city_root, catalogue, make_decoder, requests_batch, tmp_path
):
    """The POI that is generated third is ranked third, whichever batch it is in."""
    finder = open_finder(crowd_of(city_root), catalogue)
    bundle = holding(make_decoder(crowd=ON), tmp_path)

    lists = generate_candidates(bundle, requests_batch, catalogue, top_k=3, finder=finder)

    third = np.array([made.pois[2] for made in lists])
    model = bundle.model("pretrain")
    ranks = rank_targets_by_model(model, requests_batch, third, catalogue, micro_batch=3, finder=finder)
    assert (ranks.num_higher == 2).all()


def test_slots_of_others_move_the_prediction(city_root, catalogue, make_decoder, requests_batch, tmp_path):
    nobody = {name: rows[:1] for name, rows in other_rows().items()}
    write(tmp_path, **nobody)
    bundle = holding(make_decoder(crowd=ON), tmp_path)

    found, alone = (
        generate_candidates(
            bundle, requests_batch, catalogue, top_k=3, finder=open_finder(crowd_of(root), catalogue)
        )
        for root in (city_root, tmp_path)
    )

    assert any(
        not np.allclose(own.log_probs, other.log_probs) for own, other in zip(found, alone, strict=True)
    )
