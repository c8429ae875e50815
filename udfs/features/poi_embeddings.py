"""poi_index -> poi_embeddings: one unit vector per live POI, recomputed only when the POI changed.

In: the slots of the index that are live as of the day, and the vectors that this model computed on earlier days.
Out: rows of the day for POIs that are new or whose slot changed since their vector was computed; on a model's
first day these are all POIs. Run it with `python -m udfs poi_embeddings --day D`.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.tables import POI_EMBEDDINGS
from etl.columns.poi_slots import is_live, keep_known
from etl.spark.session import compute_once
from models.serving.inference import encode_pois
from udfs.features.isolation import RowFailure, run_isolated
from udfs.features.model_cache import ServedModel, load_model, task_device
from udfs.features.outcomes import (
    FeatureBuild,
    check_unit_vectors,
    complete_outcomes,
    outcome_schema,
    vectors_to_arrow,
)

SLOT_NAMES = ("poi_id", "block_id", "inner_id", "poi_lon", "poi_lat", "category_id")
EMITTED = ("poi_id", "embedding", "changed_day", "is_simulated")
REASON = "embed_poi_failed"


def pending_pois(slots: DataFrame, embedded: DataFrame, *, day: date) -> DataFrame:
    """Finds the live slots that changed since their vector was computed.

    Args:
        slots: known slots of one index version.
        embedded: rows of `poi_embeddings` that count as done; all of one model.
        day: live as of this day.

    Returns:
        The rows of `slots` to compute, all columns.
    """
    done = embedded.groupBy("poi_id").agg(F.max("changed_day").alias("done_day"))
    is_newer = F.col("done_day").isNull() | (F.col("done_day") < F.col("changed_day"))
    return slots.where(is_live(F.lit(day))).join(done, "poi_id", "left").where(is_newer).drop("done_day")


def build_poi_embeddings(
    poi_index: DataFrame,
    embedded: DataFrame,
    *,
    day: date,
    model: ServedModel,
    run_id: str,
    micro_batch: int,
    num_partitions: int,
) -> FeatureBuild:
    """Plans the vectors of the day; arguments as in `build_user_embeddings`, from `poi_index`."""
    earlier = (F.col("model_version") == model.model_version) & (F.col("day") < F.lit(day))
    known = keep_known(poi_index, day=day, index_version=model.index_version)
    todo = compute_once(pending_pois(known, embedded.where(earlier), day=day))
    ordered = todo.repartition(num_partitions, "poi_id").sortWithinPartitions(
        "block_id", "inner_id", "poi_id"
    )
    emitted = ordered.select(*SLOT_NAMES, "changed_day", "is_simulated").mapInArrow(
        partial(embed_pois, model=model, micro_batch=micro_batch),
        outcome_schema(POI_EMBEDDINGS, EMITTED),
    )
    return FeatureBuild(
        unit=("poi_id",),
        todo=todo.select("poi_id"),
        outcomes=complete_outcomes(emitted, POI_EMBEDDINGS, day=day, model=model, run_id=run_id),
        index_versions=todo.select("index_version").distinct(),
    )


def embed_pois(
    batches: Iterator[pa.RecordBatch], *, model: ServedModel, micro_batch: int
) -> Iterator[pa.RecordBatch]:
    """Runs the POI tower in a worker: slots in, vectors or failures out, in the same order."""
    bundle, device = load_model(model), task_device()

    def encode(batch: pa.RecordBatch) -> Sequence[np.ndarray | RowFailure]:
        return check_unit_vectors(encode_pois(bundle, batch, micro_batch=micro_batch, device=device))

    for batch in batches:
        yield vectors_to_arrow(
            batch, run_isolated(encode, batch, micro_batch=micro_batch), EMITTED, reason=REASON
        )
