"""Training sets of 100,000 shown POIs beside a brute-force oracle, over a log of releases in which much goes wrong.

    python -m tests.bench.training_set [--rows 100000] [--spark-rows 2000]

The world (`tests/udfs/training_sets/world.py`) has two models, failed, late and repeated publications, a clock that was
wrong, a rollback, a withdrawn release, corrections of older days, POIs that open, move and close, and overlapping
backfills; requests lie at the very millisecond of publications and at the edges of days. `training-set-leaks` counts
rows with a feature that was not known at the request: each vector names the stored row that it comes from, so this is
told from the answer alone. `training-set-equals-oracle` is 1 if every answer is the oracle's, through Arrow and, for
some rows, through Spark.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from conf.results import record
from conf.settings import Settings, SparkSettings
from etl.spark.session import open_session
from tests.udfs.training_sets.world import (
    CANDIDATE,
    DAY_MS,
    Answer,
    World,
    ask_oracle,
    build_world,
    make_shown,
    start_ms,
)
from udfs.training_sets.reader import read_training_set
from udfs.training_sets.views import FEATURE_COLUMNS, Clock

LOGGER = logging.getLogger(__name__)
COMMAND = "make bench-training-set"
CLOCKS: tuple[tuple[Clock, str], ...] = (("published", ""), ("day", ""), ("day", CANDIDATE))
NEVER = 1 << 62


def answer_of(row: Mapping[str, Any]) -> Answer:
    """Returns the features of a row of the answer in the oracle's form."""
    found = {name: row[name] for name in FEATURE_COLUMNS if name != "score"}
    for name in ("user_embedding", "poi_embedding"):
        found[name] = None if found[name] is None else tuple(found[name])
    return Answer(**found)


def known_times(world: World) -> dict[str, dict[tuple[float, ...], int]]:
    """Returns when each vector became known: by publication, and by the day that it was made at the end of."""
    published: dict[tuple[float, ...], int] = {}
    made: dict[tuple[float, ...], int] = {}
    for name in ("user_embeddings", "poi_embeddings"):
        for release in world.releases:
            versions = cast(dict[str, int], release["table_versions"])
            for row in world.tables.rows[name][versions[name]]:
                vector = tuple(cast(Iterable[float], row["embedding"]))
                at = cast(int, release["published_ts_ms"])
                published[vector] = min(published.get(vector, NEVER), at + 1)
        for rows in (*world.tables.rows[name], *world.tables.rows[f"backfilled_{name}"]):
            for row in rows:
                made[tuple(cast(Iterable[float], row["embedding"]))] = (
                    start_ms(cast(Any, row["day"])) + DAY_MS
                )
    return {"published": published, "day": made}


def count_leaks(rows: Iterable[Mapping[str, Any]], known: Mapping[tuple[float, ...], int]) -> int:
    """Counts rows with a vector that was not known at the request."""
    leaks = 0
    for row in rows:
        vectors = [row[name] for name in ("user_embedding", "poi_embedding") if row[name] is not None]
        leaks += any(known.get(tuple(vector), NEVER) > row["request_ts_ms"] for vector in vectors)
    return leaks


def compare_through_spark(world: World, num_rows: int) -> bool:
    """Tells whether Spark gives the rows that Arrow gives."""
    spark = open_session(Settings(spark=SparkSettings(shuffle_partitions=2)), "training sets")
    shown = make_shown(world, num_rows, seed=3)
    numbered = shown.append_column("row", pa.array(range(shown.num_rows)))
    frame = spark.createDataFrame(numbered)
    is_equal = True
    for clock, model in CLOCKS:
        by_arrow = read_training_set(None, world.root, numbered, clock=clock, model=model, allow_mixed=True)
        by_spark = read_training_set(spark, world.root, frame, clock=clock, model=model, allow_mixed=True)
        rows = sorted((row.asDict() for row in by_spark.collect()), key=lambda row: row["row"])
        is_equal &= rows == by_arrow.to_pylist()
    spark.stop()
    return is_equal


def main() -> int:
    """Measures, records, and returns 0 if nothing leaked and everything was equal."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--spark-rows", type=int, default=2_000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    leaks, different, texts = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(Path(folder) / "warehouse")
        known = known_times(world)
        shown = make_shown(world, options.rows)
        for clock, model in CLOCKS:
            started = time.perf_counter()
            found = read_training_set(None, world.root, shown, clock=clock, model=model, allow_mixed=True)
            seconds = time.perf_counter() - started
            rows = found.to_pylist()
            own = count_leaks(rows, known[clock])
            wrong = sum(answer_of(row) != ask_oracle(world, row, clock, model) for row in rows)
            answered = sum(row["user_embedding"] is not None for row in rows)
            leaks, different = leaks + own, different + wrong
            texts.append(f"{clock}{' of ' + model if model else ''}: {len(rows)} rows, {answered} with a user vector, "
                         f"{own} leaks, {wrong} not as the oracle says, {seconds:.1f} s")  # fmt: skip
            LOGGER.info("%s", texts[-1])
        is_equal = compare_through_spark(world, options.spark_rows)
    notes = "simulated world; " + "; ".join(texts) + (
        f"; through Spark {options.spark_rows} rows, {'equal' if is_equal else 'DIFFERENT'}"
    )  # fmt: skip
    results = [
        record("training-set-leaks", leaks, "rows", "== 0", COMMAND, notes),
        record(
            "training-set-equals-oracle", int(not different and is_equal), "1 = yes", "== 1", COMMAND, notes
        ),
    ]
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
