"""Counts the delivered actions of a warehouse that are neither accepted, nor quarantined, nor exact duplicates.

    python -m tests.bench.unexplained --root .demo/checkins/warehouse --name nyc-unexplained-rows

reads the Delta tables without Spark, counts duplicates again from the delivered contents, and records the difference,
which has to be 0.
"""

import argparse
import sys

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from conf.results import record
from conf.tables import RAW_ACTIONS

CONTENT = [name for name in RAW_ACTIONS.column_names if name != "day"]


def count_rows(root: str) -> dict[str, int]:
    """Returns delivered, accepted, quarantined and duplicate actions, and what is left unexplained.

    A duplicate is a further row of equal content; rows that are repeated in quarantine are there once each, so only
    repeats beyond those count.
    """
    raw = DeltaTable(f"{root}/raw_actions").to_pyarrow_table(columns=CONTENT)
    accepted = DeltaTable(f"{root}/cleaned_actions").to_pyarrow_dataset().count_rows()
    quarantined = DeltaTable(f"{root}/quarantined_rows").to_pyarrow_table(
        columns=["source_table", "duplicate_no"]
    )
    of_actions = quarantined.filter(pc.equal(quarantined["source_table"], "raw_actions"))
    repeats = raw.num_rows - raw.group_by(CONTENT).aggregate([]).num_rows
    repeats_in_quarantine = (
        pc.sum(pc.cast(pc.greater(of_actions["duplicate_no"], 0), pa.int64())).as_py() or 0
    )
    counts = {
        "delivered": raw.num_rows,
        "accepted": accepted,
        "quarantined": of_actions.num_rows,
        "duplicates": repeats - repeats_in_quarantine,
    }
    explained = counts["accepted"] + counts["quarantined"] + counts["duplicates"]
    return counts | {"unexplained": counts["delivered"] - explained}


def main() -> int:
    """Counts, records and returns 0 if every row is explained."""
    parser = argparse.ArgumentParser(description="Records the unexplained rows of a warehouse in results/.")
    parser.add_argument("--root", required=True, help="table root, a folder")
    parser.add_argument("--name", default="unexplained-rows", help="name in the ledger")
    options = parser.parse_args()
    counts = count_rows(options.root)
    notes = ", ".join(f"{what} {number}" for what, number in counts.items())
    record(
        options.name,
        counts["unexplained"],
        "rows",
        "== 0",
        "make bench-rows SOURCE=checkins DATA=FOLDER",
        notes,
    )
    return 0 if counts["unexplained"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
