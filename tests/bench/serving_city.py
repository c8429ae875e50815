"""What the benchmarks of inference run on: decoders with random weights, and rows of random users and POIs.

Speed and memory do not depend on what the weights are, only on the shapes; every weight is moved off its start, so
that no part of the model is silent and two ways to compute one number can be told apart.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from conf.tables import ACTION_SEQUENCES, RANKING_SAMPLES, TableContract
from conf.tokens import TokenLayout
from models.config import DecoderConfig
from models.network.checkpoint import save_stage
from models.network.decoder import SpacetimeDecoder
from models.serving.bundle import STAGE_FOLDERS, ModelBundle, load_bundle, save_bundle

DAY_MS, START_MS = 86_400_000, 1_767_225_600_000
LAYOUT = TokenLayout(index_version=1, num_blocks=400, max_inner=256, num_categories=200)
NUM_POIS = 20_000
SERVING = DecoderConfig(
    hidden_dim=256,
    ffn_dim=768,
    num_layers=6,
    num_heads=8,
    num_kv_heads=2,
    window_actions=301,
    embedding_dim=128,
)
"""A model for a region: 5 million weights besides the vocabularies, pasts of 300 actions."""
_ARROW = {
    "int": pa.int32(),
    "bigint": pa.int64(),
    "float": pa.float32(),
    "boolean": pa.bool_(),
    "string": pa.string(),
}


def random_decoder(
    shape: DecoderConfig, layout: TokenLayout = LAYOUT, *, num_pois: int = NUM_POIS, seed: int = 0
) -> SpacetimeDecoder:
    """Returns a decoder in evaluation mode, all of whose parts have a say."""
    torch.manual_seed(seed)
    model = SpacetimeDecoder(shape.with_layout(layout, num_pois=num_pois))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def write_bundle(folder: Path, model: SpacetimeDecoder) -> ModelBundle:
    """Writes the decoder as a bundle of all stages and opens it."""
    stage = save_stage(folder / "stage", model)
    content = {"embedding_dim": model.config.embedding_dim, "is_simulated": True}
    stages = dict.fromkeys(STAGE_FOLDERS, stage)
    return load_bundle(save_bundle(folder / "bundle", stages, layout=model.config.layout, content=content))


def random_histories(
    lengths: Sequence[int], layout: TokenLayout = LAYOUT, *, seed: int = 0
) -> dict[str, pa.Array]:
    """Returns the history columns of users with so many actions each, a day after the last of them being 60 days on."""
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths, dtype=np.int64)
    total, offsets = int(sizes.sum()), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    ages = rng.exponential(5.0, size=total) * DAY_MS
    owner = np.repeat(np.arange(len(sizes)), sizes)
    times = np.sort(np.clip(START_MS + 60 * DAY_MS - ages, START_MS, None) + owner * 1e14) - owner * 1e14
    values = {
        **{
            f"poi_{name}" if name in ("lons", "lats") else name: own
            for name, own in _places(rng, total, layout)
        },
        "timestamps_ms": times.astype(np.int64),
        "tz_offsets_min": np.full(total, 60),
        "user_lons": 4.9 + 0.1 * rng.random(total),
        "user_lats": 52.3 + 0.1 * rng.random(total),
        "action_type_ids": rng.integers(4, size=total),
    }
    columns = {name: _lists(ACTION_SEQUENCES, name, own, offsets) for name, own in values.items()}
    nobody = np.zeros(0, np.int32)
    columns["profile_ids"] = _lists(
        ACTION_SEQUENCES, "profile_ids", nobody, np.zeros(len(sizes) + 1, np.int32)
    )
    columns["seq_len"] = pa.array(sizes, pa.int32())
    return columns


def random_requests(
    num_rows: int, num_candidates: int, layout: TokenLayout = LAYOUT, *, seed: int = 1
) -> dict[str, pa.Array]:
    """Returns the request and candidate columns of requests after all histories."""
    rng = np.random.default_rng(seed)
    offsets = num_candidates * np.arange(num_rows + 1, dtype=np.int32)
    shown = {f"candidate_{name}": own for name, own in _places(rng, num_rows * num_candidates, layout)}
    return {
        "request_ts_ms": pa.array(START_MS + 60 * DAY_MS + rng.integers(DAY_MS, size=num_rows), pa.int64()),
        "tz_offset_min": pa.array(np.full(num_rows, 60), pa.int32()),
        "user_lon": pa.array(4.9 + 0.1 * rng.random(num_rows), pa.float64()),
        "user_lat": pa.array(52.3 + 0.1 * rng.random(num_rows), pa.float64()),
        "action_type_id": pa.array(np.zeros(num_rows), pa.int32()),
        **{name: _lists(RANKING_SAMPLES, name, own, offsets) for name, own in shown.items()},
    }


def _places(
    rng: np.random.Generator, size: int, layout: TokenLayout
) -> list[tuple[str, NDArray[np.int64] | NDArray[np.float64]]]:
    """Returns POIs; few of them get most visits."""
    blocks = (layout.num_blocks * rng.random(size) ** 3).astype(np.int64)
    inners = (layout.max_inner * rng.random(size) ** 2).astype(np.int64)
    return [
        ("block_ids", blocks),
        ("inner_ids", inners),
        ("lons", 4.9 + 0.0002 * blocks),
        ("lats", 52.3 + 0.0002 * inners),
        ("category_ids", (blocks * 31 + inners) % layout.num_categories),
    ]


def _lists(contract: TableContract, name: str, values: np.ndarray, offsets: NDArray[np.int32]) -> pa.Array:
    element = contract.column(name).type.removeprefix("array<").removesuffix(">")
    return pa.ListArray.from_arrays(offsets, pa.array(values).cast(_ARROW[element]))
