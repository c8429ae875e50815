"""Input tables of the feature jobs with random users and POIs, written straight to Delta, and the jobs run on them."""

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from conf.cli import JobContext, JobSummary
from conf.settings import Settings, SparkSettings, StorageSettings
from conf.tables import TABLES
from etl.delta.contracts import spark_schema
from etl.delta.storage import merge_rows, replace_day
from etl.spark.session import open_session
from models.data.arrays import IntArray
from tests.bench.serving_city import LAYOUT, random_histories
from udfs.features.run_context import WORKER_PROPERTIES
from udfs.features.runner import run_features

NUM_CORES = 2


def settings_for(root: str, *, num_tasks: int = 8, quick_start: bool = True) -> Settings:
    """Returns settings with a task slot per core and the feature jobs' defaults; for a small city a quick start."""
    spark = SparkSettings(
        master=f"local[{NUM_CORES}]",
        driver_memory="2g",
        shuffle_partitions=num_tasks,
        quick_start=quick_start,
    )
    return Settings(
        spark=spark,
        storage=StorageSettings(root=f"{root}/warehouse", artifacts=f"{root}/artifacts"),
    )


def open_features(settings: Settings) -> SparkSession:
    """Opens the session that the feature jobs use."""
    spark = open_session(settings, "bench of inference", WORKER_PROPERTIES)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", settings.features.batch_rows)
    return spark


def run_jobs(settings: Settings, day: date, model: Path, names: Sequence[str]) -> JobSummary:
    """Runs feature jobs of a day as the command line does, without the process."""
    options = argparse.Namespace(model=str(model))
    return run_features(JobContext("bench", day, settings, "bench", False, options), names)


class Users:
    """Users with whole lives of actions; a day shows the first so many of them."""

    def __init__(self, lengths: Sequence[int], seed: int = 0) -> None:
        self.lengths = np.asarray(lengths, np.int64)
        self.columns = random_histories(self.lengths.tolist(), seed=seed)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def states(self, users: IntArray, sizes: IntArray) -> pa.Table:
        """Returns rows of `action_sequences` of some users, who have done `sizes` actions each, without the day."""
        index = np.concatenate([np.arange(s, s + n) for s, n in zip(self.starts[users], sizes, strict=True)])
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        columns = {
            name: pa.ListArray.from_arrays(offsets, column.values.take(pa.array(index)))
            for name, column in self.columns.items()
            if name not in ("profile_ids", "seq_len")
        }
        for name, value in (("poi_ids", "p"), ("is_interests", True), ("is_travels", False)):
            columns[name] = pa.ListArray.from_arrays(offsets, pa.array([value] * len(index)))
        constants = {
            "index_version": 1,
            "num_actions": 1,
            "richness": 1.0,
            "pattern": "local",
            "is_simulated": True,
        }
        return pa.table(
            {
                **columns,
                **{name: pa.array([value] * len(users)) for name, value in constants.items()},
                "profile_ids": pa.array([[]] * len(users), pa.list_(pa.int32())),
                "seq_len": pa.array(sizes, pa.int32()),
                "user_id": pa.array([f"u{number:06d}" for number in users]),
            }
        )


def make_slots(numbers: IntArray, places: IntArray, *, day: date, **changes: object) -> pa.Table:
    """Returns slots of `poi_index` for POIs of these numbers at these places of the layout, opened on the day.

    Changes are a value for all, or a list with one for each.
    """
    blocks, inners = places // LAYOUT.max_inner, places % LAYOUT.max_inner
    row: dict[str, object] = {
        "index_version": 1, "valid_from": day, "valid_to": None, "indexed_day": day, "closed_day": None, "name": "POI",
        "text": "POI", "changed_day": day, "past_details": None, "is_simulated": True,
        "poi_id": [f"p{number:06d}" for number in numbers], "block_id": blocks.tolist(), "inner_id": inners.tolist(),
        "poi_lon": (4.9 + 0.0002 * blocks).tolist(), "poi_lat": (52.3 + 0.0002 * inners).tolist(),
        "category_id": ((blocks * 31 + inners) % LAYOUT.num_categories).tolist(),
    }  # fmt: skip
    every = {
        name: value if isinstance(value, list) else [value] * len(numbers)
        for name, value in {**row, **changes}.items()
    }
    return pa.table({name: pa.array(values) for name, values in every.items()})


def write(spark: SparkSession, root: str, name: str, rows: pa.Table, day: date) -> None:
    """Writes the day's rows of an input table."""
    fields = [field for field in spark_schema(TABLES[name]).fields if field.name != "day"]
    typed = spark.createDataFrame(rows.select([field.name for field in fields]), StructType(fields))
    put = merge_rows if TABLES[name].write == "merge" else replace_day
    put(typed, name, root, day=day, run_id="bench", job="bench")
