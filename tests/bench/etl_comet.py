"""The project's own clean -> index -> sequences with Comet switched on: one side of `etl_accelerator`."""

from pyspark.sql import SparkSession

from tests.bench import etl_spark
from tests.bench.etl_spark import run

__all__ = ["run", "start"]


def start() -> SparkSession:
    """Opens the session of `etl_spark` with the accelerator that settings can switch on."""
    return etl_spark.start("comet")
