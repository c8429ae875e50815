"""One Spark session for the whole test run, and settings that keep every table in a folder of the test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.settings import Settings, SparkSettings, StorageSettings

LONGEST_FIRST = ("airflow_dags", "udfs", "etl", "bench", "models", "conf")
"""Folders in the order of their longest file: what runs last should be short, or one process waits for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long files first, and marks what asks for the Spark session, so that `make test-fast` can leave it out."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))
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
    from etl.session import open_session  # tests without Spark must not pay for its import

    # Minutes of planning in one process are worth the full compiler; the short jobs of quick start are not.
    lasting = spark_settings.model_copy(update={"jvm_options": "-XX:TieredStopAtLevel=4"})
    session = open_session(Settings(spark=lasting), "tests")
    yield session
    session.stop()


@pytest.fixture
def settings(tmp_path: Path, spark_settings: SparkSettings) -> Settings:
    """Default settings with the tables and artifacts of one test in its own folder."""
    storage = StorageSettings(root=str(tmp_path / "warehouse"), artifacts=str(tmp_path / "artifacts"))
    return Settings(spark=spark_settings, storage=storage)
