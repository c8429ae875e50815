"""poi_index -> poi_vectors: the text of every POI as a vector, computed once per new or changed text.

In: the POIs that are live as of the day, and the vectors that this encoder computed on earlier days. Out: rows of the
day for POIs without a vector of their current text. The encoder is frozen and pluggable (setting
`features.text_encoder`); post-training fuses the vectors (`models.training.multimodal`). Run it before a training, with
`python -m udfs poi_vectors --day D`; it needs no model.
"""

from collections.abc import Iterator
from datetime import date
from functools import cache, partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from conf.cli import JobContext, JobSummary
from conf.tables import POI_VECTORS
from etl.columns.poi_slots import is_live, keep_known
from etl.delta.contracts import spark_schema
from etl.jobs.runner import JobRun
from etl.spark.session import compute_once, open_session
from models.text_encoder import TextEncoder, load_encoder

EMITTED = ("poi_id", "text_sha256", "vector", "is_simulated")


def run_poi_vectors(context: JobContext) -> JobSummary:
    """Computes the vectors of the day.

    Raises:
        MissingInputError: there is no index, or the encoder is not installed.
    """
    spark = open_session(context.settings, f"spacetime-gr {context.job} {context.day}")
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", context.settings.features.batch_rows)
    run, name = JobRun(context, spark), context.settings.features.text_encoder
    encoder = load_encoder(name)  # on the driver too: a missing package fails before a task starts
    slots = keep_known(
        run.read("poi_index", made_by="poi_index"),
        day=context.day,
        index_version=context.settings.index.version,
    )
    earlier = run.read_or_empty("poi_vectors").where(
        (F.col("day") < F.lit(context.day)) & (F.col("encoder") == encoder.name)
    )
    todo = compute_once(pending_texts(slots, earlier, day=context.day))
    with run.step("count"):
        run.summary.rows_in = run.summary.rows_out = todo.count()
    fields = spark_schema(POI_VECTORS)
    emitted = StructType([fields[column] for column in EMITTED])
    rows = todo.mapInArrow(partial(encode_texts, encoder=name), emitted)
    stamped = rows.withColumns(
        {"day": F.lit(context.day), "encoder": F.lit(encoder.name), "run_id": F.lit(context.run_id)}
    )
    run.replace(stamped.select(*POI_VECTORS.column_names), "poi_vectors")
    run.summary.notes |= {"encoder": encoder.name, "dim": encoder.dim}
    return run.summary


def pending_texts(slots: DataFrame, encoded: DataFrame, *, day: date) -> DataFrame:
    """Finds the live POIs whose text has no vector yet.

    Args:
        slots: known slots of one index version.
        encoded: rows of `poi_vectors` of one encoder that count as done.
        day: live as of this day.

    Returns:
        poi_id, text, text_sha256, is_simulated; one row per POI.
    """
    texts = slots.where(is_live(F.lit(day))).select(
        "poi_id", "text", F.sha2("text", 256).alias("text_sha256"), "is_simulated"
    )
    # The newest vector decides: a text that is changed back gets its old vector on a new day.
    last = encoded.groupBy("poi_id").agg(F.max_by("text_sha256", "day").alias("done_sha256"))
    is_pending = F.col("done_sha256").isNull() | (F.col("done_sha256") != F.col("text_sha256"))
    return texts.join(last, "poi_id", "left").where(is_pending).drop("done_sha256")


def encode_texts(batches: Iterator[pa.RecordBatch], *, encoder: str) -> Iterator[pa.RecordBatch]:
    """Encodes texts in a worker, which loads the encoder once."""
    for batch in batches:
        vectors = _load_once(encoder).encode(batch.column("text").to_pylist())
        lengths = np.full(len(vectors) + 1, vectors.shape[1], dtype=np.int32)
        lengths[0] = 0
        lists = pa.ListArray.from_arrays(
            np.cumsum(lengths, dtype=np.int32), vectors.astype(np.float32).ravel()
        )
        columns = {name: lists if name == "vector" else batch.column(name) for name in EMITTED}
        yield pa.RecordBatch.from_pydict(columns)


@cache
def _load_once(name: str) -> TextEncoder:
    return load_encoder(name)
