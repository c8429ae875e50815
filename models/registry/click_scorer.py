"""The bundle as an MLflow model: MLflow loads it by importing this file, so nothing is pickled.

`mlflow.pyfunc.load_model("models:/spacetime-gr@champion").predict(frame)` takes one row per request with the
history and candidates that `SIGNATURE` names (columns of `ranking_samples`) and returns the click logits of
its candidates.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from conf.tables import RANKING_SAMPLES, Column
from models.data.batch import HISTORY_INPUTS
from models.serving.bundle import ModelBundle, load_bundle
from models.serving.inference import score_candidates
from models.training.posttraining import CANDIDATE_INPUTS, REQUEST_INPUTS

INPUT_COLUMNS = (*REQUEST_INPUTS, *CANDIDATE_INPUTS, *(name for name in HISTORY_INPUTS if name != "seq_len"))
OUTPUT_COLUMN = "click_logits"
_MLFLOW_TYPES = {
    "string": DataType.string,
    "int": DataType.integer,
    "bigint": DataType.long,
    "double": DataType.double,
    "float": DataType.float,
    "boolean": DataType.boolean,
}
_ARROW_TYPES = {
    "string": pa.string(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "float": pa.float32(),
    "boolean": pa.bool_(),
}


class ClickScorer:
    """The model object that MLflow calls."""

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Returns one list of click logits per request."""
        columns = {name: RANKING_SAMPLES.column(name) for name in INPUT_COLUMNS}
        arrays = {
            name: pa.array(list(model_input[name]), type=_arrow_type(column))
            for name, column in columns.items()
        }
        logits = score_candidates(self.bundle, pa.record_batch(arrays))
        return pd.DataFrame(
            {OUTPUT_COLUMN: [row_logits.tolist() for row_logits in logits]}, index=model_input.index
        )


def _load_pyfunc(path: str) -> ClickScorer:
    """Loads the model; MLflow's entry point."""
    return ClickScorer(load_bundle(Path(path)))


def _mlflow_column(column: Column) -> ColSpec:
    if column.is_array:
        element = column.type.removeprefix("array<").removesuffix(">")
        return ColSpec(Array(_MLFLOW_TYPES[element]), column.name)
    return ColSpec(_MLFLOW_TYPES[column.type], column.name, required=not column.nullable)


def _arrow_type(column: Column) -> pa.DataType:
    if column.is_array:
        return pa.list_(_ARROW_TYPES[column.type.removeprefix("array<").removesuffix(">")])
    return _ARROW_TYPES[column.type]


SIGNATURE = ModelSignature(
    inputs=Schema([_mlflow_column(RANKING_SAMPLES.column(name)) for name in INPUT_COLUMNS]),
    outputs=Schema([ColSpec(Array(DataType.float), OUTPUT_COLUMN)]),
)
