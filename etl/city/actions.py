"""The days of the synthetic city's users: who goes where when, and what they do in the app.

An active day is a walk through the slots of a plan (workday, weekend or trip): each slot has its hour, the
place the user comes from, and the kinds of POI that it leads to. So time, place and category go together,
and days resemble each other.
"""

from dataclasses import dataclass
from datetime import date, timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.settings import CitySettings
from conf.units import MS_PER_DAY, MS_PER_HOUR, MS_PER_MINUTE
from etl.city.geography import (
    FIRST_LEAF,
    KIND_NAMES,
    LEAVES,
    draw_from,
    hood_center,
    lay_out,
    look_up,
    normal,
    place_of_poi,
    poi_id,
    poi_number,
    shift,
    uniform,
    whole,
)
from etl.city.users import FAVOURITES, choose_leaf, with_chosen_poi, with_open_poi

RETURN_SHARE = 0.62
"""Share of visits that go to one of the user's favourite POIs."""
ROUTINE_SHARE = 0.7
"""Share of those that go to the favourite that the user has for this slot."""
USER_PLACE_SHARE = 0.92
"""Share of actions with a delivered user place."""
MIN_ACTIONS_PER_DAY = 3


@dataclass(frozen=True)
class Slot:
    """A time of the day.

    Attributes:
        name: the user's activity.
        hour: mean local hour.
        weight: share among the slots of its plan.
        origin: where the user comes from, one of `ORIGINS`.
        kinds: kinds of POI that it leads to, with shares.
    """

    name: str
    hour: float
    weight: float
    origin: str
    kinds: dict[str, float]


PLANS = {
    "workday": (
        Slot("leaving", 7.7, 0.12, "home", {"transit": 0.6, "coffee": 0.4}),
        Slot("arriving", 8.8, 0.16, "home", {"work": 1.0}),
        Slot("lunch", 12.4, 0.20, "work", {"food": 0.75, "coffee": 0.15, "errand": 0.1}),
        Slot("way home", 17.7, 0.12, "work", {"transit": 0.5, "shop": 0.3, "errand": 0.2}),
        Slot("dinner", 19.2, 0.16, "home", {"food": 0.8, "bar": 0.2}),
        Slot("evening", 20.8, 0.10, "home", {"bar": 0.4, "fun": 0.6}),
        Slot("going home", 22.5, 0.14, "out", {"home": 1.0}),
    ),
    "weekend": (
        Slot("brunch", 10.3, 0.20, "home", {"coffee": 0.6, "food": 0.4}),
        Slot("shopping", 13.2, 0.20, "home", {"shop": 0.75, "errand": 0.25}),
        Slot("outing", 15.4, 0.20, "home", {"sight": 0.6, "fun": 0.4}),
        Slot("dinner", 19.3, 0.16, "home", {"food": 0.7, "bar": 0.3}),
        Slot("night out", 21.2, 0.12, "home", {"bar": 0.5, "fun": 0.5}),
        Slot("going home", 22.9, 0.12, "out", {"home": 1.0}),
    ),
    "trip": (
        Slot("morning", 8.4, 0.15, "hotel", {"coffee": 0.6, "transit": 0.4}),
        Slot("sights", 10.6, 0.25, "hotel", {"sight": 0.8, "fun": 0.2}),
        Slot("lunch", 12.9, 0.15, "center", {"food": 1.0}),
        Slot("stroll", 15.3, 0.15, "center", {"sight": 0.4, "shop": 0.6}),
        Slot("dinner", 19.4, 0.15, "hotel", {"food": 0.7, "bar": 0.3}),
        Slot("to the hotel", 22.3, 0.15, "center", {"hotel": 1.0}),
    ),
}
SLOTS = tuple(slot for plan in PLANS.values() for slot in plan)
FIRST_SLOT = {
    name: sum(len(PLANS[other]) for other in list(PLANS)[:number]) for number, name in enumerate(PLANS)
}
ORIGINS = ("home", "work", "hotel", "center", "out")
"""Where a user can come from; `out` is somewhere in the city, another place every time."""
_WAYS = {"navigate": 0.85, "search": 0.15}
_NEEDS = {"navigate": 0.4, "search": 0.3, "click": 0.2, "call": 0.1}
_MEALS = {"click": 0.5, "navigate": 0.2, "order": 0.18, "search": 0.08, "favorite": 0.04}
_PLEASURES = {"click": 0.55, "navigate": 0.25, "search": 0.12, "share": 0.08}
ACTION_SHARES = {
    **{kind: _WAYS for kind in ("home", "work", "transit")},
    **{kind: _NEEDS for kind in ("errand", "hotel")},
    **{kind: _MEALS for kind in ("coffee", "food", "bar")},
    **{kind: _PLEASURES for kind in ("fun", "shop", "sight")},
}
"""What users do in the app about a POI of each kind, with shares."""


def build_visits(users: DataFrame, *, city: CitySettings, after: date | None, until: date) -> DataFrame:
    """Builds the clean actions of the UTC days after `after` (null: from the first) up to `until`.

    Returns:
        Rows of `raw_actions` without `day`; the number of actions over the whole life is about `num_actions`.
    """
    days = _active_days(users, city).where(_may_fall_into(F.col("day_no"), city, after=after, until=until))
    slotted = with_slot(
        with_day(_walk(days, city), city=city), ids=("user_no", "active_no", "step"), city=city
    )
    in_time = slotted.where(_in_days(F.col("ts_ms"), city, after=after, until=until))
    placed = with_open_poi(_with_visited_poi(in_time, city), "local_day", city=city)
    ids = (F.col("user_no"), F.col("active_no"), F.col("step"))
    lon, lat = place_of_poi(F.col("local_day"), city=city)
    typed = placed.withColumns(
        {
            "_type_draw": uniform(city.seed, "action type", *ids),
            "_has_place": uniform(city.seed, "has place", *ids) < USER_PLACE_SHARE,
        }
    )
    return typed.select(
        F.format_string("a%07d-%04d-%02d", *ids).alias("action_id"),
        "user_id",
        poi_id(F.col("poi_no")).alias("poi_id"),
        draw_from([ACTION_SHARES[kind] for kind in KIND_NAMES], F.col("kind_no"), F.col("_type_draw")).alias(
            "action_type"
        ),
        F.col("ts_ms").alias("action_ts_ms"),
        "tz_offset_min",
        F.when(F.col("_has_place"), F.col("from_lon")).alias("user_lon"),
        F.when(F.col("_has_place"), F.col("from_lat")).alias("user_lat"),
        lon.alias("poi_lon"),
        lat.alias("poi_lat"),
        look_up(LEAVES, F.col("leaf_no")).alias("category"),
        F.lit(None).cast("string").alias("corrupt_record"),
        F.lit(True).alias("is_simulated"),
    )


def with_day(frame: DataFrame, *, city: CitySettings) -> DataFrame:
    """Adds the columns that depend on the day alone to rows of users and `day_no`.

    Columns: local_day, plan_no, stay_city (where the user is on the day), tz_offset_min, hotel_hood, and
    the places other than home and work that a day can start from (`hotel_` and `center_`, lon and lat).
    """
    on_trip = F.col("day_no").between(F.col("trip_start"), F.col("trip_end"))
    layout, stay = lay_out(city), F.col("stay_city")
    hotel_draw = uniform(city.seed, "hotel hood", F.col("user_no"))
    placed = (
        frame.withColumn("local_day", F.date_add(F.lit(city.first_day), F.col("day_no")))
        .withColumn("plan_no", F.when(on_trip, 2).when(F.weekday("local_day") >= 5, 1).otherwise(0))
        .withColumn(
            "stay_city", F.when(F.col("plan_no") == 2, F.col("trip_city")).otherwise(F.col("city_no"))
        )
        .withColumns(
            {
                "tz_offset_min": look_up(layout.tz_offsets_min, stay),
                "hotel_hood": whole(hotel_draw, look_up(layout.num_hoods, stay)),
                "center_lon": look_up([lon for lon, _ in layout.centers], stay),
                "center_lat": look_up([lat for _, lat in layout.centers], stay),
            }
        )
    )
    hotel_lon, hotel_lat = hood_center(stay, F.col("hotel_hood"), city=city)
    return placed.withColumns({"hotel_lon": hotel_lon, "hotel_lat": hotel_lat})


def with_slot(frame: DataFrame, *, ids: tuple[str, ...], city: CitySettings) -> DataFrame:
    """Adds slot_no, kind_no, anchor_hood, ts_ms (UTC) and from_lon, from_lat to the rows of `with_day`.

    Args:
        frame: users on days, with `progress` in [0, 1): small numbers give early slots.
        ids: columns that name the row in every draw.
        city: settings.
    """
    seed, keys, slot = city.seed, tuple(F.col(name) for name in ids), F.col("slot_no")
    plans = [
        {FIRST_SLOT[name] + n: slot.weight for n, slot in enumerate(plan)} for name, plan in PLANS.items()
    ]
    kinds = [{KIND_NAMES.index(kind): share for kind, share in slot.kinds.items()} for slot in SLOTS]
    hour = look_up([slot.hour for slot in SLOTS], slot) + F.lit(0.45) * normal(seed, "hour", *keys)
    local_ms = F.unix_date("local_day").cast("bigint") * MS_PER_DAY + (hour * MS_PER_HOUR).cast("bigint")
    origin_no = F.col("_origin_no")
    origin = {
        axis: F.element_at(F.array(*(F.col(f"{origin}_{axis}") for origin in ORIGINS)), origin_no + 1)
        for axis in ("lon", "lat")
    }
    hoods = look_up(lay_out(city).num_hoods, F.col("stay_city"))
    out_lon, out_lat = hood_center(F.col("stay_city"), F.col("_out_hood"), city=city)
    # The phone's place: near where the user comes from, never the place that the action is about.
    away_km = [F.lit(0.25) * normal(seed, f"from {way}", *keys) for way in ("east", "north")]
    near = shift(origin["lon"], origin["lat"], *away_km, at_lat=F.col("center_lat"))
    at_work = origin_no == ORIGINS.index("work")
    away_hood = F.when(F.col("plan_no") == 2, F.col("hotel_hood")).when(at_work, F.col("work_hood"))
    return (
        frame.withColumns(
            {
                "slot_no": draw_from(plans, F.col("plan_no"), F.col("progress")),
                "_kind_draw": uniform(seed, "kind", *keys),
                "_out_hood": whole(uniform(seed, "out", *keys), hoods),
            }
        )
        .withColumns(
            {
                "kind_no": draw_from(kinds, slot, F.col("_kind_draw")),
                "_origin_no": look_up([ORIGINS.index(slot.origin) for slot in SLOTS], slot),
                "out_lon": out_lon,
                "out_lat": out_lat,
                "ts_ms": local_ms - F.col("tz_offset_min") * MS_PER_MINUTE,
            }
        )
        .withColumn("anchor_hood", away_hood.otherwise(F.col("home_hood")))
        .withColumns({"from_lon": near[0], "from_lat": near[1]})
        .drop("_kind_draw", "_origin_no", "_out_hood", "out_lon", "out_lat")
    )


def _active_days(users: DataFrame, city: CitySettings) -> DataFrame:
    """Spreads a user's actions evenly over the days since joining: `day_no`, `num_steps` per active day."""
    seed, user = city.seed, F.col("user_no")
    expected = F.lit(city.num_actions / city.num_users) * F.col("activity")
    num_actions = F.floor(expected + uniform(seed, "actions", user)).cast("int")
    life = F.lit(city.num_days) - F.col("joined")
    per_day = F.greatest(F.lit(MIN_ACTIONS_PER_DAY), F.ceil(num_actions / life).cast("int"))
    return (
        users.withColumn("num_actions", num_actions)
        .where("num_actions > 0")
        .withColumn("per_day", per_day)
        .withColumn("num_active", F.ceil(F.col("num_actions") / F.col("per_day")).cast("int"))
        .withColumn("active_no", F.explode(F.sequence(F.lit(0), F.col("num_active") - 1)))
        .withColumn(
            "_at", (F.col("active_no") + uniform(seed, "day", user, F.col("active_no"))) / F.col("num_active")
        )
        .withColumn("day_no", F.col("joined") + whole(F.col("_at"), life))
        .withColumn(
            "num_steps",
            F.least(F.col("per_day"), F.col("num_actions") - F.col("active_no") * F.col("per_day")),
        )
        .drop("_at")
    )


def _walk(days: DataFrame, city: CitySettings) -> DataFrame:
    """Adds one row per step of each day, with `progress` through its plan in [0, 1)."""
    steps = days.withColumn("step", F.explode(F.sequence(F.lit(0), F.col("num_steps") - 1)))
    jitter = uniform(city.seed, "progress", F.col("user_no"), F.col("active_no"), F.col("step"))
    return steps.withColumn("progress", (F.col("step") + jitter) / F.col("num_steps"))


def _with_visited_poi(steps: DataFrame, city: CitySettings) -> DataFrame:
    """Adds the number of the POI that a step leads to."""
    seed, user, ids = city.seed, F.col("user_no"), (F.col("user_no"), F.col("active_no"), F.col("step"))
    kind_no, chosen = F.col("kind_no"), F.col("_chosen_no")
    routine = whole(uniform(seed, "routine", user, F.col("slot_no")), FAVOURITES)
    other = whole(uniform(seed, "favourite", *ids), FAVOURITES)
    favourite = F.when(uniform(seed, "is routine", *ids) < ROUTINE_SHARE, routine).otherwise(other)
    returns = (uniform(seed, "returns", *ids) < RETURN_SHARE) & (F.col("plan_no") != 2)
    leaved = steps.withColumn("_leaf_draw", uniform(seed, "leaf", *ids)).withColumn(
        "_leaf_no", choose_leaf(kind_no, F.col("_leaf_draw"), city=city)
    )
    visited = with_chosen_poi(
        leaved,
        "_chosen_no",
        leaf="_leaf_no",
        favourite=F.when(returns, favourite),
        looks_around=F.xxhash64(*ids),
        city=city,
    )
    hotel = poi_number(
        F.lit(FIRST_LEAF[KIND_NAMES.index("hotel")]), F.col("stay_city"), F.col("hotel_hood"), city=city
    )
    number = (
        F.when(kind_no == KIND_NAMES.index("home"), F.col("home_poi_no"))
        .when(kind_no == KIND_NAMES.index("work"), F.col("work_poi_no"))
        .when(kind_no == KIND_NAMES.index("hotel"), hotel)
        .otherwise(chosen)
    )
    return visited.withColumn("poi_no", number).drop("_leaf_draw", "_leaf_no", "_chosen_no")


def _may_fall_into(day_no: Column, city: CitySettings, *, after: date | None, until: date) -> Column:
    """Tells whether a local day can hold UTC times of the requested days; time zones get a day of slack."""
    condition = day_no <= (until - city.first_day).days + 1
    return condition if after is None else condition & (day_no >= (after - city.first_day).days)


def _in_days(ts_ms: Column, city: CitySettings, *, after: date | None, until: date) -> Column:
    epoch = date(1970, 1, 1)
    first = city.first_day - timedelta(days=1) if after is None else after + timedelta(days=1)
    return (ts_ms >= F.lit((first - epoch).days * MS_PER_DAY)) & (
        ts_ms < F.lit(((until - epoch).days + 1) * MS_PER_DAY)
    )
