"""The ETL with and without Apache DataFusion Comet: what is the switch `spark.accelerator: comet` worth on our plans?

    python -m tests.bench.etl_accelerator --rows 3000000

The same work and the same comparison, row by row, as in `etl_rivals`; the only difference is the setting. Recorded is
the ratio of the warm medians, Comet over plain Spark: below 1 it is worth switching on.
"""

import argparse
import sys

from conf.results import record
from tests.bench.etl_rivals import format_size, measure_size, say
from tests.bench.etl_runner import ACCELERATED

COMMAND = "make bench-comet"


def main() -> int:
    """Measures, compares, records; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measures the ETL with and without Comet, into results/.")
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--runs", type=int, default=2, help="runs per process; the first is the cold one")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    medians = measure_size(options.rows, ("spark", ACCELERATED), rounds=options.rounds, runs=options.runs)
    say(format_size(medians))
    if ACCELERATED not in medians:
        return 1
    plain, comet = medians["spark"], medians[ACCELERATED]
    notes = (
        f"simulated town of {plain.rows:,} actions, clean -> index -> sequences, results equal row by row, medians "
        f"over {options.rounds} interleaved rounds. Warm: plain {plain.warm_s:.1f} s ({plain.warm_cpu_s:.0f} CPU s), "
        f"with Comet {comet.warm_s:.1f} s ({comet.warm_cpu_s:.0f}). Cold: {plain.cold_s:.1f} s, {comet.cold_s:.1f} s. "
        f"Peak: {plain.peak_gib:.1f}, {comet.peak_gib:.1f} GiB"
    )
    if not options.no_record:
        record("etl-comet-ratio", round(comet.warm_s / plain.warm_s, 2), "", "", COMMAND, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
