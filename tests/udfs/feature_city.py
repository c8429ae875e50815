"""A city of eight POIs in two blocks, three users and a few requests: small enough to check by hand."""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from conf.cli import JobContext, JobSummary
from conf.settings import Settings, StorageSettings
from conf.tables import TABLES

DAY_1, DAY_2 = date(2026, 3, 1), date(2026, 3, 2)
NUM_POIS = 8
Row = dict[str, object]


def at(day: date, hour: int) -> int:
    """Returns an hour of a UTC day in epoch milliseconds."""
    return int(datetime(day.year, day.month, day.day, hour, tzinfo=UTC).timestamp() * 1000)


def slot(number: int, **changes: object) -> Row:
    """Returns the slot of POI `p{number}`: four POIs to a block, live since 2025."""
    row: Row = {
        "index_version": 1,
        "poi_id": f"p{number}",
        "block_id": number // 4,
        "inner_id": number % 4,
        "poi_lon": 4.9 + 0.01 * number,
        "poi_lat": 52.37,
        "category_id": 1 + number % 3,
        "valid_from": date(2025, 1, 1),
        "valid_to": None,
        "indexed_day": DAY_1,
        "closed_day": None,
        "name": f"POI {number}",
        "text": f"POI {number}",
        "changed_day": DAY_1,
        "past_details": None,
        "is_simulated": False,
    }
    return {**row, **changes}


def sequence(user_id: str, day: date, numbers: Sequence[int], **changes: object) -> Row:
    """Returns the state of a user on a day: one click per number, an hour apart, the last at noon."""
    size = len(numbers)
    slots = [slot(number) for number in numbers]
    row: Row = {
        "user_id": user_id,
        "index_version": 1,
        "num_actions": size,
        "seq_len": size,
        "richness": 1.0,
        "pattern": "local",
        "profile_ids": [],
        "poi_ids": [row["poi_id"] for row in slots],
        "timestamps_ms": [at(day, 12) - 3_600_000 * (size - 1 - step) for step in range(size)],
        "tz_offsets_min": [60] * size,
        "user_lons": [4.9] * size,
        "user_lats": [52.37] * size,
        "action_type_ids": [0] * size,
        "block_ids": [row["block_id"] for row in slots],
        "inner_ids": [row["inner_id"] for row in slots],
        "poi_lons": [row["poi_lon"] for row in slots],
        "poi_lats": [row["poi_lat"] for row in slots],
        "category_ids": [row["category_id"] for row in slots],
        "is_interests": [True] * size,
        "is_travels": [False] * size,
        "is_simulated": False,
    }
    return {**row, **changes}


def action(action_id: str, user_id: str, day: date, number: int) -> Row:
    """Returns a click on POI `p{number}` at noon of the day."""
    place = {
        name: slot(number)[name]
        for name in ("poi_id", "block_id", "inner_id", "poi_lon", "poi_lat", "category_id")
    }
    return {
        "action_id": action_id,
        "user_id": user_id,
        "action_ts_ms": at(day, 12),
        "event_date": day,
        "tz_offset_min": 60,
        "index_version": 1,
        **place,
        "action_type_id": 0,
        "is_interest": True,
        "repairs": [],
        "is_simulated": False,
    }


def request(request_id: str, user_id: str, day: date, candidates: Sequence[int], **changes: object) -> Row:
    """Returns a request at 18 h of the day with the candidates `p{number}`."""
    row: Row = {
        "request_id": request_id,
        "user_id": user_id,
        "request_ts_ms": at(day, 18),
        "tz_offset_min": 60,
        "user_lon": 4.91,
        "user_lat": 52.37,
        "action_type": "click",
        "candidate_poi_ids": [f"p{number}" for number in candidates],
        "is_simulated": False,
    }
    return {**row, **changes}


def visit(user_id: str, number: int, visits: int = 1, **changes: object) -> Row:
    """Returns a row of `training_visits`: to POI `p{number}`, at 19 h on the user's clock."""
    place = {name: slot(number)[name] for name in ("index_version", "block_id", "inner_id")}
    return {"user_id": user_id, **place, "local_hour": 19, "visits": visits, "is_simulated": False, **changes}


def transition(user_id: str, number: int, next_number: int, weight: float = 1.0) -> Row:
    """Returns a row of `training_transitions`: from POI `p{number}` to `p{next_number}`."""
    slots = slot(number), slot(next_number)
    return {
        "user_id": user_id,
        "index_version": 1,
        **{name: slots[0][name] for name in ("block_id", "inner_id")},
        **{f"next_{name}": slots[1][name] for name in ("block_id", "inner_id")},
        "weight": weight,
        "is_simulated": False,
    }


@dataclass
class FeatureCity:
    """Writes input tables, runs jobs of `python -m udfs`, reads tables."""

    spark: object
    settings: Settings
    bundle: Path

    @property
    def root(self) -> str:
        return self.settings.storage.root

    @property
    def artifacts(self) -> Path:
        return Path(self.settings.storage.artifacts)

    def frame(self, name: str, rows: Sequence[Row]) -> object:
        from etl.delta.contracts import spark_schema
        from etl.spark.session import local_frame

        schema = spark_schema(TABLES[name])
        return local_frame(
            self.spark, [tuple(row.get(field) for field in schema.names) for row in rows], schema
        )

    def deliver(self, day: date, **tables: Sequence[Row]) -> None:
        """Writes the day's rows of input tables."""
        from etl.delta.storage import merge_rows, replace_day

        for name, rows in tables.items():
            write = merge_rows if TABLES[name].write == "merge" else replace_day
            frame = self.frame(name, [{"day": day, **row} for row in rows])
            write(frame, name, self.root, day=day, run_id="test", job=name)

    def deliver_first_night(self) -> None:
        """Writes DAY_1: eight POIs, three users, a request of a user with a past, one of a user without."""
        self.deliver(
            DAY_1,
            poi_index=[slot(number) for number in range(NUM_POIS)],
            cleaned_actions=[action("a1", "u1", DAY_1, 0)],
            action_sequences=[
                sequence("u1", DAY_1, [0, 1, 0]),
                sequence("u2", DAY_1, [4, 5, 4, 6]),
                sequence("u3", DAY_1, [7]),
            ],
            ranking_requests=[request("r1", "u1", DAY_1, [0, 1, 4]), request("r2", "new", DAY_1, [2, 3])],
        )

    def deliver_second_night(self) -> None:
        """Writes DAY_2: u2 acts again, p0 closes, p8 opens, nobody asks."""
        self.deliver(
            DAY_2,
            cleaned_actions=[action("a2", "u2", DAY_2, 4)],
            action_sequences=[sequence("u2", DAY_2, [4, 5, 4, 6, 4])],
            poi_index=[
                slot(0, valid_to=DAY_2, closed_day=DAY_2, changed_day=DAY_2),
                slot(8, valid_from=DAY_2, indexed_day=DAY_2, changed_day=DAY_2),
            ],
            ranking_requests=[],
        )

    def run(self, job: str, day: date, run_id: str = "run", **options: object) -> JobSummary:
        """Runs a job as the command line does, without the process."""
        from udfs.__main__ import JOBS

        defaults: dict[str, object] = {
            "model": str(self.bundle),
            "to": None,
            "requests": "",
            "replace": False,
        }
        namespace = argparse.Namespace(**{**defaults, **options})
        context = JobContext(job, day, self.settings, run_id, dry_run=False, options=namespace)
        return JOBS[job].run(context)

    def read(self, name: str, day: date | None = None) -> list[Row]:
        """Reads a table, sorted by key."""
        from etl.delta.storage import read_table

        rows = [row.asDict() for row in read_table(self.spark, self.root, name).collect()]
        kept = [row for row in rows if day is None or row["day"] == day]
        return sorted(kept, key=lambda row: [str(row[key]) for key in TABLES[name].key])

    def digest(self, name: str) -> str:
        from etl.delta.contracts import digest_table
        from etl.delta.storage import read_table

        return digest_table(read_table(self.spark, self.root, name), TABLES[name])


def make_bundle(folder: Path, *, seed: int, copies_from_crowd: bool = False) -> Path:
    """Writes a bundle of all stages with random weights for an index of two blocks.

    A model that copies from the crowd has most of every prediction from their slots.
    """
    import torch

    from conf.tokens import TokenLayout
    from models.config import CrowdConfig, DecoderConfig
    from models.network.checkpoint import save_stage
    from models.network.decoder import SpacetimeDecoder
    from models.serving.bundle import STAGE_FOLDERS, save_bundle

    layout = TokenLayout(index_version=1, num_blocks=4, max_inner=8, num_categories=8)
    shape = DecoderConfig(
        hidden_dim=16, ffn_dim=32, num_layers=1, num_heads=2, num_kv_heads=2, embedding_dim=8,
        crowd=CrowdConfig(enabled=copies_from_crowd, num_followers=2, num_near=2, start=6.0),
    )  # fmt: skip
    torch.manual_seed(seed)
    model = SpacetimeDecoder(shape.with_layout(layout, num_pois=NUM_POIS))
    stage = save_stage(folder / "stage", model)
    content = {"embedding_dim": shape.embedding_dim, "is_simulated": False}
    return save_bundle(folder / "bundle", dict.fromkeys(STAGE_FOLDERS, stage), layout=layout, content=content)


def open_city(spark: object, settings: Settings, folder: Path, bundle: Path) -> FeatureCity:
    """Returns a city whose tables and artifacts lie in a folder."""
    storage = StorageSettings(root=str(folder / "warehouse"), artifacts=str(folder / "artifacts"))
    return FeatureCity(spark, settings.model_copy(update={"storage": storage}), bundle)


def copy_tables(source: Path, target: Path) -> Path:
    """Copies all tables and artifacts of a city into a folder and returns it."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target
