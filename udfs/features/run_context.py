"""The context that the feature jobs of one run share: a session, inputs at pinned versions, a model."""

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
"""Spark forks the workers of these jobs from a process that has imported torch."""


@dataclass(frozen=True)
class FeatureRun:
    """The context that the feature jobs of one run share.

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
        """Returns path and pinned version of an input, for workers and models that read without Spark."""
        return TableAt(table_path(self.spark, self.settings.storage.root, name), self.versions[name])

    def read_output(self, name: str) -> DataFrame:
        """Reads the rows of a feature table that earlier runs wrote; none before the first run."""
        root = self.settings.storage.root
        if table_exists(self.spark, root, name):
            return read_table(self.spark, root, name)
        return local_frame(self.spark, [], spark_schema(TABLES[name]))


def open_run(context: JobContext, inputs: Sequence[str], copied: Sequence[str] = ()) -> FeatureRun:
    """Opens the session, pins the inputs and checks that model and index fit each other.

    Args:
        context: of the job.
        inputs: tables that are read for every model.
        copied: further tables, read if the model copies from the crowd.

    Raises:
        MissingInputError: an input or the model does not exist.
        IndexVersionError, CapacityError, FingerprintError: the model does not fit the index.
        ErasureUnfinishedError: an erasure was begun and has not ended.
    """
    settings = context.settings
    refuse_unfinished_erasure(settings.storage.artifacts)
    spark = open_session(settings, f"spacetime-gr {context.job} {context.day}", WORKER_PROPERTIES)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", settings.features.batch_rows)
    # Inputs are pinned once for all tables of the run: none of them sees a commit that comes meanwhile.
    versions = {name: pin_version(spark, settings.storage.root, name, context.day) for name in inputs}
    model = serve_model(spark, context.options.model or settings.features.model, settings)
    if model.copies_from_crowd:
        versions |= {name: pin_version(spark, settings.storage.root, name, context.day) for name in copied}
    run = FeatureRun(spark, settings, context.day, context.run_id, model, versions, context.dry_run)
    check_poi_index(run)
    return run


def pin_version(spark: SparkSession, root: str, name: str, day: date) -> int:
    """Returns the version of an input to read: that of the day if rows change in place, else the latest."""
    if TABLES[name].write == "merge":
        return table_version_of_day(spark, root, name, day)
    return table_version(spark, root, name)


def check_poi_index(run: FeatureRun) -> None:
    """Checks version and size of the day's index against the model; raises as `check_index`."""
    model, version = run.model, run.settings.index.version
    known = keep_known(run.read("poi_index"), day=run.day, index_version=version)
    size = known.agg(
        *(F.coalesce(F.max(name) + 1, F.lit(0)) for name in ("block_id", "inner_id", "category_id"))
    ).first()
    assert size is not None
    check_index(model, index_version=version, num_blocks=size[0], max_inner=size[1], num_categories=size[2])
