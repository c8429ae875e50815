"""One Spark session for the whole test run, and settings that keep every table in a folder of the test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.settings import Settings, SparkSettings, StorageSettings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test that asks for the Spark session, so that `make test-fast` can leave it out."""
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
        },
    )


@pytest.fixture(scope="session")
def spark(spark_settings: SparkSettings) -> Iterator[object]:
    """The one session; starting it takes seconds."""
    from etl.session import open_session  # tests without Spark must not pay for its import

    session = open_session(Settings(spark=spark_settings), "tests")
    yield session
    session.stop()


@pytest.fixture
def settings(tmp_path: Path, spark_settings: SparkSettings) -> Settings:
    """Default settings with the tables and artifacts of one test in its own folder."""
    storage = StorageSettings(root=str(tmp_path / "warehouse"), artifacts=str(tmp_path / "artifacts"))
    return Settings(spark=spark_settings, storage=storage)
