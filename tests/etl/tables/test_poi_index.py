"""Ids follow the history of the catalogue, not the way in which its rows lie."""

import random
from collections import Counter
from datetime import date, timedelta

from conf.rules import rules_of
from conf.settings import CleanSettings
from etl.columns.poi_slots import state_before
from etl.jobs import index_pois
from etl.spark.session import compute_once
from etl.tables import poi_index
from tests.rows import DAY, frame_of, poi

NAN, INFINITY = float("nan"), float("inf")
BAD = {
    "poi_missing_id": {"poi_id": " "},
    "poi_text_too_long": {"name": "x" * 200},
    "poi_placeholder_id": {"poi_id": "None"},
    "poi_broken_id": {"poi_id": "p\x007"},
    "poi_missing_place": {"poi_lat": None},
    "poi_not_finite": {"poi_lon": NAN, "poi_lat": INFINITY},
    "poi_swapped": {"poi_lon": 52.36, "poi_lat": 104.89},
    "poi_out_of_range": {"poi_lon": 200.0, "poi_lat": 95.0},
    "poi_zero": {"poi_lon": 0.0, "poi_lat": 0.0},
    "poi_moved_too_far": {"poi_id": "moved", "poi_lon": 12.49, "poi_lat": 41.89},  # from Amsterdam to Rome
    "poi_duplicate_id": {"poi_id": "p1", "name": "Two"},
}
KEPT = {
    "poi_id_trimmed": {"poi_id": " poi_id_trimmed\n"},
    "poi_first_seen_ahead": {"first_seen_date": DAY + timedelta(days=1)},
    "poi_name_missing": {"name": " "},
    "poi_category_missing": {"category": None, "category_path": ""},
}
SLOT = {
    "index_version": 1,
    "block_id": 0,
    "inner_id": 0,
    "poi_lon": 4.89,
    "poi_lat": 52.36,
    "category_id": 1,
    "valid_from": date(2026, 1, 1),
    "indexed_day": date(2026, 1, 1),
    "name": "",
    "text": "",
    "changed_day": date(2026, 1, 1),
    "is_simulated": False,
}


def judge(spark, raw, slots=()):
    before = frame_of(spark, "poi_index", slots)
    return poi_index.judge_pois(raw, before, day=DAY, settings=CleanSettings(max_text_length=100))


def assign(spark, rows, *, partitions):
    """Runs the builders of a first night; returns (block, inner) by POI."""
    raw = frame_of(spark, "raw_pois", rows).repartition(partitions)
    empty = {name: frame_of(spark, name, []) for name in ("poi_index", "blocks")}
    judged = judge(spark, raw).where("status = 'accepted'")
    pois = index_pois.describe_pois(judged).selectExpr("*", "1 AS category_id")
    compared = poi_index.compare_with_index(pois, day=DAY, moved_km=0.2, cell_km=5.0)
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
    rows = [poi(name="A"), poi(name="B", is_closed=True), poi(name="C"), poi(name="B", is_closed=True)]

    judged = judge(spark, frame_of(spark, "raw_pois", rows)).collect()

    assert sorted((row["name"], row["status"], row["reason"]) for row in judged if row["reason"]) == [
        ("A", "refused", "poi_duplicate_id"),
        ("C", "refused", "poi_duplicate_id"),
    ]
    assert sorted(row["status"] for row in judged if row["name"] == "B") == ["accepted", "dropped"]


def test_every_refusing_rule_has_a_row_here_and_catches_it(spark):
    assert list(BAD) == [rule.code for rule in rules_of("raw_pois", "refuse")]
    rows = [poi(**{"poi_id": f"bad {code}", **fields}) for code, fields in BAD.items()]
    slots = [{**SLOT, "poi_id": "p1"}, {**SLOT, "poi_id": "moved"}, {**SLOT, "poi_id": "mirrored"}]
    rows += [poi(), poi(poi_id="mirrored", poi_lon=52.36, poi_lat=4.89)]

    judged = judge(spark, frame_of(spark, "raw_pois", rows), slots).collect()

    assert Counter(row["reason"] for row in judged) == Counter([*BAD, "poi_swapped", None])


def test_repairs_and_flags_are_noted_and_the_row_is_kept(spark):
    codes = [rule.code for severity in ("repair", "flag") for rule in rules_of("raw_pois", severity)]
    assert list(KEPT) == [code for code in codes if code != poi_index.SHARED_PLACE]  # it compares rows: below
    rows = [poi(**{"poi_id": code, **fields}) for code, fields in KEPT.items()]

    judged = judge(spark, frame_of(spark, "raw_pois", rows)).collect()

    assert {row["clean_poi_id"]: row["repairs"] for row in judged} == {code: [code] for code in KEPT}
    assert {row["status"] for row in judged} == {"accepted"}


def test_a_pile_of_pois_at_one_place_is_flagged_counting_those_that_the_index_holds_there(spark):
    slots = [{**SLOT, "poi_id": "old", "poi_lon": 4.5, "poi_lat": 52.0}]
    rows = [
        poi(poi_id="p1", poi_lon=4.5, poi_lat=52.0),
        poi(poi_id="p2", poi_lon=4.5, poi_lat=52.0),
        poi(poi_id="p3", poi_lon=4.6, poi_lat=52.0),  # two of them: a mall
        poi(poi_id="p4", poi_lon=4.6, poi_lat=52.0),
    ]
    before = frame_of(spark, "poi_index", slots)

    judged = poi_index.with_shared_places(
        judge(spark, frame_of(spark, "raw_pois", rows), slots), before, max_pois=2
    )

    flagged = {row["poi_id"]: row["num_at_place"] for row in judged.where("num_at_place > 0").collect()}
    assert flagged == {"p1": 3, "p2": 3}
    assert {
        row["poi_id"] for row in judged.where("array_contains(repairs, 'poi_shared_place')").collect()
    } == {
        "p1",
        "p2",
    }
    assert judged.count() == 4


def test_a_place_found_from_actions_may_move_farther_than_one_that_a_catalogue_tells(spark):
    slots = [{**SLOT, "poi_id": name, "poi_lon": 28.6, "poi_lat": 28.6} for name in ("told", "derived")]
    rows = [poi(poi_id="told"), poi(poi_id="derived", is_derived=True)]  # Amsterdam, 3,000 km away

    judged = judge(spark, frame_of(spark, "raw_pois", rows), slots).collect()

    assert {row["poi_id"]: (row["status"], row["reason"]) for row in judged} == {
        "told": ("refused", "poi_moved_too_far"),
        "derived": ("accepted", None),
    }


def test_a_rebuild_gives_the_same_ids_however_the_days_were_delivered(spark):
    rng = random.Random(5)
    names = [f"p{n}" for n in range(30)]
    at = {name: {"poi_lon": 4.8 + rng.random() / 9, "poi_lat": 52.3 + rng.random() / 9} for name in names}
    moved = {name: {**at[name], "poi_lon": at[name]["poi_lon"] + 0.08} for name in names[:5]}
    told = [
        [poi(poi_id=name, **at[name]) for name in names[:20]],
        [poi(poi_id=name, **place) for name, place in [*moved.items(), *list(at.items())[20:]]],
    ]

    found = [
        replay_days(spark, [rng.sample(rows, len(rows)) for rows in told], partitions)
        for partitions in (1, 3)
    ]

    assert found[0] == found[1]
    assert len(found[0]) == 35  # every move has its new slot
    assert len({(block, inner) for _, _, block, inner in found[0]}) == 35


def replay_days(spark, told, partitions):
    """Runs the builders over days, each on the index of the days before; returns every slot."""
    slots, blocks = frame_of(spark, "poi_index", []), frame_of(spark, "blocks", [])
    for number, rows in enumerate(told):
        day = DAY + timedelta(days=number)
        before = state_before(slots, day=day)
        raw = frame_of(spark, "raw_pois", rows).repartition(partitions)
        judged = poi_index.judge_pois(raw, before, day=day, settings=CleanSettings())
        pois = index_pois.describe_pois(judged.where("status = 'accepted'")).selectExpr(
            "*", "1 AS category_id"
        )
        compared = poi_index.compare_with_index(pois, day=day, moved_km=0.2, cell_km=5.0)
        first_id = blocks.count()
        new = poi_index.build_blocks(
            compared, blocks, day=day, index_version=1, first_id=first_id, cell_km=5.0
        )
        blocks = compute_once(blocks.unionByName(new))
        changed = poi_index.build_poi_index(compared, slots, blocks, day=day, index_version=1)
        kept = slots.join(changed.select("poi_id", "valid_from"), ["poi_id", "valid_from"], "left_anti")
        slots = compute_once(kept.select(*changed.columns).unionByName(changed))
    return sorted((r["poi_id"], r["valid_from"], r["block_id"], r["inner_id"]) for r in slots.collect())
