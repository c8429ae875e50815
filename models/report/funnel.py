"""Destinations of the delivered rows: the first section of the report.

In: the tables of a release. Out: a `Funnel` for the release's day, one for all days up to it, and the section.

Accepted and refused rows are counted in their tables. Exact duplicates are in no table, so they are counted from the
delivered rows: occurrences of an id (or content, for rows without an id) that were not refused, minus one. The rest is
unexplained and must be 0.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from conf.rules import RULES
from conf.tables import TABLES
from models.report.data import ReleaseTables, count_by
from models.report.page import (
    Bar,
    BarList,
    Section,
    TableView,
    Tile,
    Topic,
    format_count,
    format_share,
    list_counts,
)

Hashes = NDArray[np.uint64]
ACTIONS = "raw_actions"
ARROW_TYPES = {
    "string": pa.string(),
    "bigint": pa.int64(),
    "int": pa.int32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
}
CONTENT_SCHEMA = pa.schema(
    [(column.name, ARROW_TYPES[column.type]) for column in TABLES[ACTIONS].columns if column.name != "day"]
)
CONTENT = CONTENT_SCHEMA.names
DOUBLES = {column.name for column in TABLES[ACTIONS].columns if column.type == "double"}
SAMPLES = {
    "pretrain_samples": "pre-training windows",
    "ranking_samples": "ranking requests",
    "preference_pairs": "preference pairs",
}
FUNNEL = Topic(
    "funnel",
    "Funnel of rows",
    sees=(
        "Every delivered action ends as accepted, quarantined with a reason, or dropped as an exact "
        "duplicate."
    ),
    alarm="Any unexplained row, or a quarantined share several times that of the days before.",
)


@dataclass(frozen=True)
class Funnel:
    """Counts of delivered actions and their destinations.

    Attributes:
        refused: rows per reason, most frequent first.
        duplicates: exact copies that were dropped.
    """

    delivered: int
    accepted: int
    refused: dict[str, int]
    duplicates: int

    @property
    def num_refused(self) -> int:
        return sum(self.refused.values())

    @property
    def unexplained(self) -> int:
        """Rows delivered that are neither accepted nor refused nor duplicates."""
        return self.delivered - self.accepted - self.num_refused - self.duplicates


def count_funnels(tables: ReleaseTables) -> tuple[Funnel, Funnel]:
    """Counts the release's day and all days up to it."""
    before = ds.field("day") < pa.scalar(tables.day)
    refused_rows = _scan_refused(tables)
    refused = _hash_payloads(refused_rows["payload"].to_pylist())
    is_today = refused_rows["day"].to_numpy() == np.datetime64(tables.day)
    earlier, todays = _hash_delivered(tables, before), _hash_delivered(tables, tables.today)
    until = np.concatenate([earlier, todays])
    num_repeats = count_repeats(until, refused)
    num_earlier = count_repeats(earlier, refused[~is_today])
    reasons = [count_by(rows, "reason") for rows in (refused_rows.filter(pa.array(is_today)), refused_rows)]
    accepted = [tables.count("cleaned_actions", where) for where in (tables.today, tables.until)]
    return (
        Funnel(len(todays), accepted[0], reasons[0], num_repeats - num_earlier),
        Funnel(len(until), accepted[1], reasons[1], num_repeats),
    )


def count_repeats(delivered: Hashes, refused: Hashes) -> int:
    """Counts repeated rows among those that were not refused, minus the one of each that is kept."""
    known, counts = np.unique(delivered, return_counts=True)
    if not len(known):
        return 0
    away, away_counts = np.unique(refused, return_counts=True)
    places = np.minimum(np.searchsorted(known, away), len(known) - 1)
    is_known = known[places] == away
    counts[places[is_known]] -= away_counts[is_known]
    return int(np.clip(counts - 1, 0, None).sum())


def build_funnel(tables: ReleaseTables) -> Section:
    """Builds the section."""
    today, until = count_funnels(tables)
    return Section(
        FUNNEL,
        tiles=_tiles(today, until),
        bars=(
            _flow_bars(tables, until),
            list_counts("Quarantined actions by reason, up to the day", until.refused, tone="warn"),
        ),
        tables=(_balance(today, until), _reasons(today, until), *_refused_elsewhere(tables)),
    )


def _tiles(today: Funnel, until: Funnel) -> tuple[Tile, ...]:
    def of_day(label: str, count: int) -> Tile:
        return Tile(label, format_count(count), f"{format_share(count, today.delivered)} of the day")

    return (
        Tile(
            "delivered", format_count(today.delivered), f"{format_count(until.delivered)} since the first day"
        ),
        of_day("accepted", today.accepted),
        of_day("quarantined", today.num_refused),
        Tile("exact duplicates", format_count(today.duplicates), "dropped"),
        _unexplained(today, until),
    )


def _reasons(today: Funnel, until: Funnel) -> TableView:
    explained = {rule.code: rule.explanation for rule in RULES}
    rows = tuple(
        (reason, explained.get(reason, ""), format_count(today.refused.get(reason, 0)), format_count(count))
        for reason, count in until.refused.items()
    )
    return TableView(
        "Reasons", ("reason", "what it means", "this day", "up to it"), rows, text_columns=(0, 1)
    )


def _refused_elsewhere(tables: ReleaseTables) -> tuple[TableView, ...]:
    """Returns quarantined rows that are not actions: POIs, and rows that the feature jobs could not compute."""
    if not tables.exists("quarantined_rows"):
        return ()
    counts = count_by(tables.scan("quarantined_rows", ["source_table"], tables.until), "source_table")
    rows = tuple((name, format_count(count)) for name, count in counts.items() if name != ACTIONS)
    caption = "Rows of other tables in quarantine, up to the day"
    return (TableView(caption, ("table", "rows"), rows),) if rows else ()


def _unexplained(today: Funnel, until: Funnel) -> Tile:
    is_fine = today.unexplained == until.unexplained == 0
    hint = "every row is accounted for" if is_fine else f"{format_count(until.unexplained)} up to the day"
    return Tile("unexplained", format_count(today.unexplained), hint, "good" if is_fine else "bad")


def _balance(today: Funnel, until: Funnel) -> TableView:
    lines = [
        ("delivered", today.delivered, until.delivered),
        ("= accepted", today.accepted, until.accepted),
        ("+ quarantined", today.num_refused, until.num_refused),
        ("+ exact duplicates", today.duplicates, until.duplicates),
        ("+ unexplained", today.unexplained, until.unexplained),
    ]
    rows = tuple((name, format_count(day), format_count(total)) for name, day, total in lines)
    return TableView("The balance of actions", ("", "this day", "up to it"), rows, strong_rows=(0, 4))


def _flow_bars(tables: ReleaseTables, until: Funnel) -> BarList:
    """Returns the next steps of the flow: actions, users with a history, samples of the last training day."""
    steps = [("actions delivered", until.delivered), ("actions accepted", until.accepted)]
    if tables.exists("cleaned_actions"):
        steps.append(
            ("of these of interest", tables.count("cleaned_actions", tables.until & ds.field("is_interest")))
        )
    steps.append(
        ("users with a sequence", tables.count_distinct("action_sequences", "user_id", tables.until))
    )
    largest = max(count for _, count in steps) or 1
    bars = [Bar(label, format_count(count), count / largest) for label, count in steps]
    for name, label in SAMPLES.items():
        count, last = _count_samples(tables, name)
        bars.append(
            Bar(
                f"{label}, {last}" if last else label,
                format_count(count) if last else "none yet",
                count / largest,
            )
        )
    return BarList("From rows to samples, up to the day; samples of the last training day", tuple(bars))


def _count_samples(tables: ReleaseTables, name: str) -> tuple[int, str]:
    """Counts the samples of the last day until the release's on which any were made, and names the day."""
    days = tables.scan(name, ["day"], tables.until)["day"] if tables.exists(name) else []
    if not len(days):
        return 0, ""
    last = pc.max(days)
    return int(pc.sum(pc.equal(days, last)).as_py()), str(last.as_py())


def _scan_refused(tables: ReleaseTables) -> pa.Table:
    columns = ["day", "reason", "payload"]
    if not tables.exists("quarantined_rows"):
        types = (pa.date32(), pa.string(), pa.string())
        return pa.schema(list(zip(columns, types, strict=True))).empty_table()
    return tables.scan("quarantined_rows", columns, tables.until & (ds.field("source_table") == ACTIONS))


def _hash_delivered(tables: ReleaseTables, where: ds.Expression) -> Hashes:
    """Hashes the identity of each delivered action: its id, or its content if it has none."""
    has_id = pc.utf8_trim(pc.coalesce(ds.field("action_id"), pa.scalar("")), characters=" ") != ""
    named = [
        _hash_rows(batch, ["action_id"]) for batch in tables.batches(ACTIONS, ["action_id"], where & has_id)
    ]
    nameless = [_hash_rows(batch, CONTENT) for batch in tables.batches(ACTIONS, CONTENT, where & ~has_id)]
    return np.concatenate([np.zeros(0, np.uint64), *named, *nameless])


def _hash_payloads(payloads: list[str]) -> Hashes:
    """Hashes refused rows as `_hash_delivered` does; the order stays."""
    rows = [_read_payload(payload) for payload in payloads]
    has_id = np.array([bool((row.get("action_id") or "").strip(" ")) for row in rows], dtype=np.bool_)
    table = pa.Table.from_pylist(rows, schema=CONTENT_SCHEMA)
    hashes = _hash_rows(table, CONTENT)
    hashes[has_id] = _hash_rows(table, ["action_id"])[has_id]
    return hashes


def _read_payload(payload: str) -> dict[str, Any]:
    """Reads a refused row; JSON has no nan and no infinity, so Spark writes them as text."""
    row: dict[str, Any] = json.loads(payload)
    return {
        name: float(value) if value is not None and name in DOUBLES else value for name, value in row.items()
    }


def _hash_rows(rows: pa.RecordBatch | pa.Table, columns: list[str]) -> Hashes:
    """Hashes each row to 64 bits, every value as text: its hash does not depend on the rest of the batch."""
    if not rows.num_rows:
        return np.zeros(0, np.uint64)
    texts = {
        name: rows[name]
        .cast(CONTENT_SCHEMA.field(name).type)
        .cast(pa.string())
        .fill_null("\0")
        .to_numpy(zero_copy_only=False)
        for name in columns
    }
    return pd.util.hash_pandas_object(pd.DataFrame(texts), index=False, categorize=False).to_numpy()
