"""Input of the ETL measurements: raw actions and POIs of a simulated city, as Parquet, made by DuckDB in seconds.

Skewed as the real thing is: few users and POIs have most actions. One row in fifty is dirty in one of the ways of
`DIRT`; beside them come exact and conflicting redeliveries and repeated actions. What the city of `etl/city/source.py`
plants beyond that (homes, commutes, tastes) costs its time and changes no plan. Every row follows from its number.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

DAY = date(2026, 3, 1)
"""The day on which all rows are delivered."""
NUM_DAYS = 60
HOT_USER = "u_hot"
DIRT = (
    ("user_id", "NULL"),
    ("user_id", "'(null)'"),
    ("user_id", "user_id || chr(7)"),
    ("user_id", "' ' || user_id || chr(9)"),
    ("poi_id", "NULL"),
    ("poi_id", "'nowhere'"),
    ("action_type", "'hover'"),
    ("action_type", "upper(action_type)"),
    ("action_ts_ms", "action_ts_ms // 1000"),
    ("action_ts_ms", "action_ts_ms * 1000"),
    ("action_ts_ms", "action_ts_ms + 40000000000"),
    ("action_ts_ms", "-action_ts_ms"),
    ("action_ts_ms", "915148800000"),
    ("tz_offset_min", "NULL"),
    ("tz_offset_min", "99999"),
    ("user_lon", "'NaN'::DOUBLE"),
    ("user_lat", "123"),
    ("poi_lon", "'Infinity'::DOUBLE"),
    ("poi_lat", "-91.5"),
    ("corrupt_record", '\'{"user_id": "u1\''),
)
"""Column, and what stands in it in one row in a thousand, as SQL."""
CATEGORIES = (
    "Café",
    "Bar",
    "Park",
    "Museum",
    "Hospital",
    "Office",
    "Gas Station",
    "Bookstore",
    "Gym",
    "Bank",
)


@dataclass(frozen=True)
class DuckdbCity:
    """What the rows are like.

    Attributes:
        rows: actions, about.
        user_skew: users are drawn as num_users * u^user_skew, u uniform; 1 = all alike.
        hot_share: share of the actions that belong to one user more.
    """

    rows: int
    user_skew: float = 2.0
    hot_share: float = 0.0

    @property
    def num_users(self) -> int:
        return max(20, self.rows // 100)

    @property
    def num_pois(self) -> int:
        return max(200, min(self.rows // 100, 200_000))


def write_city(city: DuckdbCity, folder: Path) -> None:
    """Writes `raw_actions.parquet` and `raw_pois.parquet` into `folder`."""
    import duckdb  # of the extra `bench`

    with duckdb.connect(config={"threads": 2, "preserve_insertion_order": False}) as db:
        db.execute("CREATE MACRO dice(salt, n) AS (hash(n, salt) % 1000003) / 1000003.0")
        db.execute(f"CREATE TABLE pois AS {_pois_sql(city)}")
        db.execute(f"CREATE VIEW bad_pois AS {_BAD_POIS}")
        for query, name in (
            ("FROM pois UNION ALL FROM bad_pois", "raw_pois"),
            (_actions_sql(city), "raw_actions"),
        ):
            target = folder / f"{name}.parquet"
            db.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")


def _pois_sql(city: DuckdbCity) -> str:
    categories = ", ".join(f"'{name}'" for name in CATEGORIES)
    return f"""
        SELECT DATE '{DAY}' AS day, 'p' || n AS poi_id, 'POI ' || n AS name, 'Street ' || (n // 40) AS address,
            [{categories}][1 + n % {len(CATEGORIES)}] AS category, NULL::VARCHAR AS category_path,
            4.9 + CASE WHEN n % 10 = 0 THEN 3 * (n % 30) / 10 ELSE 0 END
                + 0.25 * (dice('x', n) + dice('xx', n) - 1) AS poi_lon,
            52.37 - CASE WHEN n % 10 = 0 THEN 1.5 ELSE 0 END
                + 0.2 * (dice('y', n) + dice('yy', n) - 1) AS poi_lat,
            NULL::VARCHAR AS description, DATE '{DAY}' - (n % 400)::INTEGER AS first_seen_date,
            NULL::BOOLEAN AS is_closed, true AS is_simulated
        FROM range({city.num_pois}) AS numbers(n)
    """


_BAD_POIS = """
    FROM pois WHERE poi_id LIKE 'p1%7'
    UNION ALL SELECT * REPLACE ('conflict' AS name, DATE '2019-01-01' AS first_seen_date)
        FROM pois WHERE poi_id LIKE 'p1%8'
    UNION ALL SELECT * REPLACE ('bad1' AS poi_id, NULL AS poi_lon) FROM pois WHERE poi_id = 'p1'
    UNION ALL SELECT * REPLACE ('bad2' AS poi_id, 0 AS poi_lon, 0 AS poi_lat) FROM pois WHERE poi_id = 'p2'
    UNION ALL SELECT * REPLACE ('bad3' AS poi_id, 91 AS poi_lat) FROM pois WHERE poi_id = 'p3'
    UNION ALL SELECT * REPLACE (NULL AS poi_id) FROM pois WHERE poi_id = 'p4'
"""


def _actions_sql(city: DuckdbCity) -> str:
    """Returns the query of the actions; `n` numbers them, copies have the number of their original."""
    values: dict[str, str] = {}
    for column in dict(DIRT):
        cases = " ".join(f"WHEN {k} THEN {value}" for k, (name, value) in enumerate(DIRT) if name == column)
        values[column] = f"CASE dirt {cases} ELSE {column} END AS {column}"
    dirty = ", ".join(values.values())
    return f"""
        WITH numbered AS (
            SELECT range AS n, CASE WHEN dice('poi', n) < 0.1 THEN dice('far', n) ELSE dice('near', n) ** 3 END AS z
            FROM range({int(city.rows * 0.992)})
        ),
        good AS (
            SELECT p.day, 'a' || n AS action_id,
                CASE WHEN dice('hot', n) < {city.hot_share} THEN '{HOT_USER}'
                    ELSE 'u' || floor({city.num_users} * dice('user', n) ** {city.user_skew})::BIGINT END AS user_id,
                p.poi_id, ['click', 'navigate', 'search', 'order', 'checkin'][1 + (hash(n, 'type') % 5)::INTEGER]
                    AS action_type,
                epoch_ms(DATE '{DAY}'::TIMESTAMP) - (hash(n, 'time') % {NUM_DAYS * 86_400_000})::BIGINT
                    AS action_ts_ms,
                60::INTEGER AS tz_offset_min,
                CASE WHEN dice('gps', n) > 0.1 THEN p.poi_lon + 0.02 * dice('ux', n) END AS user_lon,
                CASE WHEN dice('gps', n) > 0.1 THEN p.poi_lat + 0.02 * dice('uy', n) END AS user_lat,
                p.poi_lon, p.poi_lat, p.category, NULL::VARCHAR AS corrupt_record, true AS is_simulated,
                (hash(n, 'dirt') % 1000)::INTEGER AS dirt, n
            FROM numbered JOIN pois p ON p.poi_id = 'p' || floor({city.num_pois} * z)::BIGINT
        ),
        delivered AS (
            FROM good
            UNION ALL FROM good WHERE n % 250 = 0
            UNION ALL SELECT * REPLACE (action_ts_ms + 1000 AS action_ts_ms) FROM good WHERE n % 500 = 1
            UNION ALL SELECT * REPLACE (action_id || 'r' AS action_id) FROM good WHERE n % 500 = 2
        )
        SELECT * EXCLUDE (dirt, n) REPLACE ({dirty}) FROM delivered
    """
