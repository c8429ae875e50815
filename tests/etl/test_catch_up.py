"""Days in whatever order: one that is corrected or filled in late brings the days after it up, and no others."""

import argparse
from datetime import timedelta

from conf.cli import JobContext
from etl import catch_up, index_job
from etl.digests import digest_tables
from etl.storage import read_table, replace_day, table_version
from tests.rows import DAY, HOUR_MS, NOON_MS, action, frame_of, poi

DAYS = [DAY + timedelta(days=number) for number in range(3)]
DAY_MS = 24 * HOUR_MS
JOBS = {
    "poi_index": index_job.index_pois,
    "clean_actions": catch_up.clean_days,
    "action_sequences": catch_up.sequence_days,
}
TABLES = ("quarantined_rows", "cleaned_actions", "user_places", "action_sequences")
ACTIONS = [
    [action(), action(action_id="b1", user_id="bob")],
    # a1 arrives again: only who knows of the day before can tell.
    [action(day=DAYS[1]), action(day=DAYS[1], action_id="a2", action_ts_ms=NOON_MS + DAY_MS)],
    [action(day=DAYS[2], action_id="a3", action_ts_ms=NOON_MS + 2 * DAY_MS)],
]
POIS = [
    [poi()],
    [poi(day=DAYS[1], category="Zoo", name="Uno")],
    [poi(day=DAYS[2], category="Zoo", name="Uno", is_closed=True)],
]


def deliver(spark, settings, name, rows, day):
    replace_day(frame_of(spark, name, rows), name, settings.storage.root, day=day, run_id="r", job="test")


def run(spark, settings, job, day):
    return JOBS[job](JobContext(job, day, settings, "r", False, argparse.Namespace()), spark)


def digest_days(spark, settings):
    return [digest_tables(spark, settings.storage.root, TABLES, day=day) for day in DAYS]


def fill(spark, settings, order):
    for day, actions, pois in zip(DAYS, ACTIONS, POIS, strict=True):
        deliver(spark, settings, "raw_actions", actions, day)
        deliver(spark, settings, "raw_pois", pois, day)
        run(spark, settings, "poi_index", day)
    for job in ("clean_actions", "action_sequences"):
        for number in order:
            run(spark, settings, job, DAYS[number])


def test_a_backfill_out_of_order_gives_the_tables_of_a_run_in_order(spark, settings):
    elsewhere = settings.model_copy(
        update={"storage": settings.storage.model_copy(update={"root": f"{settings.storage.root}-b"})}
    )
    fill(spark, settings, (0, 1, 2))

    fill(spark, elsewhere, (2, 0, 1))

    assert digest_days(spark, elsewhere) == digest_days(spark, settings)
    cleaned = read_table(spark, elsewhere.storage.root, "cleaned_actions").orderBy("action_id").collect()
    # The POI was a cafe on the first day and a zoo on the others, though the index knew all of it by then.
    assert [(r["action_id"], r["category_id"]) for r in cleaned] == [
        ("a1", 1),
        ("a2", 2),
        ("a3", 2),
        ("b1", 1),
    ]


def test_a_correction_brings_the_days_after_it_up_and_a_second_run_commits_nothing(spark, settings):
    fill(spark, settings, (0, 1, 2))
    root = settings.storage.root
    deliver(spark, settings, "raw_actions", [action(action_id="b1", user_id="bob")], DAY)  # a1 is taken back

    cleaned = run(spark, settings, "clean_actions", DAY)
    sequences = run(spark, settings, "action_sequences", DAY)

    later = [str(day) for day in DAYS[1:]]
    assert (cleaned.notes["later_days"], sequences.notes["later_days"]) == (later, later)
    rows = read_table(spark, root, "action_sequences").where("user_id = 'ann'").orderBy("day").collect()
    assert [(r["day"], r["num_actions"]) for r in rows] == [
        (DAYS[1], 2),
        (DAYS[2], 3),
    ]  # a1 counts a day later
    versions = [table_version(spark, root, name) for name in TABLES]
    again = [run(spark, settings, name, DAY) for name in ("clean_actions", "action_sequences")]
    assert [table_version(spark, root, name) for name in TABLES] == versions
    assert not any("later_days" in summary.notes for summary in again)


def test_a_corrected_catalogue_takes_back_names_categories_and_closings(spark, settings):
    root = settings.storage.root
    for day, pois in ((DAY, POIS[0]), (DAYS[1], POIS[2]), (DAYS[1], [poi(category="Zoo", name="Uno")])):
        deliver(spark, settings, "raw_pois", [{**row, "day": day} for row in pois], day)
        run(spark, settings, "poi_index", day)
    (renamed,) = read_table(spark, root, "poi_index").collect()
    assert (renamed["name"], renamed["category_id"], renamed["valid_to"]) == ("Uno", 2, None)
    deliver(spark, settings, "raw_pois", [], DAYS[1])

    run(spark, settings, "poi_index", DAYS[1])

    (slot,) = read_table(spark, root, "poi_index").collect()
    assert (slot["name"], slot["category_id"], slot["changed_day"]) == ("One", 1, DAY)
    assert (slot["valid_to"], slot["past_details"]) == (None, None)
