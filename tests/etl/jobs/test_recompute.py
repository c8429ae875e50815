"""Days in whatever order: one that is corrected or filled in late brings the days after it up, and no others."""

import argparse
from datetime import timedelta
from pathlib import Path

from delta.tables import DeltaTable

from conf.cli import JobContext
from etl.delta import commits
from etl.delta.storage import read_table, replace_day, table_version
from etl.jobs import index_pois, recompute
from tests.rows import DAY, HOUR_MS, NOON_MS, action, cleaned, frame_of, poi

NEXT = DAY + timedelta(days=1)
LAST = DAY + timedelta(days=2)
ACTIONS = {
    DAY: [action()],
    # a1 arrives again: only who knows of the day before can tell.
    NEXT: [action(day=NEXT), action(day=NEXT, action_id="a2", action_ts_ms=NOON_MS + 24 * HOUR_MS)],
}
POIS = {DAY: [poi()], NEXT: [poi(day=NEXT, category="Zoo", name="Uno")]}


def write(spark, settings, name, rows, day, **metadata):
    frame = frame_of(spark, name, rows)
    return replace_day(frame, name, settings.storage.root, day=day, run_id="r", job="test", metadata=metadata)


def test_a_day_is_behind_if_a_day_that_it_is_made_from_was_committed_since(spark, settings):
    root, name = settings.storage.root, "cleaned_actions"
    first = write(spark, settings, name, [cleaned()], DAY, read={name: commits.NEVER})
    write(spark, settings, name, [cleaned(day=LAST, action_id="a3")], LAST, read={name: first})
    before = commits.read_commits(spark, root, name, since=NEXT)
    assert before.days == [LAST]
    assert before.find_stale([DAY, LAST]) == []

    write(spark, settings, name, [cleaned(day=NEXT, action_id="a2")], NEXT, read={name: first})

    after = commits.read_commits(spark, root, name, since=NEXT)
    assert after.find_stale([DAY, NEXT, LAST]) == [LAST]  # it has not seen the day between


def test_days_whose_commits_the_log_has_dropped_are_found_by_their_rows(spark, settings):
    root, name = settings.storage.root, "cleaned_actions"
    write(spark, settings, name, [cleaned(day=LAST, action_id="a3")], LAST, read={name: commits.NEVER})
    write(spark, settings, name, [cleaned()], DAY, read={name: commits.NEVER})
    log = Path(root, name, "_delta_log")
    DeltaTable.forPath(
        spark, f"{root}/{name}"
    )._jdt.deltaLog().checkpoint()  # what Delta itself does in the end
    for version in (0, 1):
        (log / f"{version:020}.json").unlink()

    seen = commits.read_commits(spark, root, name, since=NEXT)

    assert (seen.days, seen.of_day(LAST)) == ([LAST], None)


def test_a_day_filled_in_late_gives_the_tables_of_a_run_in_order(spark, made):
    root = made.storage.root

    def run(job, day):
        return job(JobContext("test", day, made, "r", False, argparse.Namespace()), spark)

    for day in (DAY, NEXT):
        write(spark, made, "raw_actions", ACTIONS[day], day)
        write(spark, made, "raw_pois", POIS[day], day)
        run(index_pois.index_pois, day)
    run(recompute.clean_days, NEXT)
    run(recompute.sequence_days, NEXT)

    cleaned_late = run(recompute.clean_days, DAY)
    sequenced_late = run(recompute.sequence_days, DAY)

    assert cleaned_late.notes["later_days"] == sequenced_late.notes["later_days"] == [str(NEXT)]
    rows = read_table(spark, root, "cleaned_actions").orderBy("action_id").collect()
    # a1 was taken back from the next day. Its POI was a cafe on its day, though the index knew the zoo by then.
    assert [(r["action_id"], r["day"], r["category_id"]) for r in rows] == [("a1", DAY, 1), ("a2", NEXT, 2)]
    histories = read_table(spark, root, "action_sequences").orderBy("day").collect()
    assert [(r["day"], r["num_actions"]) for r in histories] == [(DAY, 1), (NEXT, 2)]
    versions = [table_version(spark, root, name) for name in ("cleaned_actions", "user_places")]
    assert (
        "later_days" not in run(recompute.clean_days, DAY).notes
    )  # nothing has changed: nothing is committed
    assert [table_version(spark, root, name) for name in ("cleaned_actions", "user_places")] == versions


def test_a_night_that_failed_after_its_delivery_is_made_up_for_by_the_next_one(spark, made):
    root = made.storage.root

    def run(job, day):
        return job(JobContext("test", day, made, "r", False, argparse.Namespace()), spark)

    # The night of DAY delivered an action on p1, and was killed before it delivered POIs; those come with the next one.
    write(spark, made, "raw_actions", ACTIONS[DAY], DAY)
    write(spark, made, "raw_actions", ACTIONS[NEXT][1:], NEXT)
    write(spark, made, "raw_pois", [poi(day=NEXT)], NEXT)
    run(index_pois.index_pois, NEXT)

    cleaned_next, sequenced_next = run(recompute.clean_days, NEXT), run(recompute.sequence_days, NEXT)
    again = run(recompute.clean_days, NEXT)

    rows = read_table(spark, root, "cleaned_actions").orderBy("action_id").collect()
    assert [(row["action_id"], row["day"]) for row in rows] == [("a1", DAY), ("a2", NEXT)]
    histories = read_table(spark, root, "action_sequences").orderBy("day").collect()
    assert [(row["day"], row["num_actions"]) for row in histories] == [(DAY, 1), (NEXT, 2)]
    assert cleaned_next.notes["undone_days"] == sequenced_next.notes["undone_days"] == [str(DAY)]
    assert "undone_days" not in again.notes
