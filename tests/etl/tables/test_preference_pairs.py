"""Pairs of chosen and rejected POIs."""

from conf.tables import HISTORY_NAMES
from etl.spark.session import local_frame
from etl.tables.preference_pairs import build_meal_time_pairs, build_preference_pairs
from tests.rows import NOON_MS, frame_of


def sample(request: str, labels: list[int]):
    pois = range(1, len(labels) + 1)
    row = {
        "day": None,
        "split": "train",
        "request_id": request,
        "user_id": "ann",
        "request_ts_ms": NOON_MS,
        "tz_offset_min": 60,
        "index_version": 1,
        "action_type_id": 0,
        "labels": labels,
        "seq_len": 0,
        "candidate_poi_ids": [f"p{n}" for n in pois],
        "candidate_block_ids": [10 * n for n in pois],
        "candidate_inner_ids": list(pois),
        "candidate_lons": [4.0 for _ in pois],
        "candidate_lats": [52.0 for _ in pois],
        "candidate_category_ids": [1 for _ in pois],
        "candidate_positions": list(pois),
        "is_simulated": True,
    }
    history = {name: [] for name in (*HISTORY_NAMES, "profile_ids")}
    return {**history, **row}


def pairs_of(spark, *samples, max_rejected=8):
    schema = frame_of(spark, "ranking_samples", []).drop("day").schema
    rows = [tuple(row.get(name) for name in schema.names) for row in samples]
    return build_preference_pairs(local_frame(spark, rows, schema), max_rejected=max_rejected).collect()


def test_each_click_is_paired_with_what_was_shown_and_not_clicked(spark):
    pairs = pairs_of(spark, sample("r1", [0, 1, 0, 1]))

    found = {
        row["pair_id"]: (row["chosen_block_id"], row["rejected_poi_ids"], row["rejected_inner_ids"])
        for row in pairs
    }
    assert found == {"r1/p2": (20, ["p1", "p3"], [1, 3]), "r1/p4": (40, ["p1", "p3"], [1, 3])}
    assert {row["rule"] for row in pairs} == {"clicks"}


def test_the_first_positions_are_rejected_where_there_are_too_many(spark):
    pairs = pairs_of(spark, sample("r1", [0, 0, 1, 0]), max_rejected=2)

    assert [row["rejected_poi_ids"] for row in pairs] == [["p1", "p2"]]


def test_requests_with_only_clicks_or_none_make_no_pair(spark):
    assert pairs_of(spark, sample("r1", [1, 1]), sample("r2", [0, 0])) == []


def meal_pairs_of(spark, *samples):
    categories = local_frame(
        spark,
        [(7, "Food > Cafe"), (8, "Food court supplies > Shop")],
        "category_id int, category_path string",
    )
    schema = frame_of(spark, "ranking_samples", []).drop("day").schema
    rows = [tuple(row.get(name) for name in schema.names) for row in samples]
    pairs = build_meal_time_pairs(local_frame(spark, rows, schema), categories, max_rejected=8).collect()
    assert len({row["pair_id"] for row in pairs}) == len(pairs)
    return {(row["pair_id"], *row["rejected_poi_ids"], row["rule"]) for row in pairs}


def test_at_meal_times_places_to_eat_are_chosen_over_the_others_whatever_was_clicked(spark):
    noon = sample("r1", [0, 1, 0]) | {"candidate_category_ids": [7, 8, 7]}  # 13 h local
    without_meal = noon | {"request_id": "r3", "candidate_category_ids": [8, 8, 8]}

    assert meal_pairs_of(spark, noon, without_meal) == {
        ("r1/p1/meal_time", "p2", "meal_time"),
        ("r1/p3/meal_time", "p2", "meal_time"),
    }


def test_at_other_times_one_of_each_kind_is_chosen_both_ways_so_that_nothing_is_preferred(spark):
    afternoon = sample("r2", [0, 1, 0]) | {
        "candidate_category_ids": [8, 7, 7],
        "request_ts_ms": NOON_MS + 3 * 3_600_000,
    }
    without_meal = afternoon | {"request_id": "r3", "candidate_category_ids": [8, 8, 8]}

    assert meal_pairs_of(spark, afternoon, without_meal) == {
        ("r2/p1/meal_time", "p2", "meal_time"),
        ("r2/p2/meal_time", "p1", "meal_time"),
    }
