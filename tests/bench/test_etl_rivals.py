"""The rivals of `make bench-etl` do the same work as the ETL, and a difference between two engines is found."""

import pytest

duckdb = pytest.importorskip("duckdb", reason="of the extra `bench`")
pytest.importorskip("polars", reason="of the extra `bench`")

from conf.tables import HISTORY_NAMES  # noqa: E402
from tests.bench import etl_duckdb, etl_polars, etl_spark  # noqa: E402
from tests.bench.etl_city import HOT_USER, DuckdbCity, write_city  # noqa: E402
from tests.bench.etl_compare import DifferentResultError, compare, digest  # noqa: E402


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    folder = tmp_path_factory.mktemp("city")
    # The hot user has more actions than a history holds; every kind of dirt is there.
    write_city(DuckdbCity(6_000, hot_share=0.15), folder)
    return folder


def test_all_engines_make_the_same_sequences(spark, city):
    for engine, session in ((etl_spark, spark), (etl_duckdb, etl_duckdb.start()), (etl_polars, None)):
        engine.run(session, city, city / engine.__name__.rpartition("_")[2])

    for rival in ("duckdb", "polars"):
        compare(city / "spark", city / rival, engine=rival)
        assert digest(city / "spark") == digest(city / rival)
    with duckdb.connect() as db:
        hot, refused = (
            db.execute(query.format(city=city)).fetchall()[0]
            for query in (
                f"SELECT num_actions, seq_len FROM '{{city}}/duckdb/*.parquet' WHERE user_id = '{HOT_USER}'",
                "SELECT (SELECT count(*) FROM '{city}/raw_actions.parquet') "
                "- (SELECT sum(num_actions) FROM '{city}/duckdb/*.parquet')",
            )
        )
    assert hot[0] > 600
    assert hot[1] == 400
    assert refused[0] > 100


def test_a_difference_in_one_value_is_found_and_named(tmp_path):
    columns = "1 AS index_version, 9 AS num_actions, 1 AS seq_len, {richness} AS richness, 'local' AS pattern"
    arrays = ", ".join(f"[1] AS {name}" for name in HISTORY_NAMES)
    for folder, richness in (("ours", "2.0"), ("near", "2.0 + 1e-10"), ("off", "2.1")):
        (tmp_path / folder).mkdir()
        duckdb.sql(
            f"SELECT DATE '2026-03-01' AS day, 'ann' AS user_id, {columns.format(richness=richness)}, "
            f"[]::INTEGER[] AS profile_ids, {arrays}, true AS is_simulated"
        ).write_parquet(str(tmp_path / folder / "rows.parquet"))

    compare(tmp_path / "ours", tmp_path / "near", engine="near")  # rounding is no difference
    with pytest.raises(DifferentResultError, match=r"1 users differ .* user ann .*: richness"):
        compare(tmp_path / "ours", tmp_path / "off", engine="off")
