"""The output of a feature job: rows of its contract, each with its values or the reason why it was refused.

Workers return Arrow batches of `outcome_schema`: columns of the table's contract plus `reason`, `detail` and
`payload`, which are null in good rows. The driver side of a job splits them into the feature table and
`quarantined_rows`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from conf.tables import QUARANTINED_ROWS, TableContract
from etl.delta.contracts import spark_schema
from udfs.features.isolation import RowFailure
from udfs.features.model_cache import ServedModel

REFUSAL_COLUMNS = ("reason", "detail", "payload")
Refusal = tuple[str | None, str | None, str | None]
"""One value per refusal column; all None for a good row."""


@dataclass(frozen=True)
class FeatureBuild:
    """The plan of one feature job; nothing has run yet.

    Attributes:
        unit: columns that name one unit of work; each unit ends in the table or in the quarantine.
        todo: one row per unit.
        outcomes: the contract's columns, nullable, plus `REFUSAL_COLUMNS`.
        index_versions: the index versions of the rows that the model will read, one column `index_version`.
        judged: the delivered rows with a verdict each; only accepted ones are processed. None = all rows are.
    """

    unit: tuple[str, ...]
    todo: DataFrame
    outcomes: DataFrame
    index_versions: DataFrame
    judged: DataFrame | None = None


def outcome_schema(contract: TableContract, names: Sequence[str]) -> StructType:
    """Returns the Spark schema of a worker's output: columns of the contract and the refusal columns."""
    fields = spark_schema(contract)
    computed = [StructField(name, fields[name].dataType, nullable=True) for name in names]
    return StructType([*computed, *(StructField(name, StringType()) for name in REFUSAL_COLUMNS)])


def complete_outcomes(
    outcomes: DataFrame, contract: TableContract, *, day: date | Column, model: ServedModel, run_id: str
) -> DataFrame:
    """Adds day and lineage to the workers' output, in the contract's types and order; `day` may differ by row."""
    stamped = (
        outcomes.withColumn("day", day if isinstance(day, Column) else F.lit(day))
        .withColumn("model_version", F.lit(model.model_version))
        .withColumn("index_version", F.lit(model.index_version))
        .withColumn("run_id", F.lit(run_id))
        .withColumn("is_simulated", F.col("is_simulated") | F.lit(model.is_simulated))
    )
    typed = [F.col(field.name).cast(field.dataType) for field in spark_schema(contract).fields]
    return stamped.select(*typed, *REFUSAL_COLUMNS)


def keep_accepted(outcomes: DataFrame) -> DataFrame:
    """Keeps the rows of the feature table."""
    return outcomes.where(F.col("reason").isNull()).drop(*REFUSAL_COLUMNS)


def build_refused(outcomes: DataFrame, *, day: date, source_table: str) -> DataFrame:
    """Builds rows of `quarantined_rows` from the refused outcomes."""
    refused = outcomes.where(F.col("reason").isNotNull()).select(
        F.lit(day).alias("day"),
        F.lit(source_table).alias("source_table"),
        *(F.coalesce(name, F.lit("null")).alias(name) for name in REFUSAL_COLUMNS),
        F.sha2(F.coalesce("payload", F.lit("null")), 256).alias("row_hash"),
        F.lit(0).alias("duplicate_no"),
    )
    return refused.select(*QUARANTINED_ROWS.column_names)


def with_refusals(columns: dict[str, pa.Array], refusals: Sequence[Refusal]) -> pa.RecordBatch:
    """Builds the batch that a worker returns: computed columns, then the refusal columns."""
    texts = zip(*refusals, strict=True) if refusals else ([], [], [])
    refused = {
        name: pa.array(values, pa.string()) for name, values in zip(REFUSAL_COLUMNS, texts, strict=True)
    }
    return pa.RecordBatch.from_pydict({**columns, **refused})


def row_payload(batch: pa.RecordBatch, row: int, names: Sequence[str], **more: object) -> str:
    """Returns one row of a batch and the values of `more` as JSON; NaN, which JSON lacks, becomes null."""
    values = batch.slice(row, 1).select(list(names)).to_pylist()[0]
    return json.dumps(_without_nan({**values, **more}), default=str, ensure_ascii=False)


def check_unit_vectors(vectors: np.ndarray) -> list[np.ndarray | RowFailure]:
    """Returns the vectors, with a failure in place of each that is not finite or not of unit length."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return [
        vector if abs(length - 1) < 1e-3 else RowFailure(f"the vector has length {length}, not 1")  # NaN too
        for vector, length in zip(vectors, lengths, strict=True)
    ]


def vectors_to_arrow(
    batch: pa.RecordBatch, vectors: Sequence[np.ndarray | RowFailure], emitted: Sequence[str], *, reason: str
) -> pa.RecordBatch:
    """Adds vectors to the columns of their rows; a failed row is refused with the whole row as payload."""
    refusals: list[Refusal] = [
        (reason, vector.error, row_payload(batch, row, batch.schema.names))
        if isinstance(vector, RowFailure)
        else (None, None, None)
        for row, vector in enumerate(vectors)
    ]
    embedding = vector_column(vectors)
    columns = {name: embedding if name == "embedding" else batch.column(name) for name in emitted}
    return with_refusals(columns, refusals)


def vector_column(vectors: Sequence[np.ndarray | RowFailure]) -> pa.Array:
    """Builds an array<float> column from one vector per row; null where the row failed."""
    lengths = [0 if isinstance(vector, RowFailure) else len(vector) for vector in vectors]
    good = [vector for vector in vectors if not isinstance(vector, RowFailure)]
    values = np.concatenate(good).astype(np.float32) if good else np.empty(0, np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    is_null = np.array([isinstance(vector, RowFailure) for vector in vectors], dtype=bool)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=pa.array(is_null))


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return value
