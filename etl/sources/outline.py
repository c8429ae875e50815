"""An outline of unseen data: their content, and a plan for a first training and release on them.

Run: python -m etl outline --set source.path=PATH [--source NAME] [--out FILE]. The job reads any file source and
writes no table. It guesses the source from the shape of the path. Out: the plan of the first two days and of the
held-out days, in the notes of the summary and, with `--out`, as a layer of settings.
"""

import importlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError
from conf.files import write_whole
from conf.settings import Settings
from etl.columns.spacetime import event_date, is_on_earth
from etl.sources.checkins import FileSource
from etl.sources.shapes import guess_source

LOGGER = logging.getLogger(__name__)
READERS = {
    "checkins": ("etl.sources.checkins", "CheckinFolder"),
    "getnext": ("etl.sources.public_files", "GetnextFile"),
    "tsmc": ("etl.sources.public_files", "TsmcFile"),
    "actions": ("etl.sources.paper_actions", "PaperActions"),
}
"""Source -> module and class of its reader."""
HELD_OUT_SHARE, MOST_HELD_OUT_DAYS = 0.1, 21
"""Share of the days that validation and test take each, and the most days that they take."""
MOST_HELD_OUT_ROWS = 5_000
"""Rows that each takes at most, unless one day has more: each is ranked among all POIs, and more say little more."""
LEAST_TRAINING_SHARE = 0.5
EARLY_SHARE = 0.01
"""Rows before the day until which so many have come do not count for the span: a wrong clock makes years of it."""


@dataclass(frozen=True)
class Plan:
    """How the first two deliveries and the first training fit the data.

    Attributes:
        day: day of the first delivery, training and release.
        next_day: day of the second delivery and release; None = the data have one day only.
        val_days: `samples.val_days`.
        test_days: `samples.test_days`.
    """

    day: date
    next_day: date | None
    val_days: int
    test_days: int


def run_outline(context: JobContext, spark: SparkSession) -> JobSummary:
    """Describes the data at `source.path` and derives the plan.

    Raises:
        MissingInputError: there is nothing at the path, no reader knows its shape, or no row has a plausible time.
        SchemaError: as the reader of the source.
    """
    options, settings = context.options, context.settings
    source = options.source or guess_source(settings.source.path)
    reader = open_source(source)
    actions, listed = reader.read_actions(spark, settings), reader.read_catalogue(spark, settings)
    catalogue = None if listed is None else listed.pois
    facts = describe_rows(actions, catalogue)
    dated = keep_plausible(actions, first=settings.clean.earliest_day, last=datetime.now(UTC).date())
    if catalogue is not None:
        dated = dated.join(catalogue.select("poi_id").distinct(), "poi_id", "left_semi")
    rows_by_day = count_days(dated)
    if not rows_by_day:
        raise MissingInputError(
            what="any row of a user at a POI at a plausible time",
            where=f"{settings.source.path} ({facts['rows']} rows of source {source})",
            needed_by="A first release",
            remedy=f"Times have to lie between clean.earliest_day={settings.clean.earliest_day} and today; look at "
            "ids, coordinates and the unit of the times.",
        )
    facts |= describe_users(dated)
    plan = derive_plan(rows_by_day, day=options.day, next_day=options.next_day)
    skipped = list_skipped(facts, plan)
    notes = {"source": source, **facts, **describe_days(rows_by_day), **asdict(plan), "skipped": skipped}
    notes["warnings"] = reader.warnings
    if options.out and not context.dry_run:
        write_layer(options.out, settings, plan)
    for line in describe_outline(notes):
        LOGGER.info("%s", line)
    return JobSummary(rows_in=int(str(facts["rows"])), notes=notes)


def describe_rows(actions: DataFrame, catalogue: DataFrame | None) -> dict[str, object]:
    """Counts rows, POIs listed, and those with a category or a time zone."""
    has_category = F.trim("category") != ""
    counted = actions.agg(
        F.count("*").alias("rows"),
        F.count_if(has_category).alias("rows_with_category"),
        F.count("tz_offset_min").alias("rows_with_time_zone"),
    ).first()
    assert counted is not None
    facts: dict[str, object] = counted.asDict()
    if catalogue is not None:
        named = F.coalesce(has_category, F.trim("category_path") != "")
        listed = catalogue.agg(
            F.count("*").alias("pois_listed"), F.count_if(named).alias("pois_listed_with_category")
        ).first()
        assert listed is not None
        facts |= listed.asDict()
    return facts


def keep_plausible(actions: DataFrame, *, first: date, last: date) -> DataFrame:
    """Keeps rows of a user at a POI on Earth on a day from `first` to `last`, and adds their `event_date`."""
    dated = actions.where(F.col("action_ts_ms").between(*_epoch_ms(first, last)))
    is_placed = F.coalesce(is_on_earth(F.col("poi_lon"), F.col("poi_lat")), F.lit(True))
    is_named = F.col("user_id").isNotNull() & F.col("poi_id").isNotNull()
    return dated.where(is_named & is_placed).withColumn("event_date", event_date(F.col("action_ts_ms")))


def count_days(dated: DataFrame) -> dict[date, int]:
    """Returns the rows of each day with data, in order; one number a day is collected."""
    counted = dated.groupBy("event_date").agg(F.count("*").alias("rows")).orderBy("event_date").collect()
    return {row["event_date"]: row["rows"] for row in counted}


def describe_users(dated: DataFrame) -> dict[str, object]:
    """Counts plausible rows, users, users seen at two times or more, and POIs."""
    users = dated.groupBy("user_id").agg(
        F.count_distinct("action_ts_ms").alias("times"), F.count("*").alias("rows")
    )
    counted = users.agg(
        F.coalesce(F.sum("rows"), F.lit(0)).alias("rows_dated"),
        F.count("*").alias("users"),
        F.count_if(F.col("times") > 1).alias("users_seen_twice"),
    ).first()
    pois = dated.agg(F.count_distinct("poi_id").alias("pois")).first()
    assert counted is not None
    assert pois is not None
    return {**counted.asDict(), **pois.asDict()}


def derive_plan(
    rows_by_day: Mapping[date, int], *, day: date | None = None, next_day: date | None = None
) -> Plan:
    """Derives the days of the first two deliveries and the held-out days of the first training.

    The second delivery is the last day with data, the first one the day with data before it. Validation and test take a
    tenth of the days each, 21 at most, and less where they would take some thousand rows or more than half of all.

    Args:
        rows_by_day: plausible rows by UTC day; at least one day.
        day: the user's choice, in place of the derived day.
        next_day: the same for the second delivery.
    """
    days = sorted(rows_by_day)
    if day is None:
        before = [known for known in days if next_day is None or known < next_day]
        day = before[-1] if next_day is not None and before else days[-2] if len(days) > 1 else days[0]
    if next_day is None:
        later = [known for known in days if known > day]
        next_day = later[-1] if later else None
    known = {known: rows for known, rows in rows_by_day.items() if known <= day} or {day: 0}
    held_out = _held_out_days(known, day)
    return Plan(day, next_day, val_days=held_out, test_days=held_out if held_out else 0)


def list_skipped(facts: Mapping[str, object], plan: Plan) -> dict[str, str]:
    """Returns the steps that will be skipped with these data, and why."""
    skipped = {}
    if plan.next_day is None:
        skipped["second release"] = "the data have one day only"
    if not plan.test_days:
        skipped["validation and test"] = (
            "too few days to hold any out: the model is trained for its fixed steps and not judged"
        )
    if not facts["users_seen_twice"]:
        skipped["ranking SFT, embedding SFT, DPO"] = (
            "nobody is seen at two times, and a request is made of what came before"
        )
    if not (facts["rows_with_category"] or facts.get("pois_listed_with_category")):
        skipped["categories"] = "no row has one: every action counts as interest"
    if not facts["rows_with_time_zone"]:
        skipped["time zones"] = "no row has one: local time is that of the longitude"
    return skipped


def describe_days(rows_by_day: Mapping[date, int]) -> dict[str, object]:
    """Returns first and last day with data, and the number of such days."""
    return {"first_day": min(rows_by_day), "last_day": max(rows_by_day), "days_with_data": len(rows_by_day)}


def write_layer(path: Path, settings: Settings, plan: Plan) -> None:
    """Writes the settings that follow from the plan."""
    layer = {
        "source": {"path": settings.source.path},
        "samples": {"val_days": plan.val_days, "test_days": plan.test_days},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(layer, allow_unicode=True, sort_keys=False))


def describe_outline(notes: Mapping[str, object]) -> list[str]:
    """Returns the outline in sentences, one a line."""
    skipped = notes["skipped"]
    assert isinstance(skipped, Mapping)
    split = f"samples.val_days={notes['val_days']}, samples.test_days={notes['test_days']}"
    return [
        f"source {notes['source']}: {notes['rows']} rows, {notes['rows_dated']} of a user at a POI at a plausible time",
        f"{notes['users']} users, {notes['users_seen_twice']} of them seen at two times or more; {notes['pois']} POIs",
        f"{notes['first_day']} to {notes['last_day']} UTC, {notes['days_with_data']} days with data",
        f"plan: DAY={notes['day']}, NEXT_DAY={notes['next_day'] or 'none'}, {split}",
        *(f"not done: {name}: {why}" for name, why in skipped.items()),
    ]


def open_source(source: str) -> FileSource:
    """Returns the reader of a source."""
    module, name = READERS[source]
    reader = getattr(importlib.import_module(module), name)()
    assert isinstance(reader, FileSource)
    return reader


def _held_out_days(rows_by_day: Mapping[date, int], day: date) -> int:
    """Returns the number of days for validation, which is also that for test."""
    total, early, first = sum(rows_by_day.values()), 0, day
    for first in sorted(rows_by_day):
        early += rows_by_day[first]
        if early > EARLY_SHARE * total:
            break
    num_days = (day - first).days + 1
    held_out = min(max(round(HELD_OUT_SHARE * num_days), 1), MOST_HELD_OUT_DAYS)
    while held_out:
        # Validation and test together.
        rows = total - _rows_before(rows_by_day, day - timedelta(days=2 * held_out - 1))
        leaves_enough = total - rows >= LEAST_TRAINING_SHARE * total
        if leaves_enough and (held_out == 1 or rows <= 2 * MOST_HELD_OUT_ROWS):
            break
        held_out -= 1
    return held_out


def _rows_before(rows_by_day: Mapping[date, int], day: date) -> int:
    return sum(rows for known, rows in rows_by_day.items() if known < day)


def _epoch_ms(first: date, last: date) -> tuple[int, int]:
    """Returns the first and the last millisecond of a stretch of days, UTC."""
    starts = [
        int(datetime.combine(day, time(), UTC).timestamp() * 1000)
        for day in (first, last + timedelta(days=1))
    ]
    return starts[0], starts[1] - 1
