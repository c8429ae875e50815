"""Exports that nobody here made end as `expected.json` of their folder says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conf.settings import Settings, SparkSettings
from tests.build_once import BuildOnce
from tests.cases.foreign_cases import CASES, FOLDER, Place, find_differences, is_long


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory, spark_settings: SparkSettings) -> Path:
    """Settings of the session that is open, so that a command changes nothing of it."""
    path = tmp_path_factory.mktemp("layer") / "session.yaml"
    path.write_text(yaml.safe_dump({"spark": spark_settings.model_dump()}))
    return path


@pytest.fixture(scope="module")
def case_city(spark: object, spark_settings: SparkSettings, build_once: BuildOnce) -> Callable[[], Path]:
    """The finished warehouse, made when the first case asks for it."""
    from tests.cases.case_city import build_case_city  # torch and Spark are slow to import

    return lambda: build_once(
        "small city", lambda folder: build_case_city(spark, Settings(spark=spark_settings), folder)
    )


def test_every_folder_says_what_is_expected() -> None:
    folders = {path.name for path in FOLDER.iterdir() if (path / "README").is_file()}

    assert folders == set(CASES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if is_long(name) else name for name in CASES]
)
def test_case(
    name: str,
    spark: object,
    spark_settings: SparkSettings,
    layer: Path,
    case_city: Callable[[], Path],
    empty_tables: Path,
    tmp_path: Path,
) -> None:
    place = Place(work=tmp_path, layer=layer, city=case_city, empty=empty_tables)
    try:
        assert find_differences(name, place) == []
    finally:
        from etl.spark.session import open_session

        # A script of a case opens the session with settings of its own.
        open_session(Settings(spark=spark_settings), "tests")
