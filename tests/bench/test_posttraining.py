"""The bench of post-training: stretches do not overlap, and every table can be measured on a city of a few requests."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from models.config import Recipe
from models.data.dataset import read_table
from models.lift import ranker
from tests.bench import latent_classes, posttraining_cells, posttraining_curve
from tests.bench.posttraining_cells import Cells
from tests.bench.posttraining_city import City, Days, _split, make_null_city, read_requests, stretch_of
from tests.bench.posttraining_curve_page import Curves, record_curve
from tests.bench.posttraining_curve_page import write_page as write_curve_page
from tests.bench.posttraining_page import write_page
from tests.bench.posttraining_scores import measure_meal_rule, measure_table4, measure_table8, measure_table9
from tests.bench.posttraining_tables import record_null, record_tables
from tests.models.planted_city import (
    FIRST_MS,
    HOUR_MS,
    block_rows,
    pair_rows,
    poi_rows,
    pretrain_rows,
    request_rows,
    to_arrow,
    user_history,
)

DAYS = Days(date(2026, 1, 2), date(2026, 1, 5), date(2026, 1, 8), date(2026, 1, 13), val_days=1)
MEAL_PAIRS = [row | {"rule": "meal_time"} for row in pair_rows(240)]
STEPS = {"max_steps": 1, "val_every": 1, "batch_size": 16}


@pytest.fixture
def city(tmp_path: Path) -> City:
    tables = {
        "poi_index": poi_rows(), "blocks": block_rows(), "pretrain_samples": pretrain_rows(),
        "ranking_samples": request_rows(240), "preference_pairs": pair_rows(240) + MEAL_PAIRS,
    }  # fmt: skip
    categories = [
        {"category_id": n, "category_path": path} for n, path in enumerate(("Shop", "Food > Cafe"), start=1)
    ]
    write_deltalake(str(tmp_path / "warehouse" / "categories"), pa.Table.from_pylist(categories))
    for name, rows in tables.items():
        as_of = DAYS.pretrain if name == "pretrain_samples" else DAYS.test
        dated = [row | {"day": as_of} for row in rows]
        write_deltalake(str(tmp_path / "warehouse" / name), to_arrow(name, dated))
    actions = [
        {"user_id": f"u{user}", "action_ts_ms": ts, "tz_offset_min": 60, "block_id": block, "inner_id": inner}
        for user in range(12)
        for ts, block, inner in zip(
            *(user_history(user)[name] for name in ("timestamps_ms", "block_ids", "inner_ids")), strict=True
        )
    ]
    write_deltalake(str(tmp_path / "warehouse" / "cleaned_actions"), pa.Table.from_pylist(actions))
    shown = [
        (row["request_id"], poi) for row in tables["ranking_samples"] for poi in row["candidate_poi_ids"]
    ]
    ids, pois = (list(part) for part in zip(*shown, strict=True))
    oracle = {"request_id": ids, "poi_id": pois, "logit": np.linspace(-1, 1, len(ids))}
    (tmp_path / "oracle.parquet").mkdir()  # as Spark writes it
    pq.write_table(pa.table(oracle), tmp_path / "oracle.parquet" / "part-0.parquet")
    versions = dict.fromkeys(("pretrain_samples", "poi_index", "blocks"), 0)
    (tmp_path / "versions.json").write_text(json.dumps(versions))
    made = City(tmp_path, tmp_path, {}, DAYS, "0123456789ab")
    _split(made)
    return made


@pytest.fixture
def recipe() -> Recipe:
    shape = {
        "hidden_dim": 16,
        "ffn_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 2,
        "embedding_dim": 16,
    }
    stages = ("pretrain", "sft_embedding", "sft_ranking", "align_dpo")
    return Recipe.model_validate({"name": "toy", "decoder": shape, **dict.fromkeys(stages, STEPS)})


def test_stretches_follow_each_other_and_end_with_validation_days():
    hours = np.arange(0, 24 * 14, 6)
    found = stretch_of(DAYS, FIRST_MS + hours * HOUR_MS)
    days = {name: sorted({int(hour) // 24 + 1 for hour in hours[found == name]}) for name in np.unique(found)}
    assert days == {
        "": [1, 2, 14], "sft": [3, 4], "sft-val": [5], "ranker": [6, 7], "ranker-val": [8],
        "test": [9, 10, 11, 12, 13],
    }  # fmt: skip


def test_a_null_city_has_the_same_requests_and_other_clicks(city):
    null = make_null_city(city)
    was, now = (read_requests(one, "sft", "ranker", "test") for one in (city, null))
    names = ["request_id", "request_ts_ms", "candidate_poi_ids", "timestamps_ms", "stretch"]
    assert now.select(names).equals(was.select(names))
    assert [len(own) for own in now["labels"].to_pylist()] == [len(own) for own in was["labels"].to_pylist()]
    assert now["labels"] != was["labels"]


def test_all_tables_are_measured_and_recorded(city, recipe, tmp_path, monkeypatch):
    class Encoder:
        name, dim = "lengths", 3

        def encode(self, texts):
            return np.random.default_rng(0).normal(size=(len(texts), 3)).astype(np.float32)

    monkeypatch.setattr(posttraining_cells, "load_encoder", Encoder)
    monkeypatch.setattr(ranker, "NUM_RESAMPLES", 20)
    cells = Cells(city, recipe)
    figures = {
        "config_hash": city.config_hash, "table4": measure_table4(cells), "table8": measure_table8(cells),
        "table9": measure_table9(cells), "meal_rule": measure_meal_rule(cells),
    }  # fmt: skip
    figures["null"] = {name: figures[name] for name in ("table4", "table8")}
    figures = json.loads(json.dumps(figures))
    record_tables({1: figures, 2: figures}, str(tmp_path / "results"))
    record_null(figures, 1, str(tmp_path / "results"))

    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert set(written) == {
        "table4-lift-points", "table4-oracle-share", "table8-multimodal-gain-embedding",
        "table8-multimodal-gain-ranking", "table9-hr10-gain", "null-city-auc", "meal-rule-share-gain",
        "meal-rule-elsewhere",
    }  # fmt: skip
    auc = figures["table4"]["auc"]
    assert written["table4-lift-points"]["value"] == pytest.approx(
        100 * (auc["both"] - auc["base"]), abs=1e-3
    )
    assert city.config_hash in written["table4-lift-points"]["notes"]


def test_the_page_tells_means_intervals_and_only_what_every_city_has(tmp_path):
    def of_city(auc: float) -> dict:
        own = {"auc": auc, "auc_interval": [auc - 0.01, auc + 0.01], "gauc": auc, "ndcg_at_5": 0.3}
        names = ("distance", "popularity", "kernel", "base", "embedding", "scores", "both")
        table4 = dict.fromkeys(names, own) | {"requests": 1234, "lift_interval": [0.02, 0.03]}
        return {"config_hash": "abc", "table4": table4}

    left_out = of_city(0.7) | {"table9": {}}
    page = tmp_path / "docs" / "page.md"
    write_page({"city 8": of_city(0.6), "city 9": left_out}, page, title="Tables", about="Made by hand.")

    text = page.read_text()
    assert (
        "| + both | 0.6500 | 0.6000 [0.5900, 0.6100] | 0.7000 [0.6900, 0.7100] | 0.6500 | 0.3000 |  |" in text
    )
    assert "per city: [0.0200, 0.0300], [0.0200, 0.0300]." in text
    assert "Table 9:" not in text
    assert "oracle" not in text  # nobody measured it
    assert (page.parent / "page.png").stat().st_size > 5_000


def test_the_curve_is_measured_recorded_and_drawn(city, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(posttraining_curve, "make_city", lambda _: None)
    monkeypatch.setattr(posttraining_curve, "NUM_RESAMPLES", 20)
    monkeypatch.setattr(latent_classes, "NUM_ITERATIONS", 2)
    users = sorted({f"u{user}" for user in range(12)})
    likings = pa.table({"user_id": users, "likes": [("quiet", "lively")[n % 2] for n in range(12)]})
    (tmp_path / "likings.parquet").mkdir()
    pq.write_table(likings, tmp_path / "likings.parquet" / "part-0.parquet")

    figures = posttraining_curve.measure_city(city, recipe, (20, 0))
    again = posttraining_curve.measure_city(city, recipe, (20, 0))
    for own in (figures, again):  # the texts of these few POIs name no attribute
        own["probes"]["attribute"] = 0.5
    np.testing.assert_equal(again, json.loads(json.dumps(figures)))
    curves = Curves({1: figures, 2: again}, (20, 0))
    record_curve(curves, str(tmp_path / "results"))
    write_curve_page(curves, tmp_path / "curve.md", "toy.yaml")

    assert figures["20"]["requests"] == 20 < figures["0"]["requests"]
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert set(written) == {
        "table8-pretrain-gain-embedding",
        "table8-pretrain-gain-ranking",
        "interest-probe",
    }
    expected = 100 * (figures["0"]["ranking-pretrained"]["auc"] - figures["0"]["ranking-scratch"]["auc"])
    assert written["table8-pretrain-gain-ranking"]["value"] == pytest.approx(expected, abs=1e-3)
    assert "| 20 | embedding |" in (tmp_path / "curve.md").read_text()
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_the_requests_of_a_small_part_are_among_those_of_a_larger_one(city):
    ids = {}
    for number in (5, 9, 0):
        rows = read_table(city.few_sft_samples(number), ("request_id", "split")).to_pylist()
        ids[number] = {row["request_id"] for row in rows if row["split"] == "train"}
        assert any(row["split"] == "val" for row in rows)
    assert len(ids[5]) == 5
    assert ids[5] < ids[9] < ids[0]
