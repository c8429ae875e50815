"""Generates 10^5 POIs through what the feature job calls, and judges each against brute force and the calendar.

    python -m tests.bench.generation

A catalogue of 6,000 slots opens, closes and moves POIs on twenty days; requests lie before, between and after these.
A generated POI counts if its slot is live on the UTC day of its request (looked up in the slots themselves), if it is
in its list once, if the reported log probability is the one that the model gives to that POI by itself, and if no more
than k - 1 live POIs are more probable in a scan over every slot. Records `candidates-valid`, the share that counts; a
list that is too short counts its missing POIs as wrong.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from conf.results import record
from conf.tokens import TokenLayout
from conf.units import MS_PER_DAY
from models.config import DecoderConfig
from models.data.batch import collate_history, collate_requests
from models.data.catalogue import Catalogue
from models.network.decoder import SpacetimeDecoder
from models.serving.bundle import ModelBundle
from models.serving.inference import Generated, generate_candidates
from tests.bench.serving_city import START_MS, random_decoder, random_histories, random_requests

COMMAND = "make bench-generation"
LAYOUT = TokenLayout(index_version=1, num_blocks=100, max_inner=256, num_categories=200)
NUM_POIS = 6_000
SHAPE = DecoderConfig()
"""The tiny recipe's shape; how many layers there are has no part in what is measured."""
NUM_REQUESTS, TOP_K = 1_000, 100
NUM_CHANGE_DAYS, LAST_DAY = 20, 120
ROUNDING = 2e-5
"""Nats by which log probabilities of one POI, computed in two ways, may differ; POIs within it are tied."""


def make_catalogue(seed: int = 0) -> pa.Table:
    """Returns slots of which a third open, close or move on one of the days of change."""
    rng = np.random.default_rng(seed)
    slots = np.sort(rng.choice(LAYOUT.num_blocks * LAYOUT.max_inner, NUM_POIS, replace=False))
    first = np.full(NUM_POIS, START_MS // MS_PER_DAY - 400)
    last = np.full(NUM_POIS, -1)
    days = START_MS // MS_PER_DAY + rng.choice(np.arange(10, LAST_DAY), NUM_CHANGE_DAYS, replace=False)
    kind, day = rng.random(NUM_POIS), rng.choice(days, NUM_POIS)
    names = np.arange(NUM_POIS)
    first[kind < 0.1] = day[kind < 0.1]  # opens
    last[(kind >= 0.1) & (kind < 0.2)] = day[(kind >= 0.1) & (kind < 0.2)]  # closes
    moved = np.flatnonzero((kind >= 0.2) & (kind < 0.3))
    moved = moved[: len(moved) // 2 * 2].reshape(-1, 2)  # from the first slot to the second, on one day
    last[moved[:, 0]] = first[moved[:, 1]] = day[moved[:, 0]]
    names[moved[:, 1]] = names[moved[:, 0]]
    blocks, inners = slots // LAYOUT.max_inner, slots % LAYOUT.max_inner
    return pa.table(
        {
            "poi_id": [f"p{name}" for name in names], "block_id": blocks, "inner_id": inners,
            "poi_lon": 4.9 + 0.0002 * blocks, "poi_lat": 52.3 + 0.0002 * inners,
            "category_id": (blocks * 31 + inners) % LAYOUT.num_categories,
            "valid_from": pa.array(first, pa.int32()).cast(pa.date32()),
            "valid_to": pa.array(last, pa.int32(), mask=last < 0).cast(pa.date32()),
        }
    )  # fmt: skip


def make_requests(num_requests: int, seed: int = 0) -> pa.RecordBatch:
    """Returns requests spread over all days, by users with 0 to 80 past actions."""
    rng = np.random.default_rng(seed)
    columns = random_histories(rng.integers(0, 80, num_requests).tolist(), LAYOUT, seed=seed)
    columns |= random_requests(num_requests, 0, LAYOUT, seed=seed)
    times = START_MS + rng.integers((LAST_DAY + 10) * MS_PER_DAY, size=num_requests)
    return pa.record_batch(columns | {"request_ts_ms": pa.array(times, pa.int64())})


@torch.inference_mode()
def scan(
    model: SpacetimeDecoder, row: pa.RecordBatch, slots: pa.Table
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Returns for one request which slots are live on its day, and log P of every slot, -inf where it is not live."""
    day = int(row.column("request_ts_ms")[0].as_py()) // MS_PER_DAY
    first, last = (slots[name].cast(pa.int32()).to_numpy() for name in ("valid_from", "valid_to"))
    is_live = (first <= day) & (np.isnan(last) | (day < last))
    blocks, inners = (torch.tensor(slots[name].to_numpy()) for name in ("block_id", "inner_id"))
    catalogue = Catalogue.from_arrow(slots.filter(pa.array(is_live)))
    live = catalogue.live_slots(day * MS_PER_DAY, num_blocks=LAYOUT.num_blocks, max_inner=LAYOUT.max_inner)
    state = model.request_state(model.encode_prefix(collate_history(row)), collate_requests(row), live)
    log_blocks = model.block_log_probs(state)[0].double()
    every = torch.arange(LAYOUT.num_blocks)[None]
    log_inners = model.inner_log_probs(state, every)[0].double()
    scores = log_blocks[blocks] + log_inners[blocks, inners]
    return is_live, np.where(is_live, scores.numpy(), -np.inf)


def count_valid(
    model: SpacetimeDecoder,
    row: pa.RecordBatch,
    slots: pa.Table,
    found: Generated,
) -> int:
    """Returns how many POIs of a list count."""
    places, reported = found.pois, found.log_probs
    is_live, scores = scan(model, row, slots)
    least = np.sort(scores)[-min(TOP_K, int(is_live.sum()))]
    is_first = np.zeros(len(places), dtype=bool)
    is_first[np.unique(places, return_index=True)[1]] = True
    falls = np.concatenate([[True], np.diff(reported) <= ROUNDING])
    own = scores[places]
    counts = (
        is_live[places] & is_first & falls & (np.abs(own - reported) <= ROUNDING) & (own >= least - ROUNDING)
    )
    return int(counts.sum())


def measure(num_requests: int) -> tuple[float, str]:
    """Returns the share of generated POIs that count, and the notes."""
    model, slots = random_decoder(SHAPE, LAYOUT, num_pois=NUM_POIS), make_catalogue()
    bundle = ModelBundle(Path(), LAYOUT, ("pretrain",), SHAPE.embedding_dim, True, {})
    bundle._loaded["pretrain", "cpu"] = model
    requests, catalogue = make_requests(num_requests), Catalogue.from_arrow(slots)
    slots = slots.sort_by([("block_id", "ascending"), ("inner_id", "ascending")])  # the catalogue's rows
    torch.set_num_threads(1)  # as a task has
    started = time.perf_counter()
    lists = generate_candidates(bundle, requests, catalogue, top_k=TOP_K)
    seconds = time.perf_counter() - started
    valid = [
        count_valid(model, requests.slice(row, 1), slots, found)
        for row, found in enumerate(lists)
    ]  # fmt: skip
    wrong = sum(own < TOP_K for own in valid)
    notes = (
        f"random weights, tiny shape; {num_requests} requests of {TOP_K} POIs out of {len(slots)} slots in "
        f"{LAYOUT.num_blocks} blocks, {NUM_CHANGE_DAYS} days of change; {sum(valid)} POIs count, {wrong} lists "
        f"with one that does not; {num_requests * TOP_K / seconds:.0f} POIs/s generated"
    )
    return sum(valid) / (num_requests * TOP_K), notes


def main() -> int:
    """Measures, records, and returns 0 if the bar is reached."""
    parser = argparse.ArgumentParser(description="Are generated POIs live, and the top k?")
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    share, notes = measure(options.requests)
    result = record("candidates-valid", share, "", "== 1.0", COMMAND, notes, options.results)
    print(f"candidates-valid {share}: {notes}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main())
