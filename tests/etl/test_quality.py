"""The gate passes good rows, and says in words what is wrong with bad ones."""

from datetime import date

import pytest

from conf.tables import TABLES
from etl.contracts import spark_schema
from etl.quality import gate

DAY = date(2026, 1, 31)


def vectors(spark, rows):
    full = [(DAY, user, vector, DAY, "7", 1, "r", False) for user, vector in rows]
    schema = spark_schema(TABLES["user_embeddings"])
    return spark.createDataFrame(full, schema)


def test_good_rows_pass_and_leave_a_page(spark, tmp_path):
    assert gate(vectors(spark, [("ann", [0.6, 0.8]), ("bob", [1.0, 0.0])]), "user_embeddings", tmp_path) == []
    assert (tmp_path / "index.html").is_file()


def test_each_defect_is_named_with_how_many_rows_have_it(spark, tmp_path):
    rows = vectors(
        spark, [("ann", [0.6, 0.8]), ("ann", [0.6, 0.8]), ("bob", [1.0, 1.0]), ("eve", [float("nan"), 0.0])]
    )

    failures = gate(rows, "user_embeddings", tmp_path)

    assert "user_embeddings: 2 rows break column key_repeats: expected keys to be unique" in failures
    (of_length,) = [failure for failure in failures if "vector_length" in failure]
    assert of_length.startswith("user_embeddings: 2 rows break column vector_length: expected 0.999 to 1.001")
    assert len(failures) == 2


def test_a_day_without_rows_does_not_pass(spark, tmp_path):
    (failure,) = gate(vectors(spark, []), "user_embeddings", tmp_path)

    assert failure == "user_embeddings: 0 rows, expected 1 to any"


@pytest.mark.parametrize("name", TABLES)
def test_every_contract_makes_a_suite(name):
    pytest.importorskip("great_expectations")
    from etl.quality import build_expectations

    assert len(build_expectations(TABLES[name])) >= 1
