"""The tables of a small folder of check-ins, row by row, as they were: a refactoring must not move them.

Two nights and the samples of a training on a handful of users, whose rows are counted out without chance. After a
change of results on purpose, `GOLDEN=write pytest tests/etl/test_golden_tables.py` writes the files, and the commit
says why.
"""

import json
import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from conf.settings import SparkSettings
from conf.tables import TABLES
from tests.etl.checkin_folder import write_folder
from tests.small_city import run

GOLDEN = Path(__file__).parents[1] / "golden" / "tables"
FIRST_DAY, NUM_DAYS, NUM_USERS, NUM_POIS = date(2012, 4, 1), 6, 4, 12
KINDS = ("Bar", "Café", "Park", None)
NAMES = (
    "categories", "blocks", "poi_index", "cleaned_actions", "quarantined_rows", "user_places", "action_sequences",
    "pretrain_samples", "ranking_samples", "preference_pairs",
)  # fmt: skip
NOT_COMPARED = {"quarantined_ts_ms", "run_id"}
"""What differs between two runs."""


def place_of(poi: int) -> tuple[float, float]:
    """Returns latitude and longitude in degrees; every fourth POI lies in a block of its own, 11 km away."""
    return 40.7 + 0.001 * poi + 0.1 * (poi % 4 == 0), -74.0 - 0.002 * poi


def checkins() -> list[tuple]:
    """Returns every user's check-ins of every day, some of them damaged."""
    rows = []
    for day in range(NUM_DAYS):
        for user in range(NUM_USERS):
            for number in range(1 + (user + day) % 3):
                poi = (user + 2 * day + 5 * number) % NUM_POIS
                hour = 7 + 3 * number + user
                time = datetime(2012, 4, 1, hour, 10 * user, tzinfo=UTC) + timedelta(days=day)
                rows.append((f"u{user}", f"p{poi}", KINDS[poi % 4], *place_of(poi), time, -240))
    rows += [rows[0], (" u1 ", *rows[3][1:]), (None, *rows[4][1:]), (*rows[5][:3], 95.0, *rows[5][4:])]
    return rows


def catalogue() -> pa.Table:
    """Returns the POIs with names and categories."""
    names = ("poi_id", "name", "category", "latitude", "longitude")
    rows = [(f"p{poi}", f"Place {poi}", KINDS[poi % 4], *place_of(poi)) for poi in range(NUM_POIS)]
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


@pytest.fixture(scope="module")
def warehouse(
    spark: SparkSession, spark_settings: SparkSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Runs both nights and the samples."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "delivered").mkdir()
    write_folder(folder / "delivered", rows=checkins())
    pq.write_table(catalogue(), folder / "delivered" / "pois.parquet")
    layer = folder / "settings.yaml"
    layer.write_text(
        yaml.safe_dump(
            {
                "spark": spark_settings.model_dump(),
                "storage": {"root": str(folder / "warehouse"), "artifacts": str(folder / "artifacts")},
                "source": {"path": str(folder / "delivered")},
                "samples": {"val_days": 1, "test_days": 2, "min_richness": 1},
            }
        )
    )
    first, second = (str(FIRST_DAY + timedelta(days=day)) for day in (NUM_DAYS - 2, NUM_DAYS - 1))
    run(layer, "etl", "night", "--source", "checkins", "--day", first)
    run(layer, "etl", "night", "--source", "checkins", "--day", second)
    run(layer, "etl", "samples", "--day", second)
    return folder / "warehouse"


def rows_of(warehouse: Path, name: str) -> list[str]:
    """Returns the rows of a table as lines of JSON, sorted."""
    columns = [column for column in TABLES[name].business_columns if column not in NOT_COMPARED]
    rows = DeltaTable(str(warehouse / name)).to_pyarrow_table(columns=columns).to_pylist()
    return sorted(json.dumps(row, default=str, ensure_ascii=False) for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_what_they_were(warehouse: Path, name: str) -> None:
    rows, path = rows_of(warehouse, name), GOLDEN / f"{name}.jsonl"
    if os.environ.get("GOLDEN") == "write":
        path.write_text("".join(f"{row}\n" for row in rows))

    assert rows == path.read_text().splitlines()
