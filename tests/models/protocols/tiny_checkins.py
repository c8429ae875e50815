"""A tiny folder of check-ins, and the recipe of a model that is trained on it in a second."""

from pathlib import Path

import numpy as np
import pandas as pd

from models.config import Recipe

WINDOW = 6
RECIPE = Recipe.model_validate(
    {
        "decoder": {
            "hidden_dim": 16, "ffn_dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
            "window_actions": WINDOW, "geo_buckets": 32, "headroom": 1.0, "memory": {"key_dim": 8},
            "crowd": {"enabled": True, "num_followers": 2, "num_near": 4},
        },
        "pretrain": {"epochs": 1, "batch_size": 8, "warmup_steps": 2, "curriculum": False},
    }
)  # fmt: skip


def write_checkins(root: Path) -> Path:
    """Writes eight users who go between a few of twelve POIs; the thirteenth opens late. Returns the folder."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"p{(3 * user + rng.integers(0, 5)) % 12:02d}", 5 * step + user)
        for user in range(8)
        for step in range(30)
    ]
    rows.append(("u1", "p12", 148))
    frame = pd.DataFrame(rows, columns=["user_id", "poi_id", "hour"]).sort_values(["user_id", "hour"])
    frame["utc_time"] = pd.Timestamp("2012-06-01", tz="UTC") + pd.to_timedelta(frame.pop("hour"), unit="h")
    frame.assign(tz_offset_min=-240).to_parquet(root / "checkins.parquet")
    pd.DataFrame(
        {
            "poi_id": [f"p{n:02d}" for n in range(13)],
            "longitude": -74.0 + 0.01 * np.arange(13),
            "latitude": 40.7 + 0.005 * (np.arange(13) % 3),
            "category": ["Bar", "Cafe", None] * 4 + ["Gym"],
            "n_checkins": 1,
        }
    ).to_parquet(root / "pois.parquet")
    return root
