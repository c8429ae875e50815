"""Fixtures of the feature jobs: small bundles with random weights, and towns to run the jobs in."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conf.settings import Settings, StorageSettings
from tests.udfs.town import NUM_POIS, Town


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights, of the smallest recipe."""
    return make_bundle(tmp_path_factory.mktemp("bundle"), seed=1)


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with other weights, so another model version."""
    return make_bundle(tmp_path_factory.mktemp("other"), seed=2)


def make_bundle(folder: Path, *, seed: int) -> Path:
    """Writes a bundle of all stages with random weights for an index of two blocks."""
    import torch

    from conf.tokens import TokenLayout
    from models.bundle import STAGE_FOLDERS, save_bundle
    from models.checkpoint import save_stage
    from models.config import DecoderConfig
    from models.decoder import SpacetimeDecoder

    layout = TokenLayout(index_version=1, num_blocks=4, max_inner=8, num_categories=8)
    shape = DecoderConfig(
        hidden_dim=16, ffn_dim=32, num_layers=1, num_heads=2, num_kv_heads=2, embedding_dim=8
    )
    torch.manual_seed(seed)
    stage = save_stage(folder / "stage", SpacetimeDecoder(shape.with_layout(layout, num_pois=NUM_POIS)))
    content = {"embedding_dim": shape.embedding_dim, "is_simulated": False}
    return save_bundle(folder / "bundle", dict.fromkeys(STAGE_FOLDERS, stage), layout=layout, content=content)


@pytest.fixture
def town(spark: object, settings: Settings, bundle: Path) -> Town:
    """An empty town."""
    features = settings.features.model_copy(update={"top_k": 3, "micro_batch": 4, "max_failed_share": 0.5})
    return Town(spark, settings.model_copy(update={"features": features}), bundle)


@pytest.fixture
def first_night(town: Town) -> Town:
    """A town with the inputs of DAY_1."""
    town.deliver_first_night()
    return town


@pytest.fixture
def other_town(town: Town, tmp_path: Path) -> Town:
    """Another empty town with the same settings."""
    storage = StorageSettings(root=str(tmp_path / "other"), artifacts=str(tmp_path / "other_artifacts"))
    return Town(town.spark, town.settings.model_copy(update={"storage": storage}), town.bundle)


@pytest.fixture
def run_isolated_counted() -> Callable[..., tuple[list[object], int]]:
    """Runs `run_isolated` over numbers and counts the rows that were computed."""
    import pyarrow as pa

    from udfs.isolation import run_isolated

    def run(
        numbers: Sequence[int], compute: Callable[[int], object], micro_batch: int
    ) -> tuple[list[object], int]:
        computed = 0

        def compute_batch(batch: pa.RecordBatch) -> list[object]:
            nonlocal computed
            computed += batch.num_rows
            return [compute(number) for number in batch.column(0).to_pylist()]

        batch = pa.RecordBatch.from_pydict({"number": pa.array(numbers, pa.int64())})
        return run_isolated(compute_batch, batch, micro_batch=micro_batch), computed

    return run
