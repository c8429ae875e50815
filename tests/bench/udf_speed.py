"""User embeddings through Spark against plain torch: the same rows, batches and cores, in one run.

    python -m tests.bench.udf_speed

Spark: the plan of the job `user_embeddings` (Delta -> who is to be done -> shuffle -> Arrow -> model -> Arrow), all
rows thrown away at the end; one task per core, workers started and the model loaded by a run before, which is told
apart. Plain torch: a process per core, a thread each, the job's own batches ready as tensors in memory; nothing but the
forward passes is timed. Both take their tasks in the same order, whoever is free first. The two are run by turns;
records the median ratio of rows/s, `udf-vs-plain-torch`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.results import record
from conf.settings import Settings
from conf.tables import HISTORY_NAMES
from etl.delta.storage import read_table
from models.data.batch import HistoryBatch, collate_history
from models.network.decoder import SpacetimeDecoder
from models.serving.bundle import load_bundle
from models.serving.inference import batch_by_length, history_lengths
from tests.bench.feature_tables import NUM_CORES, Users, open_features, settings_for, write
from tests.bench.serving_city import SERVING, random_decoder, write_bundle
from udfs.features.model_cache import ServedModel, serve_model
from udfs.features.user_embeddings import arrange_states, build_user_embeddings

COMMAND = "make bench-udf"
DAY = date(2026, 3, 1)
NUM_TASKS = 8
SHORTEST, LONGEST = 10, 300
Task = list[HistoryBatch]

_tasks: list[Task] = []
_models: dict[Path, SpacetimeDecoder] = {}
"""Of a worker process."""


def make_users(num_users: int) -> pa.Table:
    """Returns users with 10 to 300 actions, each length in its logarithm as frequent as any other."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST), num_users)).astype(np.int64)
    return Users(lengths.tolist()).states(np.arange(num_users), lengths)


def plan(spark: SparkSession, settings: Settings, model: ServedModel) -> DataFrame:
    """Returns the outcomes of the job on a first night."""
    nothing = spark.createDataFrame([], "user_id string, sequence_day date, day date, model_version string")
    build = build_user_embeddings(
        read_table(spark, settings.storage.root, "action_sequences"),
        nothing.withColumn("is_current", F.lit(True)),
        day=DAY,
        model=model,
        run_id="bench",
        micro_batch=settings.features.micro_batch,
        num_partitions=NUM_TASKS,
    )
    return build.outcomes


def collect_tasks(spark: SparkSession, settings: Settings) -> list[Task]:
    """Returns the tensors of the job's forward passes, task by task."""
    states = read_table(spark, settings.storage.root, "action_sequences").withColumnRenamed(
        "day", "sequence_day"
    )
    arranged = arrange_states(states, num_partitions=NUM_TASKS).withColumn("task", F.spark_partition_id())
    rows = arranged.select("task", "user_id", "seq_len", "profile_ids", *HISTORY_NAMES).toArrow()
    tasks = []
    for number in range(NUM_TASKS):
        own = rows.filter(pc.equal(rows["task"], number))
        own = own.sort_by([("seq_len", "ascending"), ("user_id", "ascending")])
        passes: Task = []
        size = settings.features.micro_batch
        for start in range(0, own.num_rows, size):  # as `run_isolated` cuts them
            batch = own.slice(start, size).combine_chunks().to_batches()[0]
            for at in batch_by_length(history_lengths(batch), size):
                passes.append(collate_history(batch.take(pa.array(at))))
        tasks.append(passes)
    return tasks


@torch.inference_mode()
def run_task(folder: Path, number: int) -> int:
    """Embeds the users of a task in a worker process, which keeps the model; returns how many."""
    torch.set_num_threads(1)
    if folder not in _models:
        _models[folder] = load_bundle(folder).model("sft_embedding")
    model = _models[folder]
    vectors = [model.user_state(model.encode_prefix(history)).numpy() for history in _tasks[number]]
    return sum(map(len, vectors))


def measure(spark: SparkSession, settings: Settings, folder: Path, *, repeats: int) -> tuple[float, str]:
    """Returns the median ratio of rows/s and the notes."""
    model = serve_model(spark, str(folder), settings)
    started = time.perf_counter()
    plan(spark, settings, model).write.format("noop").mode("overwrite").save()
    first_s = time.perf_counter() - started
    _tasks.extend(collect_tasks(spark, settings))
    num_users = sum(len(history.lengths_B) for task in _tasks for history in task)
    spark_s, torch_s = [], []
    # Forked, so that the tensors are there without being sent.
    with ProcessPoolExecutor(NUM_CORES, mp_context=get_context("fork")) as pool:
        list(
            pool.map(run_task, [folder] * NUM_TASKS, range(NUM_TASKS))
        )  # the model is loaded, memory is warm
        for _ in range(repeats):
            started = time.perf_counter()
            plan(spark, settings, model).write.format("noop").mode("overwrite").save()
            spark_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            done = sum(pool.map(run_task, [folder] * NUM_TASKS, range(NUM_TASKS)))
            torch_s.append(time.perf_counter() - started)
            assert done == num_users, f"plain torch did {done} of {num_users} users"
    ratios = [other / own for own, other in zip(spark_s, torch_s, strict=True)]
    notes = (
        f"random weights, {SERVING.num_layers} layers, width {SERVING.hidden_dim}, float32; {num_users} users with "
        f"{SHORTEST} to {LONGEST} actions, {NUM_TASKS} tasks on {NUM_CORES} cores, passes of "
        f"{settings.features.micro_batch}; Spark from Delta to nowhere "
        f"{num_users / statistics.median(spark_s):.1f} rows/s, plain torch on tensors in memory "
        f"{num_users / statistics.median(torch_s):.1f}; seconds Spark {_list(spark_s)}, torch {_list(torch_s)}; "
        f"first run with start of the workers and load of the model {first_s:.1f} s"
    )
    return statistics.median(ratios), notes


def _list(seconds: list[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in seconds)


def main() -> int:
    """Measures, records, and returns 0 if the bar is reached."""
    parser = argparse.ArgumentParser(description="Records what Spark costs around the model in results/.")
    parser.add_argument("--users", type=int, default=1_200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="udf-") as folder:
        write_bundle(Path(folder), random_decoder(SERVING))
        settings = settings_for(folder, num_tasks=NUM_TASKS, quick_start=False)
        started = time.perf_counter()
        spark = open_features(settings)
        session_s = time.perf_counter() - started
        write(spark, settings.storage.root, "action_sequences", make_users(options.users), DAY)
        ratio, notes = measure(spark, settings, Path(folder) / "bundle", repeats=options.repeats)
        spark.stop()
    notes += f", of the session {session_s:.1f} s, both apart"
    result = record("udf-vs-plain-torch", round(ratio, 3), "", ">= 0.9", COMMAND, notes, options.results)
    print(f"udf-vs-plain-torch {ratio:.3f}: {notes}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
