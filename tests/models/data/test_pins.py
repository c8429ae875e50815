"""Pins: the same rows keep their pin, changed rows get a new one."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from conf.errors import MissingInputError
from models.data.pins import pin_table

DAY = "2026-03-01"


@pytest.fixture
def root(tmp_path, city_tables):
    """A root with one sample table of its own."""
    write_deltalake(
        str(tmp_path / "pretrain_samples"), city_tables["pretrain_samples"], partition_by=["day", "split"]
    )
    return str(tmp_path)


def _rewrite(root: str, table: pa.Table) -> None:
    write_deltalake(f"{root}/pretrain_samples", table, mode="overwrite")


def test_a_pin_tells_version_rows_and_simulation(root):
    pin = pin_table(root, "pretrain_samples", DAY)
    assert (pin.version, pin.num_rows, pin.num_simulated) == (0, 36, 36)


def test_equal_rows_in_another_order_keep_the_pin(root, city_tables):
    before = pin_table(root, "pretrain_samples", DAY)
    table = city_tables["pretrain_samples"]
    _rewrite(root, table.take(pa.array(range(table.num_rows - 1, -1, -1))))
    assert pin_table(root, "pretrain_samples", DAY, before) == before
    assert pin_table(root, "pretrain_samples", DAY).version == 1  # without it, the newest version


def test_a_pin_whose_version_an_erasure_has_removed_moves_to_the_newest(root, city_tables):
    before = pin_table(root, "pretrain_samples", DAY)
    _rewrite(root, city_tables["pretrain_samples"])
    table = DeltaTable(f"{root}/pretrain_samples")
    table.create_checkpoint()
    Path(root, "pretrain_samples", "_delta_log", f"{0:020}.json").unlink()

    after = pin_table(root, "pretrain_samples", DAY, before)

    assert after == replace(before, version=1, has_moved=True)
    assert after.identity != before.identity  # so a stage that has read the removed version begins again
    assert pin_table(root, "pretrain_samples", DAY, after) == after


def test_one_changed_element_of_an_array_changes_the_pin(root, city_tables):
    before = pin_table(root, "pretrain_samples", DAY)
    table = city_tables["pretrain_samples"]
    blocks = table["block_ids"].to_pylist()
    blocks[3][0], blocks[3][1] = blocks[3][1], blocks[3][0] + 1
    index = table.schema.get_field_index("block_ids")
    _rewrite(
        root, table.set_column(index, table.schema.field(index), pa.array(blocks, type=pa.list_(pa.int32())))
    )
    after = pin_table(root, "pretrain_samples", DAY, before)
    assert after.version == 1
    assert after.digest != before.digest


def test_rows_of_other_days_do_not_count(root, city_tables):
    before = pin_table(root, "pretrain_samples", DAY)
    table = city_tables["pretrain_samples"]
    other = table.set_column(0, table.schema.field(0), pa.array([date(2026, 3, 2)] * table.num_rows))
    write_deltalake(f"{root}/pretrain_samples", other, mode="append")
    assert pin_table(root, "pretrain_samples", DAY, before) == before


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(MissingInputError, match="python -m etl ranking_samples"):
        pin_table(str(tmp_path), "ranking_samples", DAY)


def test_what_a_poi_was_called_before_is_part_of_the_pin(tmp_path, city_tables):
    index = city_tables["poi_index"]
    kind = pa.list_(
        pa.struct(
            [("replaced_day", pa.date32()), ("changed_day", pa.date32()), ("name", pa.string()),
             ("text", pa.string()), ("category_id", pa.int32())]
        )
    )  # fmt: skip

    def pin_with(past: list[dict] | None) -> str:
        columns = [name for name in index.column_names if name != "past_details"]
        rows = index.select(columns).append_column(
            "past_details", pa.array([past, *[None] * (index.num_rows - 1)], kind)
        )
        write_deltalake(str(tmp_path / "poi_index"), rows, mode="overwrite", schema_mode="overwrite")
        return pin_table(str(tmp_path), "poi_index", DAY).digest

    change = {
        "replaced_day": date(2026, 3, 1),
        "changed_day": None,
        "name": "Café",
        "text": None,
        "category_id": 3,
    }
    pins = [
        pin_with(past)
        for past in (
            None,
            [change],
            [change | {"name": "Cafe"}],
            [change | {"category_id": None}],
            [change, change],
        )
    ]
    assert len(set(pins)) == len(pins)
    assert pin_with([change]) == pins[1]


@pytest.mark.parametrize(
    ("table", "command"),
    [
        ("ranking_samples", "python -m etl ranking_samples"),
        ("poi_image_vectors", "python -m udfs poi_image_vectors"),
    ],
)
def test_a_missing_table_names_the_command_that_makes_it(tmp_path, table, command):
    with pytest.raises(MissingInputError, match=f"{command} --day {DAY}"):
        pin_table(str(tmp_path), table, DAY)
