"""action_sequences -> user_embeddings: a unit vector per user, recomputed only when the user has acted since.

In: the latest row of `action_sequences` per user as of the day, and the vectors that this model computed on
earlier days. Out: rows of the day for users whose vector is stale: they have acted since, or the day that it was
computed from was corrected. On a model's first day these are all users. The vector is as of the user's last action
with a neutral request, so it does not age, and rows of several days complete each other.
Run it with `python -m udfs user_embeddings --day D`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.tables import HISTORY_NAMES, USER_EMBEDDINGS
from etl.delta.commits import last_commits
from etl.spark.session import compute_once
from models.serving.inference import encode_users
from udfs.features.isolation import RowFailure, run_isolated
from udfs.features.model_cache import ServedModel, load_model, task_device
from udfs.features.outcomes import (
    FeatureBuild,
    check_unit_vectors,
    complete_outcomes,
    outcome_schema,
    vectors_to_arrow,
)

EMITTED = ("user_id", "embedding", "sequence_day", "is_simulated")
REASON = "embed_user_failed"


def mark_current(embedded: DataFrame, root: str) -> DataFrame:
    """Adds `is_current`: whether the vector was computed from what its day of `action_sequences` holds now.

    A correction of an older day rewrites rows that vectors were computed from; the commits show it. Days that the
    logs no longer cover count as unchanged.

    Args:
        embedded: rows of `user_embeddings`.
        root: table root.
    """
    sequence_commits, vector_commits = (
        last_commits(embedded.sparkSession, root, name) for name in ("action_sequences", "user_embeddings")
    )
    read = {day: commit.read.get("action_sequences") for day, commit in vector_commits.items()}
    known = {day: version for day, version in read.items() if version is not None}
    late = find_late({day: commit.version for day, commit in sequence_commits.items()}, known)
    before = {day: version for day, version in known.items() if version < max(late.values(), default=0)}
    is_late = _look_up(late, "sequence_day") > _look_up(before, "day")
    return embedded.withColumn("is_current", ~F.coalesce(is_late, F.lit(False)))


def find_late(committed: Mapping[date, int], read: Mapping[date, int]) -> dict[date, int]:
    """Returns the days whose states were committed after vectors had been computed from them: the few corrected ones.

    Args:
        committed: day of `action_sequences` -> version of its last commit.
        read: day of `user_embeddings` -> version of `action_sequences` that its last commit has read. A vector is
            never computed from a state of a later day.
    """
    late, oldest_read = {}, math.inf
    # From the newest day back: only vectors of this day or a later one can hold its state,
    # and `oldest_read` is the oldest version that any of those was computed from.
    for day in sorted({*committed, *read}, reverse=True):
        oldest_read = min(oldest_read, read.get(day, math.inf))
        if committed.get(day, -1) > oldest_read:
            late[day] = committed[day]
    return late


def pending_users(sequences: DataFrame, embedded: DataFrame, *, day: date) -> DataFrame:
    """Finds the users whose vector is missing or stale.

    Args:
        sequences: `action_sequences`, any days.
        embedded: rows of `user_embeddings` that count as done, all of one model, with `is_current`.
        day: the state is taken as of this day.

    Returns:
        `user_id` and `sequence_day`, the day of the user's latest row of `sequences`.
    """
    state = (
        sequences.where(F.col("day") <= F.lit(day)).groupBy("user_id").agg(F.max("day").alias("sequence_day"))
    )
    vector = F.max_by(F.struct(F.col("sequence_day").alias("done_day"), "is_current"), "day").alias("vector")
    done = embedded.groupBy("user_id").agg(vector).select("user_id", "vector.*")
    is_done = F.col("is_current") & (F.col("done_day") == F.col("sequence_day"))
    pending = state.join(done, "user_id", "left").where(~F.coalesce(is_done, F.lit(False)))
    return pending.select("user_id", "sequence_day")


def arrange_states(states: DataFrame, *, num_partitions: int) -> DataFrame:
    """Sorts states into the order in which the model reads them.

    With fixed partitions and a total order, every rerun puts the same rows into the same forward pass, so padding
    gives the same rounding. Neighbours have similar lengths, so padding is small.
    """
    ordered = states.repartition(num_partitions, "user_id").sortWithinPartitions("seq_len", "user_id")
    return ordered.select("user_id", "sequence_day", "seq_len", "profile_ids", *HISTORY_NAMES, "is_simulated")


def build_user_embeddings(
    sequences: DataFrame,
    embedded: DataFrame,
    *,
    day: date,
    model: ServedModel,
    run_id: str,
    micro_batch: int,
    num_partitions: int,
) -> FeatureBuild:
    """Plans the vectors of the day.

    Args:
        sequences: `action_sequences`, any days.
        embedded: `user_embeddings` with `is_current`, any days and models; only earlier days of this model
            count, so that a rerun of the day recomputes the same users.
        day: the job's day.
        model: the model to run.
        run_id: the job's run.
        micro_batch: rows per forward pass.
        num_partitions: tasks.
    """
    earlier = (F.col("model_version") == model.model_version) & (F.col("day") < F.lit(day))
    todo = compute_once(pending_users(sequences, embedded.where(earlier), day=day))
    # Histories are large, so only days with pending users are read: on most days one.
    days = [row["sequence_day"] for row in todo.select("sequence_day").distinct().collect()]
    pending_rows = sequences.where(F.col("day").isin(days)).withColumnRenamed("day", "sequence_day")
    states = pending_rows.join(todo, ["user_id", "sequence_day"])
    emitted = arrange_states(states, num_partitions=num_partitions).mapInArrow(
        partial(embed_users, model=model, micro_batch=micro_batch),
        outcome_schema(USER_EMBEDDINGS, EMITTED),
    )
    return FeatureBuild(
        unit=("user_id",),
        todo=todo,
        outcomes=complete_outcomes(emitted, USER_EMBEDDINGS, day=day, model=model, run_id=run_id),
        index_versions=states.select("index_version").distinct(),
    )


def embed_users(
    batches: Iterator[pa.RecordBatch], *, model: ServedModel, micro_batch: int
) -> Iterator[pa.RecordBatch]:
    """Runs the user tower in a worker: histories in, vectors or failures out, in the same order."""
    bundle, device = load_model(model), task_device()

    def encode(batch: pa.RecordBatch) -> Sequence[np.ndarray | RowFailure]:
        return check_unit_vectors(encode_users(bundle, batch, micro_batch=micro_batch, device=device))

    for batch in batches:
        yield vectors_to_arrow(
            batch, run_isolated(encode, batch, micro_batch=micro_batch), EMITTED, reason=REASON
        )


def _look_up(versions: Mapping[date, int], column: str) -> Column:
    """Returns the version of the day that a column names; null for other days."""
    if not versions:
        return F.lit(None).cast("bigint")
    pairs = [F.lit(item) for pair in sorted(versions.items()) for item in pair]
    return F.create_map(*pairs)[F.col(column)]
