"""Compares the sequences that two engines wrote, user by user and column by column."""

from pathlib import Path

import duckdb

from conf.tables import ACTION_SEQUENCES

COLUMNS = tuple(name for name in ACTION_SEQUENCES.column_names if name != "user_id")
RICHNESS_TOLERANCE = 1e-8
"""The engines add logarithms in different orders, and the project in whole numbers of 1e-9."""
NUM_EXAMPLES = 5


class DifferentResultError(AssertionError):
    """Two engines made different sequences; no time of theirs means anything."""


def digest(folder: Path) -> str:
    """Returns users, actions and a hash over all rows whatever their order; richness left out, as it is rounded."""
    columns = ", ".join(name for name in ("user_id", *COLUMNS) if name != "richness")
    rows = duckdb.sql(
        f"SELECT count(*), sum(seq_len), sum(hash({columns})) FROM read_parquet('{folder}/*.parquet')"
    ).fetchall()
    users, actions, hashes = rows[0]
    return f"{users}-{actions}-{int(hashes or 0):x}"


def compare(ours: Path, theirs: Path, *, engine: str) -> None:
    """Raises DifferentResultError, with examples, unless both folders hold the same rows."""
    differences = {
        name: f"ours.{name} IS DISTINCT FROM theirs.{name}" for name in COLUMNS if name != "richness"
    } | {"richness": f"NOT coalesce(abs(ours.richness - theirs.richness) <= {RICHNESS_TOLERANCE}, false)"}
    found = ", ".join(
        f"CASE WHEN {is_different} THEN '{name}' END" for name, is_different in differences.items()
    )
    different = duckdb.sql(f"""
        SELECT coalesce(ours.user_id, theirs.user_id) AS user_id, ours.seq_len AS ours, theirs.seq_len AS theirs,
            list_filter([{found}], lambda name: name IS NOT NULL) AS columns
        FROM read_parquet('{ours}/*.parquet') AS ours
            FULL JOIN read_parquet('{theirs}/*.parquet') AS theirs ON ours.user_id = theirs.user_id
        WHERE len(columns) > 0 ORDER BY user_id
    """).fetchall()
    if different:
        examples = "; ".join(
            f"user {user} ({mine} actions, {other} of {engine}): {', '.join(columns)}"
            for user, mine, other, columns in different[:NUM_EXAMPLES]
        )
        raise DifferentResultError(f"{len(different)} users differ between Spark and {engine}: {examples}")
