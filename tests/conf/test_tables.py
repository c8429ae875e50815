"""Every contract is whole: what is derived from it (schema, checks, suite, docs) can rely on that."""

import re

import pytest

from conf.tables import FEATURE_TABLES, TABLES, TableContract

SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
TYPES = re.compile(
    r"(array<)?(string|int|bigint|float|double|boolean|date)>?|binary|map<string,bigint>"
    r"|array<struct<\w+:(string|int|date)(,\w+:(string|int|date))*>>",
)
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)


@every_table
def test_names_are_snake_case_and_unique(table: TableContract) -> None:
    assert SNAKE.fullmatch(table.name)
    assert all(SNAKE.fullmatch(name) for name in table.column_names)
    assert len(set(table.column_names)) == len(table.columns)


@every_table
def test_columns_have_a_known_type_and_say_what_they_mean(table: TableContract) -> None:
    for column in table.columns:
        assert TYPES.fullmatch(column.type), column
        assert len(column.doc) > 5, column


@every_table
def test_key_partition_and_cluster_columns_exist(table: TableContract) -> None:
    assert {*table.key, *table.partition_by, *table.cluster_by} <= set(table.column_names)


@every_table
def test_key_columns_are_never_null(table: TableContract) -> None:
    assert not [name for name in table.key if table.column(name).nullable]


@every_table
def test_columns_of_equal_length_are_arrays(table: TableContract) -> None:
    assert all(table.column(name).is_array for group in table.equal_lengths for name in group)


@every_table
def test_tables_written_by_day_are_partitioned_by_day(table: TableContract) -> None:
    if table.write == "day":
        assert table.partition_by[0] == "day"
        assert not table.column("day").nullable


@every_table
def test_bounds_are_in_order(table: TableContract) -> None:
    bounded = [column for column in table.columns if column.low is not None and column.high is not None]
    assert all(column.low <= column.high for column in bounded)


@pytest.mark.parametrize("name", FEATURE_TABLES)
def test_feature_tables_say_which_model_index_and_run_made_a_row(name: str) -> None:
    assert {"day", "model_version", "index_version", "run_id", "is_simulated"} <= set(
        TABLES[name].column_names
    )


def test_run_id_is_lineage_and_no_part_of_digests() -> None:
    assert "run_id" not in TABLES["user_embeddings"].business_columns


def test_unknown_column_is_a_key_error_that_lists_the_columns() -> None:
    with pytest.raises(KeyError, match="table blocks has no column 'cell'; it has index_version, block_id"):
        TABLES["blocks"].column("cell")
