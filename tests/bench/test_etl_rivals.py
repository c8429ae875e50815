"""The rivals of `make bench-etl` do the same work as the ETL, and a difference between two engines is found."""

import pytest

duckdb = pytest.importorskip("duckdb", reason="of the extra `bench`")
pytest.importorskip("polars", reason="of the extra `bench`")

from conf.tables import HISTORY_NAMES  # noqa: E402
from tests.bench import etl_duckdb, etl_polars, etl_spark  # noqa: E402
from tests.bench.etl_compare import DifferentResultError, compare, digest  # noqa: E402
from tests.bench.etl_town import HOT_USER, Town, write_town  # noqa: E402


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    folder = tmp_path_factory.mktemp("town")
    # The hot user has more actions than a history holds; every kind of dirt is there.
    write_town(Town(6_000, hot_share=0.15), folder)
    return folder


def test_all_engines_make_the_same_sequences(spark, town):
    for engine, session in ((etl_spark, spark), (etl_duckdb, etl_duckdb.start()), (etl_polars, None)):
        engine.run(session, town, town / engine.__name__.rpartition("_")[2])

    for rival in ("duckdb", "polars"):
        compare(town / "spark", town / rival, engine=rival)
        assert digest(town / "spark") == digest(town / rival)
    with duckdb.connect() as db:
        hot, refused = (
            db.execute(query.format(town=town)).fetchall()[0]
            for query in (
                f"SELECT num_actions, seq_len FROM '{{town}}/duckdb/*.parquet' WHERE user_id = '{HOT_USER}'",
                "SELECT (SELECT count(*) FROM '{town}/raw_actions.parquet') "
                "- (SELECT sum(num_actions) FROM '{town}/duckdb/*.parquet')",
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
