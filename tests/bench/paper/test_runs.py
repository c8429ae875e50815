"""Cells of the paper's tables: made once, keyed by what they depend on; the page and what counts as reproduced."""

import numpy as np
import pandas as pd
import pytest

from models.data.ranks import Ranks
from tests.bench.paper.page import compare_table7, describe_set
from tests.bench.paper.runs import CHECKIN_SETS, Cell, CellMaker
from tests.bench.paper.variants import FULL, TABLE7_ROWS, VARIANTS, load_variant

RECIPE = "conf/models/paper.yaml"
SMALL = [
    "decoder.hidden_dim=16", "decoder.ffn_dim=16", "decoder.num_layers=1", "decoder.num_kv_heads=2",
    "decoder.num_heads=2", "decoder.window_actions=6", "decoder.geo_buckets=32", "pretrain.epochs=1",
    "pretrain.batch_size=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def maker(tmp_path_factory) -> CellMaker:
    """Six users who walk around a circle of eight POIs."""
    root = tmp_path_factory.mktemp("circle")
    rows = [(f"u{user}", f"p{(user + step) % 8}", 5 * step) for user in range(6) for step in range(25)]
    frame = pd.DataFrame(rows, columns=["user_id", "poi_id", "hour"])
    frame["utc_time"] = pd.Timestamp("2026-06-01", tz="UTC") + pd.to_timedelta(frame.pop("hour"), unit="h")
    frame.assign(tz_offset_min=0).to_parquet(root / "checkins.parquet")
    lons = 4.9 + 0.05 * np.arange(8)
    pois = pd.DataFrame({"poi_id": [f"p{n}" for n in range(8)], "longitude": lons, "latitude": 52.4})
    pois.assign(category="Bar").to_parquet(root / "pois.parquet")
    return CellMaker(CHECKIN_SETS["city"], root, root / "work")


def make_cell(maker: CellMaker, variant: str, seed: int, num_higher: np.ndarray) -> Cell:
    ranks = Ranks(num_higher, np.ones(len(num_higher), np.int64))
    return Cell(variant, seed, "digest", ranks, 60.0, 10, 10, 1.0, 1000, 1)


def test_every_row_differs_from_the_full_model_in_one_thing():
    full = load_variant(RECIPE, VARIANTS[FULL], seed=0)

    for variant in VARIANTS.values():
        recipe = load_variant(RECIPE, variant, seed=0)
        is_changed = (recipe != full) + variant.is_hashed + (variant.baseline is not None)
        assert is_changed == (variant is not VARIANTS[FULL])


@pytest.mark.parametrize("variant", ["hash-index", "lstm"])
def test_a_cell_is_made_once_and_a_changed_recipe_makes_another(maker, variant):
    recipe = load_variant(RECIPE, VARIANTS[variant], seed=3, overrides=SMALL)
    assert maker.find(variant, 3, recipe) is None

    cell = maker.make(variant, 3, recipe)

    found = maker.find(variant, 3, recipe)
    assert found is not None
    np.testing.assert_array_equal(found.ranks.expected, cell.ranks.expected)
    assert len(cell.ranks) == len(maker.rows.requests["test"])
    assert (cell.ranks.expected <= 8).all()
    assert maker.find(variant, 3, load_variant(RECIPE, VARIANTS[variant], seed=3)) is None
    assert maker.find(variant, 4, recipe) is None


def test_a_row_is_reproduced_if_the_full_model_is_ahead_at_both_cutoffs(maker):
    requests = maker.rows.requests["test"]
    first, never = np.zeros(len(requests), np.int64), np.full(len(requests), 500)
    cells = {
        FULL: [make_cell(maker, FULL, 0, first)],
        "gpt": [make_cell(maker, "gpt", 0, never)],
        "no-spacetime": [make_cell(maker, "no-spacetime", 0, np.full(len(requests), 50))],  # as good at 100
        "hash-index": [make_cell(maker, "hash-index", 0, first)],
    }

    rows = {row.variant: row for row in compare_table7(requests, cells)}

    assert set(rows) == {"gpt", "no-spacetime", "hash-index"} < set(TABLE7_ROWS)
    assert rows["gpt"].hr1.value == rows["gpt"].hr100.value == 1.0
    assert [name for name, row in rows.items() if row.is_reproduced] == ["gpt"]
    verdicts = {name: row.verdict for name, row in rows.items()}
    assert verdicts == {"gpt": "yes", "no-spacetime": "hr@1 only", "hash-index": "no"}
    page = "\n".join(describe_set(maker, cells))
    assert "| 1.0000 | 1.0000 | +1.0000" not in page  # the full model has no difference to itself
    assert page.count("[+1.0000, +1.0000]") == 3
    assert "*recency-weighted visit baseline*" in page
