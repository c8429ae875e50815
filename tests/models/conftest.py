"""Fixtures of the model's tests."""

from collections.abc import Callable

import pyarrow as pa
import pytest
import torch

from conf.tokens import TokenLayout
from models.config import DecoderConfig
from models.data.catalogue import Catalogue
from models.network.decoder import SpacetimeDecoder
from tests.models.fixtures import city_root, city_settings, city_tables, tracking_settings  # noqa: F401
from tests.models.planted_city import NUM_BLOCKS, POIS_PER_BLOCK, request_rows, to_arrow


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from threads, and lose a lot where other tests use the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def catalogue(city_tables: dict[str, pa.Table]) -> Catalogue:
    """The slots of the city."""
    return Catalogue.from_arrow(city_tables["poi_index"])


@pytest.fixture
def make_decoder() -> Callable[..., SpacetimeDecoder]:
    """Makes a small decoder with random weights large enough to make its preferences distinct."""

    def make(*, seed: int = 0, **changes: object) -> SpacetimeDecoder:
        torch.manual_seed(seed)
        config = DecoderConfig(
            hidden_dim=16, ffn_dim=32, num_layers=1, num_heads=2, num_kv_heads=2, window_actions=8,
            embedding_dim=8, geo_buckets=64, **changes,
        )  # fmt: skip
        layout = TokenLayout(
            index_version=1, num_blocks=NUM_BLOCKS + 1, max_inner=POIS_PER_BLOCK + 2, num_categories=5
        )
        model = SpacetimeDecoder(config.with_layout(layout, num_pois=NUM_BLOCKS * POIS_PER_BLOCK)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def requests_batch() -> pa.RecordBatch:
    """Ten requests of different history lengths with candidates."""
    return to_arrow("ranking_samples", request_rows(10)).combine_chunks().to_batches()[0]
