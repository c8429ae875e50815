"""The users of the synthetic city: activity, home, work, interests, favourite POIs and a trip."""

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import CitySettings
from etl.city.geography import (
    ATTRIBUTES,
    FIRST_LEAF,
    LOOKS,
    NUM_LEAVES,
    attribute_of_poi,
    lay_out,
    look_of_poi,
    look_up,
    place_of_poi,
    poi_number,
    uniform,
    whole,
    with_poi,
    zipf_rank,
)

ACTIVITY_EXPONENT, ACTIVITY_CAP = 1.6, 25.0
"""Activity follows a Pareto law, cut off: a few users make a large part of the actions."""
GOLDEN = 0.6180339887498949
TASTE_SHARES = (0.52, 0.23)
"""Share of a user's visits of one kind that goes to the first and the second favourite leaf; the rest goes
anywhere.
"""
FAVOURITES = 3
"""Favourite POIs per user and leaf."""
NEAR_HOME, NEAR_WORK, NEAR_ANCHOR = 0.5, 0.8, 0.6
"""Favourites lie near home below the first, near work below the second; other visits lie nearby below the
third.
"""
AGE_GROUPS = ("18-24", "25-34", "35-49", "50-64", "65+")


def build_users(spark: SparkSession, city: CitySettings) -> DataFrame:
    """Builds one row per user.

    Columns: user_no, user_id, activity (mean 1), joined (days after the first), city_no, home and work
    (`_hood`, `_lon`, `_lat`, `_poi_no`), trip_city, trip_start and trip_end (days; start after the end = no
    trip), likes_no; with `city.pictures` likes_look_no.
    """
    seed, user, layout = city.seed, F.col("user_no"), lay_out(city)
    is_late = uniform(seed, "is late", user) < 0.1
    at_home = uniform(seed, "city", user) < 0.85
    hoods = F.col("_hoods")
    users = (
        spark.range(city.num_users)
        .select(F.col("id").alias("user_no"), F.format_string("u%07d", "id").alias("user_id"))
        .withColumns(
            {
                "activity": _activity(user, city),
                "joined": F.when(
                    is_late, whole(uniform(seed, "joined", user), max(1, city.num_days // 2))
                ).otherwise(0),
                "city_no": F.when(at_home, 0).otherwise(
                    whole(uniform(seed, "which city", user), layout.num_cities)
                ),
                "likes_no": whole(uniform(seed, "likes", user), len(ATTRIBUTES)),
                **(
                    {"likes_look_no": whole(uniform(seed, "likes look", user), len(LOOKS))}
                    if city.pictures
                    else {}
                ),
            }
        )
        .withColumn("_hoods", look_up(layout.num_hoods, F.col("city_no")))
        .withColumns(
            {
                "home_hood": whole(uniform(seed, "home hood", user), hoods),
                # Work is where the city is dense: neighbourhoods of low number, the centre first.
                "work_hood": zipf_rank(uniform(seed, "work hood", user), hoods),
            }
        )
    )
    return _with_trip(_with_building(_with_building(users, "home", city), "work", city), city).drop("_hoods")


def build_profiles(users: DataFrame, *, city: CitySettings) -> DataFrame:
    """Builds the attributes of the users: user_id, attribute, value, known_date (from when the value holds).

    The age group changes when a user grows out of it, which happens to a few.
    """
    seed, user = city.seed, F.col("user_no")
    numbered = (
        users.withColumn("_group", whole(uniform(seed, "age group", user), len(AGE_GROUPS) - 1))
        .withColumn("_joined", F.date_add(F.lit(city.first_day), F.col("joined")))
        .withColumn("_birthday", F.date_add("_joined", whole(uniform(seed, "birthday", user), 365) + 1))
    )
    grown = F.when(uniform(seed, "grows", user) < 0.1, look_up(AGE_GROUPS, F.col("_group") + 1))
    attributes = (
        ("age_group", look_up(AGE_GROUPS, F.col("_group")), "_joined"),
        ("age_group", grown, "_birthday"),
        ("home_city", F.concat(F.lit("city-"), F.col("city_no").cast("string")), "_joined"),
    )
    values = F.array(
        *(
            F.struct(F.lit(name).alias("attribute"), value.alias("value"), F.col(known).alias("known_date"))
            for name, value, known in attributes
        )
    )
    return (
        numbered.select("user_id", F.explode(values).alias("told"))
        .select("user_id", "told.*")
        .where("value IS NOT NULL")
    )


def favourite_leaf(kind_no: Column, place: int, *, city: CitySettings) -> Column:
    """Returns the user's first (`place` 0) or second (1) favourite leaf of a kind; they may be the same."""
    number = whole(
        uniform(city.seed, f"taste {place}", F.col("user_no"), kind_no), look_up(NUM_LEAVES, kind_no)
    )
    return number + look_up(FIRST_LEAF, kind_no)


def choose_leaf(kind_no: Column, draw: Column, *, city: CitySettings) -> Column:
    """Chooses a leaf of a kind by the user's interests; `draw` is a number in [0, 1), a column passed by name."""
    first, second = TASTE_SHARES
    rest = (draw - (first + second)) / (1.0 - first - second)
    return (
        F.when(draw < first, favourite_leaf(kind_no, 0, city=city))
        .when(draw < first + second, favourite_leaf(kind_no, 1, city=city))
        .otherwise(whole(rest, look_up(NUM_LEAVES, kind_no)) + look_up(FIRST_LEAF, kind_no))
    )


def with_chosen_poi(
    frame: DataFrame,
    name: str,
    *,
    leaf: str,
    favourite: Column | None,
    looks_around: Column | None,
    city: CitySettings,
    seeks: bool = True,
) -> DataFrame:
    """Adds the number of the POI of a leaf that a user goes to: a favourite, or one found by looking around.

    Args:
        frame: users (`build_users`), with stay_city and anchor_hood if any of them looks around.
        name: column to add.
        leaf: column of the leaf.
        favourite: number of the favourite, 0 to `FAVOURITES` - 1, null where the user looks around.
        looks_around: identifies the occasion on which a user looks around; None = no user does.
        city: settings.
        seeks: whether users who look around prefer POIs with the attribute that they like; favourites are always
            chosen so.
    """
    seed, layout = city.seed, lay_out(city)
    occasion = F.xxhash64(F.lit("around"), F.lit(0) if looks_around is None else looks_around)
    is_favourite, where = F.col("_favourite").isNotNull(), F.col("_where")
    far = zipf_rank(uniform(seed, "hood", F.col("_key")), F.col("_hoods"))
    around = F.lit(0) if looks_around is None else F.col("anchor_hood")
    stay = F.col("city_no") if looks_around is None else F.col("stay_city")
    hood = (
        F.when(is_favourite & (where < NEAR_HOME), F.col("home_hood"))
        .when(is_favourite & (where < NEAR_WORK), F.col("work_hood"))
        .when(~is_favourite & (where < NEAR_ANCHOR), around)
        .otherwise(far)
    )
    return (
        frame.withColumn("_favourite", F.lit(None).cast("int") if favourite is None else favourite)
        .withColumns(
            {
                "_key": F.when(is_favourite, F.xxhash64("user_no", leaf, "_favourite")).otherwise(occasion),
                "_city": F.when(is_favourite, F.col("city_no")).otherwise(stay),
            }
        )
        .withColumns(
            {
                "_hoods": look_up(layout.num_hoods, F.col("_city")),
                "_where": uniform(seed, "where", F.col("_key")),
            }
        )
        .withColumn("_hood", hood)
        .transform(lambda placed: _with_liked_poi(placed, name, leaf, F.lit(seeks) | is_favourite, city))
        .drop("_favourite", "_key", "_city", "_hoods", "_where", "_hood")
    )


def _with_liked_poi(frame: DataFrame, name: str, leaf: str, seeks: Column, city: CitySettings) -> DataFrame:
    """Adds the first POI that has what the user likes; the very first POI if none has it, or if not `seeks`.

    With `city.pictures` a POI with both the liked attribute and the liked look comes before one with either.
    """
    seed, num_ranks = city.seed, look_up(lay_out(city).num_ranks, F.col("_city"))
    tries = [f"_try_{number}" for number in range(city.attribute_tries)]
    places = {column: f"_in_city{column}" for column in tries}
    draws = [uniform(seed, f"rank {n}" if n else "rank", F.col("_key")) for n in range(len(tries))]
    frame = frame.withColumns(
        {
            place: zipf_rank(draw, num_ranks) * F.col("_hoods") + F.col("_hood")
            for place, draw in zip(places.values(), draws, strict=True)
        }
    ).withColumns(
        {
            column: poi_number(F.col(leaf), F.col("_city"), F.col(place), city=city)
            for column, place in places.items()
        }
    )
    if len(tries) == 1:
        return frame.withColumn(name, F.col(tries[0])).drop(*places.values(), *tries)
    # Most likes first, then the order of the tries. One reference to each number keeps the plan small.
    ranked = [
        F.struct(F.when(seeks, _count_likes(F.col(column), city)).otherwise(0).alias("likes"),
                 F.lit(-turn).alias("turn"), F.col(column).alias("poi_no"))
        for turn, column in enumerate(tries)
    ]  # fmt: skip
    return frame.withColumn(name, F.greatest(*ranked)["poi_no"]).drop(*places.values(), *tries)


def _count_likes(number: Column, city: CitySettings) -> Column:
    """Counts what a POI has of what the user of the row likes: the attribute and, with `city.pictures`, the look."""
    likes = (attribute_of_poi(number, city=city) == F.col("likes_no")).cast("int")
    if city.pictures:
        likes += (look_of_poi(number, city=city) == F.col("likes_look_no")).cast("int")
    return likes


def is_open(on: Column) -> Column:
    """Tells whether the POI of the row (see `with_poi`) takes visitors on a day."""
    return (F.col("opened_date") <= on) & (F.col("closed_date").isNull() | (F.col("closed_date") > on))


def with_open_poi(frame: DataFrame, on: str, *, city: CitySettings) -> DataFrame:
    """Replaces POIs that are not open on a day by a stand-in, and adds the columns of `with_poi`.

    The stand-in is the most popular POI of the same leaf and neighbourhood, which is always open. The
    user's own `city_no` becomes `home_city_no`.
    """
    described = with_poi(frame.withColumnRenamed("city_no", "home_city_no"), city=city)
    stand_in = poi_number(F.col("leaf_no"), F.col("city_no"), F.col("hood_no"), city=city)
    number = F.when(is_open(F.col(on)), F.col("poi_no")).otherwise(stand_in)
    poi_columns = (
        "leaf_no",
        "city_no",
        "hood_no",
        "rank",
        "opened_date",
        "closed_date",
        "moved_date",
        "attribute_no",
        *(("look_no",) if city.pictures else ()),
    )
    return with_poi(described.withColumn("poi_no", number).drop(*poi_columns), city=city)


def _activity(user: Column, city: CitySettings) -> Column:
    """Spreads users evenly over the quantiles of the law (golden ratio): totals hardly depend on the seed."""
    alpha, kept = ACTIVITY_EXPONENT, 1.0 - ACTIVITY_CAP**-ACTIVITY_EXPONENT
    mean = alpha / (alpha - 1.0) * (1.0 - ACTIVITY_CAP ** (1.0 - alpha)) / kept
    quantile = F.pmod(user * F.lit(GOLDEN) + F.lit((city.seed * GOLDEN) % 1.0), F.lit(1.0))
    return F.pow(F.lit(1.0) - quantile * F.lit(kept), F.lit(-1.0 / alpha)) / F.lit(mean)


def _with_trip(users: DataFrame, city: CitySettings) -> DataFrame:
    """Adds the trips: four users in ten travel once to another city, for two to five days."""
    seed, user, num_cities = city.seed, F.col("user_no"), 1 + city.num_other_cities
    away = F.lit(1) + whole(uniform(seed, "trip city", user), max(1, num_cities - 1))
    start = F.col("joined") + whole(uniform(seed, "trip start", user), F.lit(city.num_days) - F.col("joined"))
    travels = (uniform(seed, "travels", user) < 0.4) & F.lit(num_cities > 1)
    length = F.when(travels, whole(uniform(seed, "trip length", user), 4) + 2).otherwise(0)
    return users.withColumns(
        {
            "trip_city": F.pmod(F.col("city_no") + away, F.lit(num_cities)),
            "trip_start": start,
            "trip_end": start + length - 1,
        }
    )


def _with_building(users: DataFrame, purpose: str, city: CitySettings) -> DataFrame:
    """Adds number and place of the building where a user lives or works."""
    seed, user, kind_no = city.seed, F.col("user_no"), F.lit(0 if purpose == "home" else 1)
    leaf = whole(uniform(seed, f"{purpose} building", user), look_up(NUM_LEAVES, kind_no)) + look_up(
        FIRST_LEAF, kind_no
    )
    rank = whole(uniform(seed, f"{purpose} rank", user), look_up(lay_out(city).num_ranks, F.col("city_no")))
    kept = [name for name in users.columns if name != "city_no"]
    numbered = (
        users.withColumn("_in_city", rank * F.col("_hoods") + F.col(f"{purpose}_hood"))
        .withColumn("poi_no", poi_number(leaf, F.col("city_no"), F.col("_in_city"), city=city))
        .withColumnsRenamed({"city_no": "_city_no", "_hoods": "_user_hoods"})
    )
    lon, lat = place_of_poi(F.lit(city.first_day), city=city)
    building = [
        F.col("poi_no").alias(f"{purpose}_poi_no"),
        lon.alias(f"{purpose}_lon"),
        lat.alias(f"{purpose}_lat"),
    ]
    kept = ["_user_hoods" if name == "_hoods" else name for name in kept]
    return (
        with_poi(numbered, city=city)
        .select(*kept, "_city_no", *building)
        .withColumnsRenamed({"_city_no": "city_no", "_user_hoods": "_hoods"})
    )
