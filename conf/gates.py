"""What is watched in a table beyond its contract: volume, shares, freshness, further keys, ids that never change.

Said once here, per table; bounds are in the settings (`gates.*`). `etl/gate_rules.py` derives rules from it and from
the contract, Great Expectations judges them (`etl/quality.py`). Null rates are not listed: every column that may be
null is compared with its usual rate. Standard library only, so that everything may import it.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "warning"]
"""A critical failure stops publication; a warning is kept in the audit record and publication goes on."""


@dataclass(frozen=True)
class TableGates:
    """What is watched in one table.

    Attributes:
        volume: the severity of a day on which almost nothing came, compared with the days before; a day outside the
            normal band is always a warning. None: the number of rows says nothing, for example because a table holds
            what is new or changed.
        counted_by: date column; only rows of the day itself are compared, since a first delivery brings all history.
            Empty: all rows.
        shares: boolean columns whose share of true is compared with the days before.
        newest: column with the time of the row (a date, or epoch milliseconds UTC); its largest value must not be
            older than the day.
        unique: sets of columns that are unique together, besides the key.
        frozen: columns that never change once a key has them; compared with the table as it stood before the night.
        may_be_empty: a day without rows is nothing wrong, and then nothing but the volume is judged.
    """

    volume: Severity | None = None
    counted_by: str = ""
    shares: tuple[str, ...] = ()
    newest: str = ""
    unique: tuple[tuple[str, ...], ...] = ()
    frozen: tuple[str, ...] = ()
    may_be_empty: bool = False


GATES: dict[str, TableGates] = {
    "cleaned_actions": TableGates(
        volume="critical", counted_by="event_date", shares=("is_interest",), newest="event_date"
    ),
    # Grows and never shrinks, which `frozen` proves slot by slot; a sudden growth is worth a look.
    "poi_index": TableGates(
        volume="warning",
        unique=(("index_version", "block_id", "inner_id"),),
        frozen=("block_id", "inner_id"),
    ),
    # One row per active user; the first night has every user that ever acted.
    "action_sequences": TableGates(volume="warning"),
    # A night may have no requests at all, so that few of them stop nothing.
    "ranking_requests": TableGates(volume="warning", newest="request_ts_ms", may_be_empty=True),
    # What is new or changed: a new model embeds everything anew. Completeness is counted across tables.
    "user_embeddings": TableGates(may_be_empty=True),
    "poi_embeddings": TableGates(may_be_empty=True),
    "ranking_scores": TableGates(may_be_empty=True),
    "poi_candidates": TableGates(may_be_empty=True),
}


def gates_of(table: str) -> TableGates:
    """Returns what is watched in a table; nothing beyond its contract if it is not listed."""
    return GATES.get(table, TableGates())
