"""The places of the synthetic city: cities, neighbourhoods, categories and every attribute of a POI.

A POI is a number from 0 to `num_pois` - 1. Its category, city, neighbourhood, rank of popularity, place, opening,
closing and move are expressions of that number and the seed. Conversely, category, city, neighbourhood and rank give
the number. So users choose POIs without a join, and rows do not depend on how the work is partitioned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.settings import CitySettings

KM_PER_DEGREE = 111.195
MAIN_WIDTH = 7
"""The main city has so many POIs of a leaf for every one that each other city has."""
CHURN_SHARES = {"opened": 0.12, "closed": 0.05, "moved": 0.015}
ATTRIBUTES = ("quiet", "lively", "historic", "family friendly", "vegan", "romantic")
"""What a POI's text alone tells about it, and what a user may like."""
LOOKS = ("striped across", "striped down", "rising", "falling", "checked", "plain")
"""What a POI's picture alone tells about it, and what a user may like (`city.pictures`)."""


@dataclass(frozen=True)
class Kind:
    """Categories that serve one purpose: path of the level above, then the leaves."""

    name: str
    path: str
    leaves: tuple[str, ...]


KINDS = (
    Kind("home", "Residence", ("Residential Building (Apartment / Condo)",) * 4),
    Kind("work", "Professional & Other Places", ("Office",) * 3),
    Kind("transit", "Travel & Transport", ("Train Station", "Subway")),
    Kind("errand", "Shop & Service", ("Bank", "Drugstore / Pharmacy", "Gas Station / Garage")),
    Kind("hotel", "Travel & Transport", ("Hotel",)),
    Kind("coffee", "Food", ("Coffee Shop", "Cafe", "Bakery")),
    Kind(
        "food",
        "Food",
        (
            "Italian Restaurant",
            "Japanese Restaurant",
            "French Restaurant",
            "Indian Restaurant",
            "Chinese Restaurant",
            "Burger Joint",
        ),
    ),
    Kind("bar", "Nightlife Spot", ("Bar", "Pub", "Wine Bar")),
    Kind("fun", "Arts & Entertainment", ("Movie Theater", "Music Venue", "Concert Hall")),
    Kind("shop", "Shop & Service", ("Clothing Store", "Bookstore", "Department Store")),
    Kind("sight", "Outdoors & Recreation", ("Park", "Scenic Lookout", "Plaza")),
)
LEAVES = tuple(leaf for kind in KINDS for leaf in kind.leaves)
PATHS = tuple(f"{kind.path} > {leaf}" for kind in KINDS for leaf in kind.leaves)
KIND_NAMES = tuple(kind.name for kind in KINDS)
NUM_LEAVES = tuple(len(kind.leaves) for kind in KINDS)
FIRST_LEAF = tuple(sum(NUM_LEAVES[:number]) for number in range(len(KINDS)))
KIND_OF_LEAF = tuple(number for number, kind in enumerate(KINDS) for _ in kind.leaves)
STABLE_LEAVES = FIRST_LEAF[KIND_NAMES.index("transit")]
"""Leaves before this one are homes and offices: they neither open, close nor move."""


@dataclass(frozen=True)
class Layout:
    """The layout of a city: how many cities, neighbourhoods and POIs it has.

    Attributes:
        num_cities: the main city, number 0, and the others.
        num_hoods: neighbourhoods per city, the main city's first.
        num_ranks: POIs of one leaf in one neighbourhood that users choose from.
        centers: longitude and latitude of each city.
        tz_offsets_min: minutes to add to UTC, per city.
        radius_km: radius of each city.
    """

    num_cities: int
    num_hoods: tuple[int, ...]
    num_ranks: tuple[int, ...]
    centers: tuple[tuple[float, float], ...]
    tz_offsets_min: tuple[int, ...]
    radius_km: tuple[float, ...]


def lay_out(city: CitySettings) -> Layout:
    """Derives the layout of a city from its settings: a few numbers per city, none per POI or user."""
    others = city.num_other_cities
    cycles = city.num_pois // len(LEAVES) // (MAIN_WIDTH + others)
    slots = (cycles * MAIN_WIDTH, *(cycles,) * others)
    num_hoods = tuple(
        min(limit, max(1, math.ceil(1.2 * math.sqrt(n))))
        for n, limit in zip(slots, (400, *(100,) * others), strict=True)
    )
    centers = [(city.center_lon, city.center_lat)]
    for number in range(others):
        # Each city is farther away than the last, in all directions: 150 km is a day trip, beyond 1500 km lies
        # another time zone.
        angle = 2.4 * (number + 1) + city.seed
        far_km = 150.0 * 3.2**number if number < 3 else 1500.0 + 100 * number
        lat = city.center_lat + far_km * math.sin(angle) / KM_PER_DEGREE
        lat = lat if abs(lat) < 70 else 2 * city.center_lat - lat
        lon = city.center_lon + far_km * math.cos(angle) / (KM_PER_DEGREE * math.cos(math.radians(lat)))
        centers.append(((lon + 180.0) % 360.0 - 180.0, lat))
    return Layout(
        num_cities=1 + others,
        num_hoods=num_hoods,
        num_ranks=tuple(max(1, n // hoods) for n, hoods in zip(slots, num_hoods, strict=True)),
        centers=tuple(centers),
        tz_offsets_min=tuple(60 * round(lon / 15) for lon, _ in centers),
        radius_km=(city.radius_km, *(0.5 * city.radius_km,) * others),
    )


# --- chance ------------------------------------------------------------------------------------------------


def uniform(seed: int, what: str, *ids: Column) -> Column:
    """Returns a number in [0, 1) that depends on the seed, the name of the draw and the ids alone."""
    return F.shiftrightunsigned(F.xxhash64(F.lit(f"{seed}:{what}"), *ids), 11) * F.lit(2.0**-53)


def normal(seed: int, what: str, *ids: Column) -> Column:
    """Returns a standard normal number, by Box and Muller."""
    radius = F.sqrt(F.lit(-2.0) * F.log(F.lit(1.0) - uniform(seed, f"{what} r", *ids)))
    return radius * F.cos(F.lit(2 * math.pi) * uniform(seed, f"{what} a", *ids))


def whole(number: Column, below: Column | int) -> Column:
    """Scales a number in [0, 1) to an integer from 0 to `below` - 1."""
    limit = F.lit(below) if isinstance(below, int) else below
    return F.least(F.floor(number * limit).cast("int"), (limit - 1).cast("int"))


def zipf_rank(number: Column, count: Column) -> Column:
    """Turns a number in [0, 1) into a rank from 0 to `count` - 1 with P(rank) about 1 / (rank + 1)."""
    return F.least(F.floor(F.pow(count + F.lit(1.0), number)).cast("int") - 1, (count - 1).cast("int"))


def look_up(values: Sequence[float] | Sequence[int] | Sequence[str], number: Column) -> Column:
    """Returns the value at a position, from 0."""
    return F.element_at(_literal_array(values), number + 1)


def draw_from(
    tables: Sequence[Mapping[str, float]] | Sequence[Mapping[int, float]], table_no: Column, draw: Column
) -> Column:
    """Chooses a value by the shares of one of several tables.

    Args:
        tables: value -> share, shares of a table add up to anything.
        table_no: number of the table to draw from.
        draw: a column of numbers in [0, 1); passed by name, since it is read once per value.
    """
    width = max(map(len, tables))
    values = F.expr(f"array({', '.join(_array_sql(_padded(list(table), width)) for table in tables)})")
    sums = [
        [sum(list(table.values())[: n + 1]) / sum(table.values()) for n in range(len(table) - 1)]
        for table in tables
    ]
    position = F.lit(1)
    for number in range(width - 1):
        limits = [below[number] if number < len(below) else 2.0 for below in sums]
        position = position + (draw >= look_up(limits, table_no)).cast("int")
    return F.element_at(F.element_at(values, table_no + 1), position)


def _literal_array(values: Sequence[object]) -> Column:
    """Returns an array of literals, parsed from one text: a call per element would cost the driver seconds."""
    return F.expr(_array_sql(list(values)))


def _array_sql(values: Sequence[object]) -> str:
    texts = (
        f"'{value}'" if isinstance(value, str) else f"{value!r}D" if isinstance(value, float) else str(value)
        for value in values
    )
    return f"array({', '.join(texts)})"


def _padded(values: Sequence[object], width: int) -> Sequence[object]:
    return [*values, *[values[-1]] * (width - len(values))]


# --- POIs --------------------------------------------------------------------------------------------------


def poi_number(leaf_no: Column, city_no: Column, in_city: Column, *, city: CitySettings) -> Column:
    """Returns the number of the POI of a leaf and city.

    Args:
        leaf_no: leaf.
        city_no: city.
        in_city: rank * neighbourhoods of the city + neighbourhood; a column passed by name, since it is read twice.
        city: settings.
    """
    cycle = MAIN_WIDTH + city.num_other_cities
    in_main = F.floor(in_city / MAIN_WIDTH).cast("int") * cycle + F.pmod(in_city, F.lit(MAIN_WIDTH))
    in_other = in_city * cycle + F.lit(MAIN_WIDTH - 1) + city_no
    number = leaf_no + F.lit(len(LEAVES)) * F.when(city_no == 0, in_main).otherwise(in_other)
    # A catalogue may be too small for one POI of every leaf and city; other POIs then stand in.
    return F.pmod(number, F.lit(city.num_pois)).cast("int")


def with_poi(frame: DataFrame, *, city: CitySettings) -> DataFrame:
    """Adds the columns that follow from `poi_no`: leaf_no, city_no, hood_no, rank, attribute_no and dates of its life.

    The dates are null for events that never happen; for most POIs `opened_date` lies before the city's first day.
    """
    layout, number = lay_out(city), F.col("poi_no")
    cycle = MAIN_WIDTH + city.num_other_cities
    place = F.pmod(F.col("_among"), F.lit(cycle))
    round_no = F.floor(F.col("_among") / cycle).cast("int")
    in_city = F.when(F.col("city_no") == 0, round_no * MAIN_WIDTH + place).otherwise(round_no)
    # As few steps as the order of the columns allows: Spark analyses the whole row at each one.
    steps: tuple[dict[str, Column], ...] = (
        {
            "leaf_no": F.pmod(number, F.lit(len(LEAVES))),
            "_among": F.floor(number / len(LEAVES)).cast("int"),
            "attribute_no": attribute_of_poi(number, city=city),
            **({"look_no": look_of_poi(number, city=city)} if city.pictures else {}),
        },
        {"city_no": F.greatest(place - (MAIN_WIDTH - 1), F.lit(0))},
        {"_in_city": in_city, "_hoods": look_up(layout.num_hoods, F.col("city_no"))},
        {
            "hood_no": F.pmod("_in_city", "_hoods"),
            "rank": F.floor(F.col("_in_city") / F.col("_hoods")).cast("int"),
        },
        _life(city),
    )
    for step in steps:
        frame = frame.withColumns(step)
    return frame.drop("_among", "_in_city", "_hoods")


def attribute_of_poi(number: Column, *, city: CitySettings) -> Column:
    """Returns the number of the attribute that a POI has."""
    return whole(uniform(city.seed, "poi attribute", number), len(ATTRIBUTES))


def look_of_poi(number: Column, *, city: CitySettings) -> Column:
    """Returns the number of the look that a POI has."""
    return whole(uniform(city.seed, "poi look", number), len(LOOKS))


def place_of_poi(on: Column, *, city: CitySettings) -> tuple[Column, Column]:
    """Returns longitude and latitude of the POI of the row (see `with_poi`) on a day: a move changes them."""
    seed, number, layout = city.seed, F.col("poi_no"), lay_out(city)
    hood_lon, hood_lat = hood_center(F.col("city_no"), F.col("hood_no"), city=city)
    has_moved = F.coalesce(F.col("moved_date") <= on, F.lit(False))
    # A move is a kilometre or two, so the logged place stays within tolerance of the catalogue's.
    east = F.lit(0.6) * normal(seed, "poi east", number) + F.when(has_moved, 1.5).otherwise(0.0)
    north = F.lit(0.6) * normal(seed, "poi north", number)
    return shift(hood_lon, hood_lat, east, north, at_lat=_center_lat(layout, F.col("city_no")))


def hood_center(city_no: Column, hood_no: Column, *, city: CitySettings) -> tuple[Column, Column]:
    """Returns the centre of a neighbourhood; number 0 is the centre of its city."""
    layout = lay_out(city)
    radius = F.when(hood_no == 0, F.lit(0.0)).otherwise(
        look_up(layout.radius_km, city_no) * F.sqrt(uniform(city.seed, "hood radius", city_no, hood_no))
    )
    angle = F.lit(2 * math.pi) * uniform(city.seed, "hood angle", city_no, hood_no)
    lon = look_up(tuple(lon for lon, _ in layout.centers), city_no)
    lat = _center_lat(layout, city_no)
    return shift(lon, lat, radius * F.cos(angle), radius * F.sin(angle), at_lat=lat)


def shift(
    lon: Column, lat: Column, east_km: Column, north_km: Column, *, at_lat: Column
) -> tuple[Column, Column]:
    """Moves a point by some kilometres; `at_lat`, a latitude nearby, sets the length of a degree east."""
    return lon + east_km / (F.lit(KM_PER_DEGREE) * F.cos(F.radians(at_lat))), lat + north_km / F.lit(
        KM_PER_DEGREE
    )


def _center_lat(layout: Layout, city_no: Column) -> Column:
    return look_up(tuple(lat for _, lat in layout.centers), city_no)


def _life(city: CitySettings) -> dict[str, Column]:
    """Opening, closing and move; the most popular POI of a leaf and neighbourhood stays as a stand-in."""
    seed, number, days = city.seed, F.col("poi_no"), city.num_days
    changes = (F.col("rank") > 0) & (F.col("leaf_no") >= STABLE_LEAVES)
    happens = {
        event: changes & (uniform(seed, event, number) < share) for event, share in CHURN_SHARES.items()
    }
    first = F.lit(city.first_day)
    before = F.date_sub(first, whole(uniform(seed, "age", number), 700) + 1)
    opened = F.date_add(first, whole(uniform(seed, "opening day", number), max(1, days // 2)) + 1)
    closed = F.date_add(first, whole(uniform(seed, "closing day", number), max(1, days // 2)) + days // 2 + 2)
    moved = F.date_add(first, whole(uniform(seed, "moving day", number), max(1, days // 2)) + days // 2 + 1)
    return {
        "opened_date": F.when(happens["opened"], opened).otherwise(before),
        "closed_date": F.when(happens["closed"], closed),
        "moved_date": F.when(happens["moved"], moved),
    }


def poi_id(number: Column) -> Column:
    """Returns the catalogue id of a POI."""
    return F.format_string("p%08d", number)
