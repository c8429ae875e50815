"""What the feature jobs of one run share: a session, inputs at pinned versions, a model that fits the index."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext
from conf.settings import Settings
from conf.tables import TABLES
from etl.columns.poi_slots import keep_known
from etl.delta.commits import table_version_of_day
from etl.delta.contracts import spark_schema
from etl.delta.erasure_plan import refuse_unfinished_erasure
from etl.delta.retention import table_path
from etl.delta.storage import read_table, table_exists, table_version
from etl.spark.session import local_frame, open_session
from models.data.dataset import TableAt
from udfs.features.model_cache import ServedModel, check_index, serve_model

WORKER_PROPERTIES = {"spark.python.daemon.module": "udfs.worker_daemon"}
"""Workers of these jobs are forked from a process that has imported torch."""


@dataclass(frozen=True)
class FeatureRun:
    """What the feature jobs of one run share.

    Attributes:
        spark: open session.
        settings: all settings.
        day: the job's day.
        run_id: goes into every row.
        model: checked against the index.
        versions: Delta version of every input, pinned at the start.
        dry_run: compute and count, write nothing.
    """

    spark: SparkSession
    settings: Settings
    day: date
    run_id: str
    model: ServedModel
    versions: dict[str, int]
    dry_run: bool

    def read(self, name: str) -> DataFrame:
        """Reads an input at its pinned version."""
        return read_table(self.spark, self.settings.storage.root, name, version=self.versions[name])

    def locate(self, name: str) -> TableAt:
        """Returns an input at its pinned version, as workers and models read it: without Spark."""
        return TableAt(table_path(self.spark, self.settings.storage.root, name), self.versions[name])

    def read_output(self, name: str) -> DataFrame:
        """Reads what earlier nights wrote into a feature table; no rows before the first night."""
        root = self.settings.storage.root
        if table_exists(self.spark, root, name):
            return read_table(self.spark, root, name)
        return local_frame(self.spark, [], spark_schema(TABLES[name]))


def open_run(context: JobContext, inputs: Sequence[str], copied: Sequence[str] = ()) -> FeatureRun:
    """Opens the session, pins the inputs and checks that model and index fit each other.

    Args:
        context: of the job.
        inputs: tables that are read whatever the model.
        copied: tables that are read too if the model copies from the crowd.

    Raises:
        MissingInputError: an input or the model is not there.
        IndexVersionError, CapacityError, FingerprintError: the model does not fit the index.
        ErasureUnfinishedError: an erasure was begun and has not ended.
    """
    settings = context.settings
    refuse_unfinished_erasure(settings.storage.artifacts)
    spark = open_session(settings, f"spacetime-gr {context.job} {context.day}", WORKER_PROPERTIES)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", settings.features.batch_rows)
    # Inputs are pinned once for all tables of the night: what is committed meanwhile is seen by none.
    versions = {name: pin_version(spark, settings.storage.root, name, context.day) for name in inputs}
    model = serve_model(spark, context.options.model or settings.features.model, settings)
    if model.copies_from_crowd:
        versions |= {name: pin_version(spark, settings.storage.root, name, context.day) for name in copied}
    run = FeatureRun(spark, settings, context.day, context.run_id, model, versions, context.dry_run)
    check_poi_index(run)
    return run


def pin_version(spark: SparkSession, root: str, name: str, day: date) -> int:
    """Returns the version of an input to read: the latest; as of the day if rows are changed in place."""
    if TABLES[name].write == "merge":
        return table_version_of_day(spark, root, name, day)
    return table_version(spark, root, name)


def check_poi_index(run: FeatureRun) -> None:
    """Checks version and size of tonight's index against the model; raises as `check_index`."""
    model, version = run.model, run.settings.index.version
    known = keep_known(run.read("poi_index"), day=run.day, index_version=version)
    size = known.agg(
        *(F.coalesce(F.max(name) + 1, F.lit(0)) for name in ("block_id", "inner_id", "category_id"))
    ).first()
    assert size is not None
    check_index(model, index_version=version, num_blocks=size[0], max_inner=size[1], num_categories=size[2])
