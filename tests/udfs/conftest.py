"""Fixtures of the feature jobs: small bundles with random weights, and cities to run the jobs in."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conf.settings import FeatureSettings, Settings, SparkSettings
from tests.build_once import BuildOnce
from tests.udfs.feature_city import DAY_1, DAY_2, FeatureCity, copy_tables, make_bundle, open_city


@pytest.fixture(scope="session")
def bundle(build_once: BuildOnce) -> Path:
    """A bundle with random weights, of the smallest recipe."""
    return build_once("bundle", lambda folder: make_bundle(folder, seed=1)) / "bundle"


@pytest.fixture(scope="session")
def other_bundle(build_once: BuildOnce) -> Path:
    """A bundle with other weights, so another model version."""
    return build_once("other", lambda folder: make_bundle(folder, seed=2)) / "bundle"


@pytest.fixture(scope="session")
def night_settings(spark_settings: SparkSettings) -> Settings:
    """Three candidates a request, four rows a forward pass, and half of the rows may make the model fail."""
    return Settings(
        spark=spark_settings, features=FeatureSettings(top_k=3, micro_batch=4, max_failed_share=0.5)
    )


@pytest.fixture(scope="session")
def delivered_folder(
    build_once: BuildOnce, spark: object, night_settings: Settings, bundle: Path, empty_tables: Path
) -> Path:
    """Tables of a city with the inputs of DAY_1. Tests copy the folder: Delta tables may be moved about."""

    def fill(folder: Path) -> None:
        copy_tables(empty_tables, folder / "warehouse")
        open_city(spark, night_settings, folder, bundle).deliver_first_night()

    return build_once("delivered", fill)


@pytest.fixture(scope="session")
def computed_folder(
    build_once: BuildOnce, spark: object, night_settings: Settings, bundle: Path, delivered_folder: Path
) -> Path:
    """The same after the feature jobs of DAY_1."""

    def fill(folder: Path) -> None:
        copy_tables(delivered_folder, folder)
        open_city(spark, night_settings, folder, bundle).run("features", DAY_1)

    return build_once("computed", fill)


@pytest.fixture(scope="session")
def published_folder(
    build_once: BuildOnce, spark: object, night_settings: Settings, bundle: Path, computed_folder: Path
) -> Path:
    """The same after audit and publish: DAY_1 is release 1."""

    def fill(folder: Path) -> None:
        copy_tables(computed_folder, folder)
        city = open_city(spark, night_settings, folder, bundle)
        city.run("audit", DAY_1)
        city.run("publish", DAY_1)

    return build_once("published", fill)


@pytest.fixture(scope="session")
def second_computed_folder(
    build_once: BuildOnce, spark: object, night_settings: Settings, bundle: Path, published_folder: Path
) -> Path:
    """The same after the feature jobs of DAY_2, of which readers see nothing: u2 acts again, p0 closes, p8 opens."""

    def fill(folder: Path) -> None:
        copy_tables(published_folder, folder)
        city = open_city(spark, night_settings, folder, bundle)
        city.deliver_second_night()
        city.run("features", DAY_2)

    return build_once("second computed", fill)


@pytest.fixture(scope="session")
def second_folder(
    build_once: BuildOnce, spark: object, night_settings: Settings, bundle: Path, second_computed_folder: Path
) -> Path:
    """The same after audit and publish: DAY_2 is release 2."""

    def fill(folder: Path) -> None:
        copy_tables(second_computed_folder, folder)
        city = open_city(spark, night_settings, folder, bundle)
        for job in ("audit", "publish"):
            city.run(job, DAY_2)

    return build_once("second", fill)


@pytest.fixture
def city(spark: object, night_settings: Settings, tmp_path: Path, bundle: Path) -> FeatureCity:
    """An empty city."""
    return open_city(spark, night_settings, tmp_path, bundle)


@pytest.fixture
def first_night(city: FeatureCity, delivered_folder: Path, tmp_path: Path) -> FeatureCity:
    """A city with the inputs of DAY_1."""
    copy_tables(delivered_folder, tmp_path)
    return city


@pytest.fixture
def computed(city: FeatureCity, computed_folder: Path, tmp_path: Path) -> FeatureCity:
    """A city after the feature jobs of DAY_1."""
    copy_tables(computed_folder, tmp_path)
    return city


@pytest.fixture
def published(city: FeatureCity, published_folder: Path, tmp_path: Path) -> FeatureCity:
    """A city whose DAY_1 is release 1."""
    copy_tables(published_folder, tmp_path)
    return city


@pytest.fixture
def second_computed(city: FeatureCity, second_computed_folder: Path, tmp_path: Path) -> FeatureCity:
    """A city whose DAY_1 is release 1, with the features of DAY_2 written and not published."""
    copy_tables(second_computed_folder, tmp_path)
    return city


@pytest.fixture
def published_twice(
    spark: object, night_settings: Settings, second_folder: Path, tmp_path: Path, bundle: Path
) -> FeatureCity:
    """A city whose DAY_1 is release 1 and whose DAY_2 is release 2, in a folder that is no URI."""
    return open_city(spark, night_settings, copy_tables(second_folder, tmp_path / "team #1, süd?"), bundle)


@pytest.fixture
def other_city(
    spark: object, night_settings: Settings, delivered_folder: Path, tmp_path: Path, bundle: Path
) -> FeatureCity:
    """Another city with the inputs of DAY_1."""
    return open_city(spark, night_settings, copy_tables(delivered_folder, tmp_path / "other"), bundle)


@pytest.fixture
def run_isolated_counted() -> Callable[..., tuple[list[object], int]]:
    """Runs `run_isolated` over numbers and counts the rows that were computed."""
    import pyarrow as pa

    from udfs.features.isolation import run_isolated

    def run(
        numbers: Sequence[int], compute: Callable[[int], object], micro_batch: int
    ) -> tuple[list[object], int]:
        computed = 0

        def compute_batch(batch: pa.RecordBatch) -> list[object]:
            nonlocal computed
            computed += batch.num_rows
            return [compute(number) for number in batch.column(0).to_pylist()]

        batch = pa.RecordBatch.from_pydict({"number": pa.array(numbers, pa.int64())})
        return run_isolated(compute_batch, batch, micro_batch=micro_batch), computed

    return run
