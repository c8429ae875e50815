"""A tiny warehouse with two releases, written without Spark, and what reads the report made from it."""

import argparse
import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from conf.cli import JobContext
from conf.settings import Settings
from conf.tables import FEATURE_TABLES, TABLES
from models.report.build import run_report

DAY = date(2026, 3, 2)
HOSTILE = "<script>alert('x')</script> > Caf\u00e9 & $\\frac{1}{0}$"
ARROW = {
    "string": pa.string(),
    "bigint": pa.int64(),
    "int": pa.int32(),
    "double": pa.float64(),
    "float": pa.float32(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
}
FILLERS = {"string": "", "bigint": 0, "int": 1, "double": 0.0, "float": 0.0, "boolean": False, "date": DAY}


def arrow_type(name):
    """Arrow type of a Spark SQL type of the contract."""
    if name == "map<string,bigint>":
        return pa.map_(pa.string(), pa.int64())
    return pa.list_(ARROW[name[6:-1]]) if name.startswith("array<") else ARROW[name]


def write(root, name, rows, *, mode="append"):
    """Appends rows, given as far as a test cares, and returns the table's version."""
    columns = [
        column for column in TABLES[name].columns if "struct<" not in column.type
    ]  # no report reads them
    schema = pa.schema([(column.name, arrow_type(column.type)) for column in columns])
    fill = {column.name: None if column.nullable else FILLERS.get(column.type, []) for column in columns}
    table = pa.Table.from_pylist([fill | row for row in rows], schema=schema)
    write_deltalake(f"{root}/{name}", table, mode=mode)


def raw_action(action_id, poi_id="p0", *, day=DAY, **more):
    return {
        "day": day,
        "action_id": action_id,
        "user_id": "u0",
        "poi_id": poi_id,
        "action_type": "click",
        "action_ts_ms": 1_772_409_600_000,
        "is_simulated": False,
    } | more


def refuse(row, reason, duplicate_no=0):
    payload = json.dumps({name: value for name, value in row.items() if name != "day"})
    return {
        "day": row["day"],
        "source_table": "raw_actions",
        "reason": reason,
        "detail": "",
        "payload": payload,
        "row_hash": str(hash(payload)),
        "duplicate_no": duplicate_no,
    }


def write_index(root, num_pois):
    rng = np.random.default_rng(1)
    blocks = max(2, num_pois // 12)
    block = np.minimum(rng.zipf(1.4, num_pois) - 1, blocks - 1)
    across = max(2, int(blocks**0.5))
    write(
        root,
        "blocks",
        [
            {
                "block_id": b,
                "center_lon": 4.9 + 0.0737 * (b % across),
                "center_lat": 52.37 + 0.04497 * (b // across),
                "first_day": DAY,
            }
            for b in range(blocks)
        ],
    )
    tops = [HOSTILE, "Food > Ramen", "Shop > Books", "Nightlife > Bar", "Travel > Station", "Outdoors > Park"]
    write(
        root,
        "categories",
        [
            {"category_id": i + 1, "category": path.split(" > ")[-1], "category_path": path}
            for i, path in enumerate(tops)
        ],
    )
    write(
        root,
        "poi_index",
        [
            {
                "poi_id": f"p{i}",
                "block_id": int(block[i]),
                "inner_id": i,
                "category_id": i % len(tops) + 1,
                "poi_lon": 4.9,
                "poi_lat": 52.4,
                "valid_from": DAY - timedelta(days=30),
                "name": HOSTILE,
            }
            for i in range(num_pois)
        ],
    )


def write_vectors(root, name, key, prefix, count, *, day, model, seed, dim=16, noise=0.0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(6, dim))
    matrix = centers[np.arange(count) % 6] + rng.normal(size=(count, dim))
    matrix += noise * np.random.default_rng(day.toordinal()).normal(size=matrix.shape)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    write(
        root,
        name,
        [
            {
                "day": day,
                key: f"{prefix}{i}",
                "embedding": vector.tolist(),
                "model_version": model,
                "run_id": "poi-run",
            }
            for i, vector in enumerate(matrix)
        ],
    )


def write_scores(root, *, day, num_requests, model, shift=0.0):
    rng = np.random.default_rng(day.toordinal())
    scored, shown = [], []
    for request in range(num_requests):
        for position in range(1, 8):
            logit = rng.normal() - 1.2 + shift
            key = {
                "day": day,
                "request_id": f"r{day}-{request}",
                "user_id": f"u{request % 5}",
                "poi_id": f"p{position}",
            }
            score = 1 / (1 + np.exp(-logit))
            scored.append(
                key | {"click_logit": logit, "score": score, "model_version": model, "run_id": "rank-run"}
            )
            shown.append(
                key | {"position": position, "label": int(rng.random() < score), "is_simulated": True}
            )
    write(root, "ranking_scores", scored)
    write(root, "raw_impressions", shown)


def build_warehouse(root, *, num_users=30, num_pois=40, num_actions=60):
    """Two nights, DAY and the one before, one release each; every night two rows refused, one duplicate."""
    before = DAY - timedelta(days=1)
    write_index(root, num_pois)
    rng = np.random.default_rng(3)
    for release_id, (day, model) in enumerate([(before, "spacetime-gr/1"), (DAY, "spacetime-gr/1")], start=1):
        actions = [raw_action(f"{day}-{i}", day=day) for i in range(num_actions)]
        bad = [raw_action(f"{day}-bad", day=day, action_ts_ms=1_772_409_600), raw_action(None, "", day=day)]
        write(root, "raw_actions", [*actions, actions[0], *bad])
        write(root, "quarantined_rows", [refuse(bad[0], "time_in_seconds"), refuse(bad[1], "missing_poi")])
        write(
            root,
            "cleaned_actions",
            [
                {"day": day, "action_id": row["action_id"], "user_id": "u0", "is_interest": i % 2 == 0}
                for i, row in enumerate(actions)
            ],
        )
        write(
            root,
            "action_sequences",
            [
                {
                    "day": day,
                    "user_id": f"u{i}",
                    "seq_len": int(min(400, 1 + rng.pareto(1.1) * 20)),
                    "num_actions": 5,
                    "richness": float(rng.gamma(2.0, 4.0)),
                    "pattern": ("local", "local", "mixed", "travel")[i % 4],
                }
                for i in range(num_users)
            ],
        )
        write_scores(root, day=day, num_requests=num_users // 2, model=model, shift=0.1 * release_id)
        write_vectors(root, "poi_embeddings", "poi_id", "p", num_pois, day=day, model=model, seed=5)
        write_vectors(
            root, "user_embeddings", "user_id", "u", num_users, day=day, model=model, seed=5, noise=0.2
        )
        write(
            root,
            "poi_candidates",
            [{"day": day, "request_id": "r", "user_id": "u0", "rank": 1, "poi_id": "p1"}],
        )
        write(root, "releases", [publish(root, release_id, day=day, model=model)])


def publish(root, release_id, *, day=DAY, model="spacetime-gr/1"):
    pinned = ("cleaned_actions", "poi_index", "action_sequences", *FEATURE_TABLES)
    versions = [
        (name, 0 if name == "poi_index" else release_id - 1)
        for name in pinned
        if (Path(root) / name).exists()
    ]
    published = int(datetime(2026, 3, 3, 4, tzinfo=UTC).timestamp() * 1000)
    return {
        "release_id": release_id,
        "day": day,
        "published_ts_ms": published,
        "table_versions": versions,
        "model_version": model,
        "run_id": "publish-run",
        "is_simulated": False,
    }


def settings_of(folder, **sections):
    storage = {"root": str(folder / "warehouse"), "artifacts": str(folder / "artifacts")}
    mlflow = {"tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    return Settings.model_validate({"storage": storage, "mlflow": mlflow} | sections)


def report_of(settings, *, day=DAY, release=None):
    """Runs the job and returns (summary, page)."""
    context = JobContext("report", day, settings, "report-run", False, argparse.Namespace(release=release))
    summary = run_report(context)
    return summary, Path(summary.notes["report"]).read_text(encoding="utf-8")


def text_of(page, key):
    """Words of one section, tags taken away."""
    found = re.search(rf'<section id="{key}">(.*?)</section>', page, re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<[^>]+>", " ", found[1], flags=re.DOTALL))


def write_evaluation(artifacts):
    """Floors and a model on the same rows, in the shape of models/evaluation/figures.py."""

    def next_poi(first, later):
        figures = {f"hr_at_{k}": min(1.0, first + later * k**0.5 / 10) for k in (1, 5, 10, 20, 100)}
        interval = {
            "value": figures["hr_at_1"],
            "low": figures["hr_at_1"] - 0.03,
            "high": figures["hr_at_1"] + 0.03,
        }
        return {
            group: figures | {"mrr": first, "ndcg_at_10": first, "hr_at_1_interval": interval}
            for group in ("all", "returns", "discoveries")
        }

    evaluation = {
        "protocol": "release-split",
        "split": "test",
        "is_simulated": True,
        "next_poi": {
            "rows": 1234,
            "users": 56,
            "digest": "0123456789abcdef",
            "rows_by_group": {"all": 1234, "returns": 1000, "discoveries": 234},
            "methods": {
                "popularity": next_poi(0.01, 0.05),
                "visit_counter": next_poi(0.21, 0.4),
                "kernel_counter": next_poi(0.33, 0.4),
                "pretrain": next_poi(0.41, 0.4),
            },
            "minus_kernel_counter": {"pretrain": {"hr_at_1": {"value": 0.08, "low": 0.01, "high": 0.15}}},
        },
        "new_places": {
            "rows": 1234,
            "share_new": 0.19,
            "mean_p_new": 0.2,
            "p_new_auc": 0.8765,
            "calibration": {"expected_error": 0.0123},
            "among_new": {
                "rows": 234,
                "hr_at_10": {"value": 0.1543, "low": 0.13, "high": 0.18},
                "baselines": {
                    "near_popular": {
                        "hr_at_10": 0.1234,
                        "difference": {"value": 0.03, "low": 0.01, "high": 0.05},
                    }
                },
            },
            "curve": [
                {"new_logit": 0.0, "all": 0.78, "new": 0.05, "returns": 0.9},
                {"new_logit": 1.0, "all": 0.77, "new": 0.09, "returns": None},
            ],
        },
        "ranking": {
            "rows": 9876,
            "users": 55,
            "click_rate": 0.1,
            "digest": "fedcba9876543210",
            "methods": {
                "distance": {"auc": {"value": 0.61, "low": 0.6, "high": 0.62}, "gauc": None},
                "sft_ranking": {"auc": {"value": 0.59, "low": 0.57, "high": 0.61}, "gauc": 0.58},
            },
            "calibration": {
                "predicted": [0.1, 0.4],
                "observed": [0.12, 0.35],
                "counts": [50, 50],
                "expected_error": 0.03,
            },
        },
    }
    folder = Path(artifacts) / "training" / str(DAY)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
