"""A planted city: 5 blocks of 8 POIs, 12 users with habits, as rows of the sample tables."""

from collections import Counter
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pyarrow as pa

from conf.tables import TABLES

NUM_BLOCKS, POIS_PER_BLOCK, NUM_USERS, NUM_ACTIONS = 5, 8, 12, 60


DAY = date(2026, 3, 1)


FIRST_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)


HOUR_MS = 3_600_000


ARROW_TYPES = {
    "string": pa.string(), "int": pa.int32(), "bigint": pa.int64(), "double": pa.float64(), "float":
    pa.float32(), "boolean": pa.bool_(), "date": pa.date32(),
}  # fmt: skip


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table contract."""

    def of(spark_type: str) -> pa.DataType:
        if spark_type.startswith("array<"):
            return pa.list_(of(spark_type.removeprefix("array<").removesuffix(">")))
        if spark_type.startswith("struct<"):
            fields = spark_type.removeprefix("struct<").removesuffix(">").split(",")
            return pa.struct([(name, of(kind)) for name, kind in (field.split(":") for field in fields)])
        return ARROW_TYPES[spark_type]

    return pa.schema([pa.field(c.name, of(c.type), nullable=c.nullable) for c in TABLES[table].columns])


def poi_rows() -> list[dict]:
    """Slots of the city; the last POI of each block opens on 2026-02-01, the one before closes then."""
    rows = []
    for block in range(NUM_BLOCKS):
        for inner in range(POIS_PER_BLOCK):
            rows.append(
                {
                    "index_version": 1,
                    "poi_id": f"p{block}-{inner}",
                    "block_id": block,
                    "inner_id": inner,
                    "poi_lon": 4.8 + 0.07 * block + 0.004 * inner,
                    "poi_lat": 52.3 + 0.003 * inner,
                    "category_id": 1 + inner % 3,
                    "valid_from": date(2026, 2, 1) if inner == POIS_PER_BLOCK - 1 else date(2025, 1, 1),
                    "valid_to": date(2026, 2, 1) if inner == POIS_PER_BLOCK - 2 else None,
                    "indexed_day": date(2025, 1, 1),
                    "closed_day": None,
                    "name": "",
                    "text": "",
                    "changed_day": date(2025, 1, 1),
                    "past_details": None,
                    "is_simulated": True,
                }
            )
    return rows


def user_history(user: int, *, num_actions: int = NUM_ACTIONS) -> dict[str, list]:
    """A user's actions every 5 hours: mostly two favourite POIs in turn, sometimes anything open."""
    rng = np.random.default_rng(user)
    pois = [poi for poi in poi_rows() if poi["valid_to"] is None and poi["valid_from"] < date(2026, 1, 1)]
    favourites = [pois[user % len(pois)], pois[(3 * user + 5) % len(pois)]]
    chosen = [
        favourites[step % 2] if rng.random() < 0.8 else pois[rng.integers(len(pois))]
        for step in range(num_actions)
    ]
    return {
        "poi_ids": [poi["poi_id"] for poi in chosen],
        "timestamps_ms": [FIRST_MS + (5 * step + user) * HOUR_MS for step in range(num_actions)],
        "tz_offsets_min": [60] * num_actions,
        "user_lons": [float("nan")] + [poi["poi_lon"] for poi in chosen[:-1]],
        "user_lats": [float("nan")] + [poi["poi_lat"] for poi in chosen[:-1]],
        "action_type_ids": [0] * num_actions,
        "block_ids": [poi["block_id"] for poi in chosen],
        "inner_ids": [poi["inner_id"] for poi in chosen],
        "poi_lons": [poi["poi_lon"] for poi in chosen],
        "poi_lats": [poi["poi_lat"] for poi in chosen],
        "category_ids": [poi["category_id"] for poi in chosen],
        "is_interests": [True] * num_actions,
        "is_travels": [False] * num_actions,
    }


def request_rows(num_rows: int, *, seed: int = 0, num_candidates: int = 4) -> list[dict]:
    """Requests of different history lengths with labelled candidates; a favourite POI is the one clicked."""
    rng = np.random.default_rng(seed)
    pois = poi_rows()
    rows = []
    for number in range(num_rows):
        user = number % NUM_USERS
        history = user_history(user)
        length = int(rng.integers(0, NUM_ACTIONS)) if number else 0  # the first request has no history
        clicked = pois[user % 4]
        shown = [pois[p] for p in rng.choice(len(pois), num_candidates, replace=False) if pois[p] != clicked]
        shown = [clicked, *shown[: num_candidates - 1]]
        rows.append(
            {name: values[:length] for name, values in history.items()}
            | {
                "day": DAY,
                "split": ("train", "train", "val", "test")[number // NUM_USERS % 4],
                "request_id": f"r{number}",
                "user_id": f"u{user}",
                "request_ts_ms": FIRST_MS + (5 * length + user) * HOUR_MS,
                "tz_offset_min": 60,
                "user_lon": None if number % 5 == 0 else 4.9,
                "user_lat": None if number % 5 == 0 else 52.31,
                "index_version": 1,
                "action_type_id": 0,
                "candidate_poi_ids": [poi["poi_id"] for poi in shown],
                "candidate_block_ids": [poi["block_id"] for poi in shown],
                "candidate_inner_ids": [poi["inner_id"] for poi in shown],
                "candidate_lons": [poi["poi_lon"] for poi in shown],
                "candidate_lats": [poi["poi_lat"] for poi in shown],
                "candidate_category_ids": [poi["category_id"] for poi in shown],
                "candidate_positions": list(range(1, len(shown) + 1)),
                "labels": [1] + [0] * (len(shown) - 1),
                "seq_len": length,
                "profile_ids": [1 + user % 2],
                "is_simulated": True,
            }
        )
    return rows


def pretrain_rows() -> list[dict]:
    """Each user's actions as windows: train (40), val (10) and test (10), what came before as context."""
    rows = []
    for user in range(NUM_USERS):
        history = user_history(user)
        for split, start, stop in (("train", 0, 40), ("val", 40, 50), ("test", 50, 60)):
            rows.append(
                {name: values[:stop] for name, values in history.items()}
                | {
                    "day": DAY,
                    "split": split,
                    "sample_id": f"u{user}-{split}-0",
                    "user_id": f"u{user}",
                    "index_version": 1,
                    "pattern": "local" if user % 2 else "mixed",
                    "richness": 3.0,
                    "seq_len": stop,
                    "num_context": start,
                    "is_targets": [start <= step < stop for step in range(stop)],
                    "profile_ids": [1 + user % 2],
                    "is_simulated": True,
                }
            )
    return rows


def pair_rows(num_rows: int) -> list[dict]:
    """Preference pairs of the requests: the clicked POI over the others."""
    rows = []
    for request in request_rows(num_rows):
        names = ("poi_ids", "block_ids", "inner_ids", "lons", "lats", "category_ids")
        candidates = {name: request[f"candidate_{name}"] for name in names}
        rows.append(
            request
            | {"pair_id": request["request_id"], "rule": "clicks"}
            | {f"chosen_{name.removesuffix('s')}": values[0] for name, values in candidates.items()}
            | {f"rejected_{name}": values[1:] for name, values in candidates.items()}
        )
    return rows


def other_rows() -> dict[str, list[dict]]:
    """What each user did in the training windows: visits and transitions, by a plain loop."""
    visits, transitions = Counter(), Counter()
    for user in range(NUM_USERS):
        history = {name: values[:40] for name, values in user_history(user).items()}
        slots = list(zip(history["block_ids"], history["inner_ids"], strict=True))
        for place, (slot, time) in enumerate(zip(slots, history["timestamps_ms"], strict=True)):
            visits[f"u{user}", *slot, (time // HOUR_MS + 1) % 24] += 1
            for step, following in enumerate(slots[place + 1 : place + 3]):  # three steps take 15 hours
                if following != slot:
                    transitions[f"u{user}", *slot, *following] += 0.5**step
    common = {"day": DAY, "index_version": 1, "is_simulated": True}
    slot_names = ("user_id", "block_id", "inner_id")
    return {
        "training_visits": [
            common | dict(zip((*slot_names, "local_hour"), key, strict=True)) | {"visits": count}
            for key, count in visits.items()
        ],
        "training_transitions": [
            common | dict(zip((*slot_names, "next_block_id", "next_inner_id"), key, strict=True)) | {"weight": weight}
            for key, weight in transitions.items()
        ],
    }  # fmt: skip


def block_rows() -> list[dict]:
    """Blocks of the city."""
    return [
        {"index_version": 1, "block_id": block, "cell_x": block, "cell_y": 0, "center_lon": 4.8 + 0.07 *
        block,
         "center_lat": 52.31, "first_day": date(2025, 1, 1)}
        for block in range(NUM_BLOCKS)
    ]  # fmt: skip


def to_arrow(table: str, rows: list[dict]) -> pa.Table:
    """Rows as a table of its contract; keys that the contract does not have are dropped."""
    schema = arrow_schema(table)
    return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)


RECIPE = """
name: test
decoder: {hidden_dim: 16, ffn_dim: 32, num_layers: 1, num_heads: 2, num_kv_heads: 2, window_actions: 20,
          embedding_dim: 8, geo_buckets: 64, dropout: 0.0, embedding_dropout: 0.0,
          crowd: {enabled: true, num_followers: 2, num_near: 3}}
pretrain: {epochs: 3, batch_size: 4, warmup_steps: 5}
sft_embedding: {epochs: 2, batch_size: 8, warmup_steps: 2}
sft_ranking: {epochs: 2, batch_size: 8, warmup_steps: 2}
align_dpo: {epochs: 2, batch_size: 8, warmup_steps: 2, learning_rate: 1.0e-3}
"""


def some_pois(num: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "poi_id": [f"p{n:03d}" for n in range(num)],
            "longitude": -74.0 + 0.2 * rng.random(num),
            "latitude": 40.6 + 0.2 * rng.random(num),
            "category": [None if n % 7 == 0 else ("Bar", "Cafe", "Gym")[n % 3] for n in range(num)],
        }
    )
