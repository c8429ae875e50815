"""The same work as `etl_spark`, written for DuckDB by hand: `etl_duckdb.sql`, and the macros it uses."""

from pathlib import Path

import duckdb

from conf.tokens import ACTION_TYPES
from etl.columns.refusal import BLANKS, PLACEHOLDERS
from tests.bench import etl_bounds

QUERY = Path(__file__).with_suffix(".sql")


def start() -> duckdb.DuckDBPyConnection:
    """Opens a database in memory, with the two threads that Spark has too."""
    db = duckdb.connect(config={"threads": 2, "preserve_insertion_order": False})
    for macro in _macros():
        db.execute(f"CREATE MACRO {macro}")
    db.execute("CREATE TABLE taxonomy (leaf VARCHAR, is_interest BOOLEAN)")
    db.executemany("INSERT INTO taxonomy VALUES (?, ?)", list(etl_bounds.is_interest_by_leaf().items()))
    return db


def run(db: duckdb.DuckDBPyConnection, folder: Path, target: Path) -> None:
    """Reads the raw Parquet of `folder` and writes the sequences to `target`."""
    target.mkdir(parents=True, exist_ok=True)
    query = QUERY.read_text().format(folder=folder, action_types=list(ACTION_TYPES), **etl_bounds.bounds())
    db.execute(f"COPY ({query}) TO '{target}/sequences.parquet' (FORMAT parquet, COMPRESSION zstd)")


def _macros() -> tuple[str, ...]:
    blanks = " || ".join(f"chr({ord(blank)})" for blank in BLANKS)
    nothing = ", ".join(f"'{word}'" for word in ("", *PLACEHOLDERS))
    rows, per_row = etl_bounds.NUM_ROWS, etl_bounds.COLUMNS_AT_EQUATOR
    digits, following = list(etl_bounds.HILBERT_DIGIT), list(etl_bounds.HILBERT_NEXT)
    km = etl_bounds.EARTH_DIAMETER_KM
    return (
        f"trimmed(t) AS trim(t, {blanks})",
        f"is_nothing(t) AS coalesce(lower(t), '') IN ({nothing})",
        r"is_broken(t) AS regexp_matches(t, '[\x00-\x1f\x7f-\x{9f}\x{fffd}]')",
        "is_on_earth(lon, lat) AS coalesce(lon BETWEEN -180 AND 180 AND lat BETWEEN -90 AND 90, false)",
        "is_swapped(lon, lat) AS NOT is_on_earth(lon, lat) AND is_on_earth(lat, lon)",
        "haversine(half_lat, half_lon, lat_a, lat_b) AS half_lat * half_lat "
        "+ cos(radians(lat_a)) * cos(radians(lat_b)) * half_lon * half_lon",
        f"""km(lon_a, lat_a, lon_b, lat_b) AS CASE WHEN is_on_earth(lon_a, lat_a) THEN {km} * asin(least(1.0, sqrt(
            haversine(sin(radians(lat_b - lat_a) / 2), sin(radians(lon_b - lon_a) / 2), lat_a, lat_b)))) END""",
        f"""num_columns(cell_y) AS greatest(floor({per_row} * cos(radians(
            (cell_y + 0.5) * (180.0 / {rows}) - 90.0)) + 0.5), 1)::INTEGER""",
        "half(part, level, side) AS (greatest(least(floor(part * side), side - 1), 0)::BIGINT >> level) & 1",
        f"""hilbert(east, north, levels) AS list_reduce(
            [{{'number': level, 'turn': 0::BIGINT}} for level in range(levels - 1, -1, -1)],
            lambda state, step: {{
                'number': state.number * 4 + {digits}[1 + state.turn * 4 + 2 * half(east, step.number, 1 << levels)
                    + half(north, step.number, 1 << levels)],
                'turn': ({following}[1 + state.turn * 4 + 2 * half(east, step.number, 1 << levels)
                    + half(north, step.number, 1 << levels)])::BIGINT
            }}, {{'number': 0::BIGINT, 'turn': 0::BIGINT}}).number""",
        "median_of(numbers) AS list_sort(numbers)[(len(numbers) - 1) // 2 + 1]",
    )
