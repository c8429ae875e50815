"""What is watched names tables and columns that exist."""

import pytest

from conf.gates import GATES, TableGates, gates_of
from conf.tables import TABLES

every_gate = pytest.mark.parametrize("table", GATES)


@every_gate
def test_columns_that_are_watched_exist(table: str) -> None:
    gates, columns = GATES[table], set(TABLES[table].column_names)

    assert {*gates.shares, *gates.frozen, *(name for names in gates.unique for name in names)} <= columns
    assert {gates.counted_by, gates.newest} - {""} <= columns


@every_gate
def test_columns_that_are_watched_have_the_type_it_takes(table: str) -> None:
    gates, contract = GATES[table], TABLES[table]

    assert all(contract.column(name).type == "boolean" for name in gates.shares)
    assert not gates.counted_by or contract.column(gates.counted_by).type == "date"
    assert not gates.newest or contract.column(gates.newest).type in ("date", "bigint")


def test_a_table_that_is_not_listed_has_only_its_contract() -> None:
    assert gates_of("raw_actions") == TableGates()
