"""Archives the classes that Spark and Delta load, once: `python -m etl.setup.class_archive`. Later JVMs map them.

Reading and verifying classes is a good part of the cost of a short job. The method is "Application Class-Data
Sharing" of the JDK (JEP 350). An archive is valid for the JDK and the class path that created it; any other JVM
ignores it.
"""

import logging
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from pyspark import SparkContext
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from conf.errors import SpacetimeError
from conf.settings import Settings, load_settings
from conf.tables import TABLES
from etl.delta.contracts import spark_schema
from etl.delta.storage import merge_rows, read_table, replace_day
from etl.spark.session import QUIET_ARCHIVE, class_archive, open_session

LOGGER = logging.getLogger(__name__)
NAME = "class-archive"


def make_archive(settings: Settings) -> Path:
    """Writes, merges and reads tables in a temporary folder and returns the archive of the loaded classes."""
    archive = class_archive(settings.spark.ivy_dir)
    archive.unlink(missing_ok=True)
    fresh = archive.with_suffix(".new")  # no session sees half an archive
    dump = f"-XX:ArchiveClassesAtExit={fresh} {QUIET_ARCHIVE}"
    spark_settings = settings.spark.model_copy(
        update={"master": "local[2]", "quick_start": True, "conf": {"spark.driver.defaultJavaOptions": dump}}
    )
    with TemporaryDirectory() as folder:
        spark = open_session(settings.model_copy(update={"spark": spark_settings}), NAME)
        _load_classes(spark, folder, settings)
        _end_jvm(spark)
    if fresh.is_file():
        fresh.rename(archive)
    return archive


def _load_classes(spark: SparkSession, root: str, settings: Settings) -> None:
    """Runs the operations that every job uses, once."""
    day = settings.city.first_day
    actions = spark.createDataFrame([], spark_schema(TABLES["raw_actions"]))
    replace_day(actions, "raw_actions", root, day=day, run_id=NAME, job=NAME)
    blocks = spark.createDataFrame([], spark_schema(TABLES["blocks"]))
    merge_rows(blocks, "blocks", root, day=day, run_id=NAME, job=NAME)
    counted = (
        read_table(spark, root, "raw_actions").groupBy("user_id").agg(F.count("*"), F.collect_list("poi_id"))
    )
    counted.join(counted.withColumnRenamed("user_id", "other"), F.col("user_id") == F.col("other")).collect()


def _end_jvm(spark: SparkSession) -> None:
    """Ends the JVM and waits: it writes the archive while it exits."""
    spark.stop()
    gateway = SparkContext._gateway  # pyspark offers no public way to end the JVM it started
    if gateway is not None:
        gateway.shutdown()
        gateway.proc.stdin.close()
        gateway.proc.wait()


def main() -> int:
    """Makes the archive for the settings in force and returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    LOGGER.setLevel(logging.INFO)
    started = time.perf_counter()
    try:
        archive = make_archive(load_settings())
    except SpacetimeError as error:
        LOGGER.error("error: %s", error)
        return error.exit_code
    if not archive.is_file():
        LOGGER.warning("this JVM wrote no class archive; jobs start without it, as before")
        return 0
    size_mib = archive.stat().st_size / 2**20
    LOGGER.info("class archive %s: %.0f MiB, %.0f s", archive, size_mib, time.perf_counter() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
