"""Ids follow the history of the catalogue, not the way in which its rows lie."""

import random
from datetime import date, timedelta

from etl import nightly, poi_index
from tests.rows import DAY, frame_of, poi


def assign(spark, rows, *, partitions):
    """Runs the builders of a first night; returns (block, inner) by POI."""
    raw = frame_of(spark, "raw_pois", rows).repartition(partitions)
    empty = {name: frame_of(spark, name, []) for name in ("poi_index", "blocks")}
    judged = poi_index.judge_pois(raw, max_text_length=100).where("status = 'accepted'")
    pois = nightly._describe_pois(judged).selectExpr("*", "1 AS category_id")
    compared = poi_index.compare_with_index(pois, empty["poi_index"], day=DAY, moved_km=0.2, cell_km=5.0)
    blocks = poi_index.build_blocks(
        compared, empty["blocks"], day=DAY, index_version=1, first_id=0, cell_km=5.0
    )
    slots = poi_index.build_poi_index(compared, empty["poi_index"], blocks, day=DAY, index_version=1)
    return {row["poi_id"]: (row["block_id"], row["inner_id"], row["valid_from"]) for row in slots.collect()}


def test_ids_do_not_depend_on_order_or_partitioning_and_are_dense(spark):
    rng = random.Random(3)
    rows = [
        poi(poi_id=f"p{n}", poi_lon=4.8 + rng.random() / 5, poi_lat=52.3 + rng.random() / 5)
        for n in range(60)
    ]

    found = assign(spark, rows, partitions=1)

    assert assign(spark, rng.sample(rows, 60), partitions=3) == found
    blocks = {block for block, _, _ in found.values()}
    assert blocks == set(range(len(blocks)))
    for block in blocks:
        inners = sorted(inner for other, inner, _ in found.values() if other == block)
        assert inners == list(range(len(inners)))


def test_first_sight_comes_before_the_curve_and_is_never_after_the_day(spark):
    rows = [
        poi(poi_id="a"),
        poi(poi_id="b", first_seen_date=date(2020, 1, 1)),
        poi(
            poi_id="c", first_seen_date=DAY + timedelta(days=400)
        ),  # a date from the future counts as the day
    ]

    found = assign(spark, rows, partitions=2)

    assert [found[name][1] for name in "bac"] == [0, 1, 2]
    assert [found[name][2] for name in "bac"] == [date(2020, 1, 1), DAY, DAY]


def test_of_several_rows_of_a_poi_one_counts_and_a_closing_wins(spark):
    rows = [poi(name="A"), poi(name="B", is_closed=True), poi(name="C"), poi(poi_id=None)]

    judged = poi_index.judge_pois(frame_of(spark, "raw_pois", rows), max_text_length=100).collect()

    assert {row["name"]: row["status"] for row in judged if row["poi_id"]} == {
        "A": "dropped",
        "B": "accepted",
        "C": "dropped",
    }
    assert [row["reason"] for row in judged if row["status"] == "refused"] == ["poi_missing_id"]
