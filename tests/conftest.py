"""One Spark session for the whole test run, and settings that keep every table in a folder of the test."""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from conf.settings import Settings, SparkSettings, StorageSettings
from tests.build_once import BuildOnce

# An example that takes long on a busy machine is no failure.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")

LONGEST_FIRST = ("airflow_dags", "cases", "udfs", "etl", "bench", "models", "conf")
"""Folders in the order of their longest file: what runs last should be short, or one process waits for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first, and marks what asks for the Spark session, so that `make test-fast` can leave it out."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    tests = Path(__file__).parent
    items.sort(key=lambda item: order.get(item.path.relative_to(tests).parts[0], len(order)))
    for item in items:
        if "spark" in getattr(item, "fixturenames", ()):
            item.add_marker("spark")


@pytest.fixture(scope="session")
def spark_settings() -> SparkSettings:
    """Small and serial enough for a laptop; no compiled UI, no warehouse in the checkout."""
    return SparkSettings(
        master="local[2]",
        driver_memory="2g",
        shuffle_partitions=1,
        ivy_dir=str(Path(__file__).parents[1] / ".ivy"),
        quick_start=True,
        conf={
            "spark.sql.warehouse.dir": f"/tmp/spacetime-tests-warehouse-{os.environ.get('PYTEST_XDIST_WORKER', '')}",
            "spark.databricks.delta.stats.collect": "false",
            "spark.python.daemon.module": "udfs.worker_daemon",
        },
    )


@pytest.fixture(scope="session")
def spark(spark_settings: SparkSettings) -> Iterator[object]:
    """The one session; starting it takes seconds."""
    from etl.spark.session import open_session  # tests without Spark must not pay for its import

    # Minutes of planning in one process are worth the full compiler; the short jobs of quick start are not.
    lasting = spark_settings.model_copy(update={"jvm_options": "-XX:TieredStopAtLevel=4"})
    session = open_session(Settings(spark=lasting), "tests")
    yield session
    session.stop()


@pytest.fixture(scope="module", autouse=True)
def free_memory() -> Iterator[None]:
    """Lets Spark forget the plans and tables of a file of tests: hundreds of them fill a heap sized for one job.

    A frame of Python holds its plan in the JVM, and frames lie in cycles that Python is in no hurry to collect.
    """
    yield
    if "pyspark" not in sys.modules:
        return
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is not None:
        gc.collect()
        session._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # type: ignore[union-attr]


@pytest.fixture
def settings(tmp_path: Path, spark_settings: SparkSettings) -> Settings:
    """Default settings with the tables and artifacts of one test in its own folder."""
    storage = StorageSettings(root=str(tmp_path / "warehouse"), artifacts=str(tmp_path / "artifacts"))
    return Settings(spark=spark_settings, storage=storage)


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """Returns what fills a folder once for all test processes of the run: who comes second finds it there."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def build(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def empty_tables(build_once: BuildOnce, spark: object) -> Path:
    """Every table of the contracts without a row, to be copied: making them takes a commit of a second for each."""
    from conf.tables import TABLES
    from etl.delta.storage import create_if_missing

    def fill(folder: Path) -> None:
        for contract in TABLES.values():
            create_if_missing(spark, contract, str(folder))

    return build_once("empty tables", fill)


@pytest.fixture
def made(settings: Settings, empty_tables: Path) -> Settings:
    """Settings of a test whose tables have all been made, and hold nothing."""
    shutil.copytree(empty_tables, settings.storage.root)
    return settings
