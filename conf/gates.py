"""The watch list of each table beyond its contract: volume, shares, freshness, further keys, ids that never change.

Bounds are in the settings (`gates.*`). `etl/quality/gate_rules.py` derives rules from this list and from the contract,
and Great Expectations judges them (`etl/quality/expectations.py`). Null rates are not listed: every column that may be
null is compared with its usual rate. Standard library only, so that everything may import it.
"""

from dataclasses import dataclass
from typing import Literal

COSINE_BEFORE = "cosine to the vector before"
"""Statistic of a vector: how alike it is to the last one of the same thing by the same model, on average."""
VISITED, VISITED_FOUND = "visited_after", "visited_after_found"
LIVE, GENERATED = "live", "generated"
"""Statistics of generated POIs: visits after a request and those that were on its list, live POIs and those on any."""

Severity = Literal["critical", "warning"]
"""A critical failure stops publication; a warning is kept in the audit record and publication goes on."""


@dataclass(frozen=True)
class Watched:
    """A distribution of the rows of a day over some values, which is compared with earlier days.

    Attributes:
        name: name in `table_statistics` and in reports.
        value: SQL expression of one row, a text or a whole number.
        keeps_shape: whether the shares of all values together must stay about the same.
        keeps_values: whether a value with a large share on earlier days must not vanish.
    """

    name: str
    value: str
    keeps_shape: bool = False
    keeps_values: bool = False


@dataclass(frozen=True)
class Rate:
    """One figure as a share of another, compared with earlier days.

    Attributes:
        label: description in words.
        part: column and statistic of the part.
        whole: column and statistic of the whole.
    """

    label: str
    part: tuple[str, str]
    whole: tuple[str, str]


@dataclass(frozen=True)
class TableGates:
    """The watch list of one table.

    Attributes:
        volume: severity of a day with almost no rows, compared with earlier days; a day outside the normal band is
            always a warning. None: the number of rows is no sign of health, for example because a table holds only
            new or changed rows.
        counted_by: date column; only rows of the day itself are compared, since a first delivery brings all history.
            Empty: all rows.
        shares: boolean columns whose share of true is compared with earlier days.
        newest: column with the time of the row (a date, or epoch milliseconds UTC); its largest value must not be
            older than the day.
        unique: sets of columns that are unique together, besides the key.
        frozen: columns that never change once a key has them; compared with the table as it stood before the run.
        histograms: distributions of rows over hours, categories, regions.
        crowded_by: column whose single values must not suddenly have most rows.
        repeated_after_days: columns and a time column (epoch milliseconds, last). The audit counts rows that repeat a
            row of the day before, exactly one day later: a sign of a repeated delivery with moved dates.
        rates: shares that must stay about the same.
        means: columns and statistics that are means of numbers up to 1, which must stay about the same.
        may_be_empty: a day without rows is fine; then only the volume is judged.
    """

    volume: Severity | None = None
    counted_by: str = ""
    shares: tuple[str, ...] = ()
    newest: str = ""
    unique: tuple[tuple[str, ...], ...] = ()
    frozen: tuple[str, ...] = ()
    histograms: tuple[Watched, ...] = ()
    crowded_by: str = ""
    repeated_after_days: tuple[str, ...] = ()
    rates: tuple[Rate, ...] = ()
    means: tuple[tuple[str, str], ...] = ()
    may_be_empty: bool = False


_LOCAL_HOUR = "pmod(floor((action_ts_ms + 60000L * coalesce(tz_offset_min, 0)) / 3600000), 24)"

GATES: dict[str, TableGates] = {
    "cleaned_actions": TableGates(
        volume="critical",
        counted_by="event_date",
        shares=("is_interest",),
        newest="event_date",
        histograms=(
            # Rows stay valid if a clock is hours off, or a category column is filled with one value.
            Watched("local_hour", _LOCAL_HOUR, keeps_shape=True),
            Watched("category_id", "category_id", keeps_shape=True),
            # Regions of about 50 km: a missing delivery of a city shows as one of them. New regions are fine.
            Watched(
                "region", "concat_ws(' ', floor(poi_lon * 2) / 2, floor(poi_lat * 2) / 2)", keeps_values=True
            ),
        ),
        crowded_by="user_id",
        repeated_after_days=("user_id", "poi_id", "action_ts_ms"),
    ),
    # The table only grows, which `frozen` checks slot by slot; sudden growth is worth a warning.
    "poi_index": TableGates(
        volume="warning",
        unique=(("index_version", "block_id", "inner_id"),),
        frozen=("block_id", "inner_id"),
    ),
    # One row per active user; the first run has every user that ever acted.
    "action_sequences": TableGates(volume="warning"),
    # A day may have no requests at all, so a small number of them stops nothing.
    "ranking_requests": TableGates(volume="warning", newest="request_ts_ms", may_be_empty=True),
    # New or changed rows only: a new model embeds everything again. Completeness is counted across tables.
    "user_embeddings": TableGates(means=(("embedding", COSINE_BEFORE),), may_be_empty=True),
    "poi_embeddings": TableGates(may_be_empty=True),
    "ranking_scores": TableGates(may_be_empty=True),
    "poi_candidates": TableGates(
        rates=(
            Rate(
                "visits after a request that its list had",
                ("request_id", VISITED_FOUND),
                ("request_id", VISITED),
            ),
            Rate("live POIs that are on any list", ("poi_id", GENERATED), ("poi_id", LIVE)),
        ),
        may_be_empty=True,
    ),
}


def gates_of(table: str) -> TableGates:
    """Returns the watch list of a table; empty if the table is not listed."""
    return GATES.get(table, TableGates())
