"""Table `cleaned_actions`: accepted actions with their slot of the index; refused ones are quarantined.

In: `raw_actions` of the day, the slots of `poi_index`, actions accepted on the days before. Out: the judged
rows of the day (accepted, refused, dropped). The accepted rows, the quarantined rows and the counts derive from
them: rows in = accepted + quarantined + exact duplicates dropped. Run: python -m etl clean_actions --day D.
This file holds the conditions that compare rows; conditions on one row are in `etl/columns/action_rules.py`.
"""

from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from conf.rules import Rule, rules_of
from conf.settings import CleanSettings
from conf.tokens import action_type_id
from conf.units import MS_PER_HOUR
from etl.columns import action_rules, spacetime
from etl.columns.action_rules import CONTENT_COLUMNS
from etl.columns.refusal import first_reason, found_codes, with_detail

SLOT_FIELDS = ("index_version", "block_id", "inner_id", "poi_lon", "poi_lat", "category_id")
SAME_ACTION = ("user_id", "action_ts_ms", "poi_id", "action_type_id", "user_lon", "user_lat", "tz_offset_min")
"""A redelivered action is an exact duplicate if these agree with the row accepted before."""
COMPARING_RULES = ("duplicate_id", "repeated_action", "too_many_actions")
"""Rules that compare rows; they are tried on the rows that break none of the others."""
JUMP_KM = 50.0
"""Places may be off by so much (cell towers, IP addresses) before two of them prove a speed."""


def judge_actions(
    raw: DataFrame, slots: DataFrame, known: DataFrame, *, day: date, settings: CleanSettings
) -> DataFrame:
    """Judges every delivered row; no row is lost or doubled.

    Args:
        raw: `raw_actions` of the day; further columns pass through.
        slots: `poi_index` with all slots, live and ended.
        known: `cleaned_actions` of other days that share an id, or user and time, with a delivered row; further rows
            do no harm.
        day: the job's day.
        settings: bounds of accepted values.

    Returns:
        The raw columns plus `status` (accepted, refused, dropped), `reason`, `detail`, and for accepted rows
        the columns of the contract but `is_interest`; raw values that were repaired are under `clean_*` names.
    """
    placed = _with_slot(action_rules.with_clean_ids(raw), slots)
    reason = first_reason(_row_rules(), action_rules.refusals(day=day, settings=settings))
    checked = action_rules.with_clean_values(placed.withColumn("reason", reason))
    compared = _with_known_repeats(_with_duplicates(checked, known), known)
    of_users = _with_user_order(compared, settings=settings)
    codes = found_codes(
        {
            **action_rules.repairs(settings=settings),
            **action_rules.flags(),
            "impossible_speed": F.col("is_too_fast"),
        }
    )
    return with_detail(of_users.withColumn("repairs", codes), rules_of("raw_actions", "refuse"))


def delivered_ids(raw: DataFrame) -> DataFrame:
    """Returns the distinct final `action_id` of the delivered rows: the ids to look for in the past."""
    return action_rules.with_clean_ids(raw).select(action_rules.settled_id().alias("action_id")).distinct()


def delivered_moments(raw: DataFrame) -> DataFrame:
    """Returns the distinct `user_id` and `action_ts_ms` of the delivered rows, also to look for in the past."""
    clean = action_rules.with_clean_ids(raw)
    return clean.select(F.col("clean_user_id").alias("user_id"), "action_ts_ms").distinct()


def keep_accepted(judged: DataFrame) -> DataFrame:
    """Keeps the accepted rows, in the shape of `cleaned_actions` without `day` and `is_interest`."""
    return judged.where("status = 'accepted'").select(
        F.col("clean_action_id").alias("action_id"),
        F.col("clean_user_id").alias("user_id"),
        "action_ts_ms",
        F.col("event_day").alias("event_date"),
        F.col("clean_tz_offset_min").alias("tz_offset_min"),
        F.col("clean_user_lon").alias("user_lon"),
        F.col("clean_user_lat").alias("user_lat"),
        F.col("clean_poi_id").alias("poi_id"),
        *(F.col(f"slot.{name}").alias(name) for name in SLOT_FIELDS),
        "action_type_id",
        "repairs",
        "is_simulated",
    )


def with_interest(
    accepted: DataFrame, categories: DataFrame, places: DataFrame, *, at_place_km: float
) -> DataFrame:
    """Adds `is_interest`: the category shows interest, and the POI is not the user's home or work (paper 3.1, t_i).

    Args:
        accepted: result of `keep_accepted`.
        categories: `categories` with `category_id` and `is_interest`; an unknown category is of interest.
        places: `user_places` of the day.
        at_place_km: a POI nearer than this to home or work is home or work.
    """
    by_category = categories.select("category_id", F.col("is_interest").alias("by_category"))
    user_places = places.select("user_id", "home_lon", "home_lat", "work_lon", "work_lat")
    poi = (F.col("poi_lon"), F.col("poi_lat"))
    # Without a known home or work the distance is null. `is_interest` would then be null too, but takes no null.
    is_own = [
        F.coalesce(
            spacetime.distance_km(*poi, F.col(f"{name}_lon"), F.col(f"{name}_lat")) <= at_place_km,
            F.lit(False),
        )
        for name in ("home", "work")
    ]
    is_interest = F.coalesce("by_category", F.lit(True)) & ~is_own[0] & ~is_own[1]
    joined = accepted.join(F.broadcast(by_category), "category_id", "left").join(
        user_places, "user_id", "left"
    )
    return joined.select(*accepted.columns, is_interest.alias("is_interest"))


def _row_rules() -> tuple[Rule, ...]:
    """Rules that look at one row."""
    return tuple(rule for rule in rules_of("raw_actions", "refuse") if rule.code not in COMPARING_RULES)


def _with_slot(rows: DataFrame, slots: DataFrame) -> DataFrame:
    """Adds `slot`: the POI's slot live on the day of the action, else the nearest in time, else null."""
    fields = F.struct("valid_from", "valid_to", *SLOT_FIELDS)
    # Collected before the join: an action stays one row, however many slots its POI has had.
    by_poi = slots.groupBy(F.col("poi_id").alias("clean_poi_id")).agg(F.collect_list(fields).alias("slots"))
    when = F.col("event_day")

    def with_gap(slot: Column) -> Column:
        before = F.date_diff(slot["valid_from"], when)
        after = F.coalesce(F.date_diff(when, slot["valid_to"]) + 1, F.lit(0))
        return F.struct(F.greatest(before, after, F.lit(0)).alias("gap"), slot.alias("slot"))

    nearest = F.array_min(F.transform("slots", with_gap))["slot"]
    # Nearly every POI has one slot: no need to compare.
    slot = F.when(F.size("slots") == 1, F.get("slots", F.lit(0))).otherwise(nearest)
    return rows.join(by_poi, "clean_poi_id", "left").withColumn("slot", slot).drop("slots")


def _with_duplicates(checked: DataFrame, known: DataFrame) -> DataFrame:
    """Adds `status`, and the reason of rows whose id belongs to another action.

    The first row of an id by time, then content, stands for it, unless an earlier day has accepted one. Rows
    equal to it are dropped, other rows are refused.
    """
    is_good = F.col("reason").isNull()
    same_id = Window.partitionBy("clean_action_id", is_good).orderBy("action_ts_ms", "content_hash")
    # A list: an id that is reused after months has been accepted more than once.
    same = F.struct(*(F.col(name).alias(name) for name in SAME_ACTION))
    kept = known.groupBy(F.col("action_id").alias("clean_action_id")).agg(F.collect_set(same).alias("kept"))
    # Joined before the window: the partitioning of the join by id serves the window too, but not vice versa.
    ranked = (
        checked.withColumn("content_hash", F.xxhash64(*CONTENT_COLUMNS))
        .join(kept, "clean_action_id", "left")
        .withColumns(
            {"first_hash": F.first("content_hash").over(same_id), "nth": F.row_number().over(same_id)}
        )
    )
    equals_kept = F.exists("kept", _equals)
    was_kept = F.col("kept").isNotNull()
    is_repeat = F.when(was_kept, equals_kept).otherwise(
        (F.col("nth") > 1) & (F.col("content_hash") == F.col("first_hash"))
    )
    is_conflict = F.when(was_kept, ~equals_kept).otherwise(F.col("content_hash") != F.col("first_hash"))
    status = F.when(~is_good | is_conflict, "refused").when(is_repeat, "dropped").otherwise("accepted")
    return ranked.withColumns(
        {
            "status": status,
            "reason": F.when(is_good & is_conflict, F.lit("duplicate_id")).otherwise(F.col("reason")),
        }
    ).drop("content_hash", "first_hash", "nth", "kept")


def _equals(kept: Column) -> Column:
    """Tells whether a row has the same content as an accepted action."""
    same = F.lit(True)
    for name in SAME_ACTION:
        mine = name if name in ("action_ts_ms", "action_type_id") else f"clean_{name}"
        same &= F.col(mine).eqNullSafe(kept[name])
    return same


def _with_known_repeats(judged: DataFrame, known: DataFrame) -> DataFrame:
    """Refuses actions sent twice: another delivery holds the same action of the user under another id."""
    key = {"clean_user_id": "user_id", "action_ts_ms": "action_ts_ms", "clean_poi_id": "poi_id"}
    key |= {"action_type_id": "action_type_id"}
    others = known.select(*(F.col(name).alias(f"known_{name}") for name in (*key.values(), "action_id")))
    # One match is enough; among several ids the smallest is tried, then the largest.
    ids = [F.min("known_action_id").alias("first_id"), F.max("known_action_id").alias("last_id")]
    others = others.groupBy(*(f"known_{name}" for name in key.values())).agg(*ids)
    same = F.lit(True)
    for mine, theirs in key.items():
        same &= F.col(mine) == F.col(f"known_{theirs}")
    joined = judged.join(others, same, "left")
    is_other = (F.col("first_id") != F.col("clean_action_id")) | (
        F.col("last_id") != F.col("clean_action_id")
    )
    is_repeated = (F.col("status") == "accepted") & F.coalesce(is_other, F.lit(False))
    return joined.withColumns(
        {
            "status": F.when(is_repeated, "refused").otherwise(F.col("status")),
            "reason": F.when(is_repeated, "repeated_action").otherwise(F.col("reason")),
        }
    ).select(*judged.columns)


def _with_user_order(judged: DataFrame, *, settings: CleanSettings) -> DataFrame:
    """Adds `is_too_fast`, and refuses actions that a user sent twice or that exceed the daily cap.

    The accepted rows of a user are read in the order of time, then POI, type and id. This order is total, and rows
    with the same content are neighbours. Both windows share one shuffle and one sort and stream over the rows, so a
    hot user costs a sort that may spill, but no memory. The other rows are spread by their id: a broken export
    without users would otherwise be one group.
    """
    is_accepted = F.col("status") == "accepted"
    order = ("action_ts_ms", "clean_poi_id", "action_type_id", "clean_action_id")
    # The owner comes first: rows are sorted by the first eight bytes of the first column, then compared in full.
    of_user = Window.partitionBy("owner", "is_candidate").orderBy("event_day", *order)
    of_day = (
        Window.partitionBy("owner", "is_candidate", "event_day")
        .orderBy(*order)
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    acting = F.col("action_type_id") == action_type_id("checkin")  # a check-in happens at the POI
    at = [
        F.when(acting, F.col(f"slot.poi_{axis}")).otherwise(F.col(f"clean_user_{axis}"))
        for axis in ("lon", "lat")
    ]
    last = F.lag(F.struct(*order[:3], at[0].alias("lon"), at[1].alias("lat"))).over(of_user)
    is_repeated = F.lit(True)
    for name in order[:3]:
        is_repeated &= F.col(name) == F.col(f"last.{name}")
    # As doubles: refused rows pass here too, and the difference of two absurd times can overflow a bigint.
    times = [F.col(name).cast("double") for name in ("action_ts_ms", "last.action_ts_ms")]
    hours = (times[0] - times[1]) / MS_PER_HOUR
    km = spacetime.distance_km(F.col("last.lon"), F.col("last.lat"), *at)
    ordered = (
        judged.withColumns(
            {
                "is_candidate": is_accepted,
                "owner": F.when(is_accepted, F.col("clean_user_id")).otherwise(F.col("clean_action_id")),
            }
        )
        .withColumn("last", last)
        .withColumns(
            {
                "is_repeated": F.coalesce(is_repeated, F.lit(False)),
                "is_too_fast": km > F.lit(JUMP_KM) + settings.max_speed_kmh * hours,
            }
        )
        .withColumn("nth_of_day", F.count_if(~F.col("is_repeated")).over(of_day))
    )
    surplus = F.when(F.col("is_repeated"), "repeated_action").when(
        F.col("nth_of_day") > settings.max_actions_per_day, "too_many_actions"
    )
    is_surplus = is_accepted & surplus.isNotNull()
    return ordered.withColumns(
        {
            "status": F.when(is_surplus, "refused").otherwise(F.col("status")),
            "reason": F.when(is_surplus, surplus).otherwise(F.col("reason")),
        }
    ).drop("is_candidate", "owner", "last", "is_repeated", "nth_of_day")
