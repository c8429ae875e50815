"""Measures how far a candidate's click logit moves with what must not matter to it; records `parity-max-diff`.

    python -m tests.bench.parity [--stage FOLDER --samples FILE]

Each candidate of each request is scored alone, among its 11, among 300, in another order, beside requests with more
candidates and longer pasts (padding), in a batch of 1 and of 64, below a cached user part and again, by the trainer, by
what the feature job calls in its workers, and by the model as MLflow serves it. Without a trained stage a decoder with
random weights, far from their start, is measured on random requests.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from conf.results import record
from conf.tables import CANDIDATE_NAMES, HISTORY_NAMES
from conf.tokens import TokenLayout
from models.config import DecoderConfig
from models.data.batch import CandidateBatch, collate_candidates, collate_history, collate_requests
from models.network.checkpoint import load_stage
from models.network.decoder import SpacetimeDecoder
from models.registry.click_scorer import INPUT_COLUMNS, OUTPUT_COLUMN, ClickScorer
from models.serving.bundle import ModelBundle
from models.serving.inference import score_candidates
from models.training.sft_ranking import score_rows

COMMAND = "make bench-parity"
BAR = "<= 0.00001"
NUM_REQUESTS, MANY = 64, 300
LAYOUT = TokenLayout(index_version=1, num_blocks=40, max_inner=64, num_categories=30)
Logits = list[np.ndarray]


def measure(bundle: ModelBundle, rows: pa.RecordBatch, *, seed: int = 0) -> dict[str, float]:
    """Returns the largest difference of a logit from the feature job's, for every way of scoring.

    Args:
        bundle: with `sft_ranking`.
        rows: requests with at least two candidates each.
        seed: of orders and of the POIs that are added.
    """
    rng = np.random.default_rng(seed)
    expected = score_candidates(bundle, rows)
    lengths = [len(own) for own in expected]
    orders = [rng.permutation(size) for size in lengths]
    crowd = [np.r_[np.arange(size), mark_crowd(rng, sum(lengths), MANY - size)] for size in lengths]
    ways: Mapping[str, Callable[[], Logits]] = {
        "batch of 1": lambda: score_candidates(bundle, rows, micro_batch=1),
        "requests in another order": lambda: _reordered(bundle, rows, rng.permutation(rows.num_rows)),
        "alone": lambda: _alone(bundle, rows, lengths),
        f"among {MANY}": lambda: _among(bundle, rows, crowd, lengths),
        "candidates in another order": lambda: _permuted(bundle, rows, orders),
        "trainer": lambda: _by_trainer(bundle, rows, lengths),
        "below a cached user part": lambda: list(_below_cache(bundle, rows, lengths)),
        "MLflow model": lambda: _by_mlflow(bundle, rows),
    }
    found = {}
    for name, score in ways.items():
        pairs = zip(score(), expected, strict=True)
        found[name] = max(float(np.abs(own - other).max()) for own, other in pairs)
    return found


def mark_crowd(rng: np.random.Generator, num_flat: int, size: int) -> np.ndarray:
    """Returns marks of flat candidates (below zero) that crowd a request."""
    return -1 - rng.integers(num_flat, size=size)


def with_candidates(rows: pa.RecordBatch, picked: list[np.ndarray]) -> pa.RecordBatch:
    """Returns the requests with other candidates: own ones by place, those of anybody by -1 - flat place."""
    offsets = rows.column("candidate_block_ids").offsets.to_numpy()
    offsets = offsets - offsets[0]
    flat = [np.where(own >= 0, own + offsets[row], -1 - own) for row, own in enumerate(picked)]
    sizes = np.array([0, *map(len, picked)], dtype=np.int32)
    columns = {}
    for name in rows.schema.names:
        column = rows.column(name)
        if name in CANDIDATE_NAMES:
            values = column.flatten().take(pa.array(np.concatenate(flat)))
            column = pa.ListArray.from_arrays(np.cumsum(sizes, dtype=np.int32), values)
        columns[name] = column
    return pa.record_batch(columns)


def _alone(bundle: ModelBundle, rows: pa.RecordBatch, lengths: list[int]) -> Logits:
    found: Logits = [np.zeros(size, np.float32) for size in lengths]
    for place in range(max(lengths)):
        own = [row for row, size in enumerate(lengths) if place < size]
        part = with_candidates(rows.take(pa.array(own)), [np.array([place])] * len(own))
        for row, logits in zip(own, score_candidates(bundle, part), strict=True):
            found[row][place] = logits[0]
    return found


def _among(bundle: ModelBundle, rows: pa.RecordBatch, crowd: list[np.ndarray], lengths: list[int]) -> Logits:
    scored = score_candidates(bundle, with_candidates(rows, crowd), micro_batch=8)
    return [own[:size] for own, size in zip(scored, lengths, strict=True)]


def _permuted(bundle: ModelBundle, rows: pa.RecordBatch, orders: list[np.ndarray]) -> Logits:
    scored = score_candidates(bundle, with_candidates(rows, orders))
    return [own[np.argsort(order)] for own, order in zip(scored, orders, strict=True)]


def _reordered(bundle: ModelBundle, rows: pa.RecordBatch, order: np.ndarray) -> Logits:
    scored = score_candidates(bundle, rows.take(pa.array(order)))
    return [scored[place] for place in np.argsort(order)]


def _by_trainer(bundle: ModelBundle, rows: pa.RecordBatch, lengths: list[int]) -> Logits:
    with torch.no_grad():
        logits, _ = score_rows(bundle.model("sft_ranking"), pa.Table.from_batches([rows]))
    return [own[:size].numpy() for own, size in zip(logits, lengths, strict=True)]


def _below_cache(bundle: ModelBundle, rows: pa.RecordBatch, lengths: list[int]) -> Iterator[np.ndarray]:
    """Reads the user part once, then one candidate after another below it."""
    model = bundle.model("sft_ranking")
    with torch.no_grad():
        prefix = model.encode_prefix(collate_history(rows))
        request, candidates = collate_requests(rows), collate_candidates(rows)
        columns = []
        for place in range(max(lengths)):
            one = CandidateBatch(
                (candidates.lengths_B > place).long(),
                *(field[:, place : place + 1] for field in candidates[1:5]),  # type: ignore[index]
            )
            columns.append(model.click_logits(model.candidate_states(prefix, request, one)))
    logits = torch.cat(columns, dim=1).numpy()
    yield from (own[:size] for own, size in zip(logits, lengths, strict=True))


def _by_mlflow(bundle: ModelBundle, rows: pa.RecordBatch) -> Logits:
    frame = pa.Table.from_batches([rows]).select(INPUT_COLUMNS).to_pandas()
    served = ClickScorer(bundle).predict(frame)[OUTPUT_COLUMN]
    return [np.array(own, dtype=np.float32) for own in served]


def random_bundle(seed: int = 0) -> ModelBundle:
    """Returns a decoder of the tiny recipe's shape whose weights all have a say."""
    torch.manual_seed(seed)
    shape = DecoderConfig(multimodal_dim=16, multimodal_rows=500)
    model = SpacetimeDecoder(shape.with_layout(LAYOUT, num_pois=1_000))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    slots = torch.randperm(LAYOUT.num_blocks * LAYOUT.max_inner)[:500]
    vectors = model.trunk.embedding.given_vectors
    assert vectors is not None
    vectors.set_vectors(slots // LAYOUT.max_inner, slots % LAYOUT.max_inner, torch.randn(500, 16))
    return _bundle_of(model.eval())


def random_requests(seed: int = 0) -> pa.RecordBatch:
    """Returns requests with pasts of 0 to 150 actions and 2 to 11 candidates."""
    rng = np.random.default_rng(seed)
    start = 1_767_225_600_000

    def places(size: int) -> dict[str, np.ndarray]:
        return {
            "block_ids": rng.integers(LAYOUT.num_blocks, size=size),
            "inner_ids": rng.integers(LAYOUT.max_inner, size=size),
            "lons": 4.9 + 0.1 * rng.random(size), "lats": 52.3 + 0.1 * rng.random(size),
            "category_ids": rng.integers(LAYOUT.num_categories, size=size),
        }  # fmt: skip

    rows = []
    for number in range(NUM_REQUESTS):
        size, shown = (0 if number == 0 else int(rng.integers(1, 150))), int(rng.integers(2, 12))
        past = {f"poi_{k}" if k in ("lons", "lats") else k: v for k, v in places(size).items()}
        rows.append(
            {
                "request_ts_ms": start + 40 * 86_400_000 + int(rng.integers(10**8)), "tz_offset_min": 60,
                "user_lon": None if number % 7 == 0 else 4.95, "user_lat": None if number % 7 == 0 else 52.35,
                "action_type_id": 0, "profile_ids": [1 + number % 3] * (number % 2),
                **{name: values.tolist() for name, values in past.items()},
                "timestamps_ms": (start + np.sort(rng.integers(40 * 86_400_000, size=size))).tolist(),
                "tz_offsets_min": [60] * size, "user_lons": [4.95] * size, "user_lats": [52.35] * size,
                "action_type_ids": rng.integers(6, size=size).tolist(),
                **{f"candidate_{name}": values.tolist() for name, values in places(shown).items()},
                "labels": rng.integers(2, size=shown).tolist(),
            }
        )  # fmt: skip
    return pa.RecordBatch.from_pylist(rows)


def _bundle_of(model: SpacetimeDecoder) -> ModelBundle:
    bundle = ModelBundle(Path(), model.config.layout, ("sft_ranking",), model.config.embedding_dim, True, {})
    bundle._loaded["sft_ranking", "cpu"] = model
    return bundle


def main() -> int:
    """Measures and records."""
    parser = argparse.ArgumentParser(description="One candidate, one score.")
    parser.add_argument("--stage", type=Path, metavar="FOLDER", help="a trained ranking stage")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="Parquet of ranking samples for it")
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    if options.stage:
        bundle = _bundle_of(load_stage(options.stage))
        names = [*INPUT_COLUMNS, "labels", "candidate_poi_ids", "candidate_positions", "seq_len"]
        names += [name for name in HISTORY_NAMES if name not in names and not name.startswith("is_")]
        table = pq.read_table(options.samples, columns=names).slice(0, NUM_REQUESTS).combine_chunks()
        rows, about = table.to_batches()[0], "trained stage"
    else:
        bundle, rows, about = random_bundle(), random_requests(), "random weights"
    found = measure(bundle, rows)
    scores = np.concatenate(score_candidates(bundle, rows))
    told = "; ".join(f"{name} {value:.1e}" for name, value in found.items())
    notes = (
        f"{about}, float32, {rows.num_rows} requests, logits {scores.min():.2f} to {scores.max():.2f}: {told}"
    )
    record("parity-max-diff", float(f"{max(found.values()):.3e}"), "", BAR, COMMAND, notes, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
