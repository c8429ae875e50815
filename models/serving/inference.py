"""The interface for feature jobs: Arrow rows in, NumPy out; no Spark, and no files except the bundle's.

Rows are batched by history length and returned in their original order. A result depends on its row only: batch size
and row order change it by float32 rounding at most. Columns follow the contracts in `conf/tables.py`. Every function
may be called on any subset of rows.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from conf.tables import CANDIDATE_SOURCES
from models.copying.crowd_batches import collate_asked
from models.copying.crowd_candidates import SlotFinder
from models.data.arrays import Float32Array, Float64Array, IntArray
from models.data.batch import (
    HISTORY_INPUTS,
    CandidateBatch,
    collate_candidates,
    collate_history,
    collate_requests,
)
from models.data.catalogue import Catalogue
from models.data.ranks import Ranks
from models.data.slots import pack_slots
from models.network.decoder import SpacetimeDecoder
from models.network.trunk import Prefix, RequestState, take_sequences
from models.serving.bundle import ModelBundle, Serving, load_bundle
from models.serving.new_places import Visited, find_p_new, leave_out_visited, list_visited, shift_new
from models.serving.top_k import TopPois, find_top_pois, rank_pois, rank_shifted

__all__ = [
    "Catalogue",
    "Generated",
    "ModelBundle",
    "encode_pois",
    "encode_user_requests",
    "encode_users",
    "generate_candidates",
    "load_bundle",
    "predict_new",
    "rank_targets_by_model",
    "rank_targets_shifted",
    "score_candidates",
]


POI_COLUMNS = {
    "block_id": "candidate_block_ids",
    "inner_id": "candidate_inner_ids",
    "poi_lon": "candidate_lons",
    "poi_lat": "candidate_lats",
    "category_id": "candidate_category_ids",
}


class Generated(NamedTuple):
    """The POIs generated for one request, best first.

    Attributes:
        pois: rows of the catalogue, (POIs,).
        log_probs: log P(POI), nats, (POIs,), after the shift of new places.
        sources: place in `CANDIDATE_SOURCES`, (POIs,).
        p_new: probability that the next POI is new to the user, before the shift, as the bundle calibrates it.
    """

    pois: IntArray
    log_probs: Float32Array
    sources: IntArray
    p_new: float


@torch.inference_mode()
def encode_users(
    bundle: ModelBundle, sequences: pa.RecordBatch, *, micro_batch: int = 64, device: str = "cpu"
) -> Float32Array:
    """Returns unit vectors of users as of their last action (neutral request), (rows, embedding_dim)."""
    model = bundle.model("sft_embedding", device)
    vectors = np.zeros((sequences.num_rows, bundle.embedding_dim), dtype=np.float32)
    for rows in batch_by_length(
        history_lengths(sequences), micro_batch, max_actions=bundle.serving.max_actions
    ):
        history = collate_history(sequences.take(pa.array(rows))).to(device)
        with bundle.autocast(device):
            vectors[rows] = model.user_state(model.encode_prefix(history)).cpu().numpy()
    return vectors


@torch.inference_mode()
def encode_user_requests(
    bundle: ModelBundle,
    requests: pa.RecordBatch,
    *,
    micro_batch: int = 64,
    device: str = "cpu",
    stage: str = "sft_embedding",
) -> Float32Array:
    """Returns unit vectors of users at the time and place of a request, (rows, embedding_dim)."""
    model = bundle.model(stage, device)
    vectors = np.zeros((requests.num_rows, bundle.embedding_dim), dtype=np.float32)
    for rows in batch_by_length(
        history_lengths(requests), micro_batch, max_actions=bundle.serving.max_actions
    ):
        part = requests.take(pa.array(rows))
        with bundle.autocast(device):
            prefix = encode_shared(model, part, device)
            vectors[rows] = model.user_state(prefix, collate_requests(part).to(device)).cpu().numpy()
    return vectors


@torch.inference_mode()
def encode_pois(
    bundle: ModelBundle,
    pois: pa.RecordBatch,
    *,
    micro_batch: int = 1024,
    device: str = "cpu",
    stage: str = "sft_embedding",
) -> Float32Array:
    """Returns unit vectors of POIs, (rows, embedding_dim); columns as in `poi_index`."""
    model = bundle.model(stage, device)
    vectors = np.zeros((pois.num_rows, bundle.embedding_dim), dtype=np.float32)
    for start in range(0, pois.num_rows, micro_batch):
        part = pois.slice(start, micro_batch)
        candidates = collate_pois(part).to(device)
        with bundle.autocast(device):
            poi_vectors = model.poi_state(candidates)[:, 0]
        vectors[start : start + part.num_rows] = poi_vectors.cpu().numpy()
    return vectors


def collate_pois(pois: pa.RecordBatch) -> CandidateBatch:
    """Collates POIs as candidates, one a row, (rows, 1); columns as in `poi_index`."""
    single = pa.array(np.arange(pois.num_rows + 1, dtype=np.int32))
    lists = {
        new: pa.ListArray.from_arrays(single, pa.concat_arrays([pois.column(old)]))
        for old, new in POI_COLUMNS.items()
    }
    return collate_candidates(pa.record_batch(lists))


@torch.inference_mode()
def score_candidates(
    bundle: ModelBundle, requests: pa.RecordBatch, *, micro_batch: int = 64, device: str = "cpu"
) -> list[Float32Array]:
    """Returns the click logits of each request's candidates, in their order."""
    model = bundle.model("sft_ranking", device)
    scores: list[Float32Array] = [np.zeros(0, dtype=np.float32)] * requests.num_rows
    for rows in batch_by_length(
        history_lengths(requests), micro_batch, max_actions=bundle.serving.max_actions
    ):
        part = requests.take(pa.array(rows))
        candidates = collate_candidates(part).to(device)
        with bundle.autocast(device):
            prefix = encode_shared(model, part, device)
            states = model.candidate_states(prefix, collate_requests(part).to(device), candidates)
            logits = model.click_logits(states).cpu().numpy()
        for row, row_logits, length in zip(rows, logits, candidates.lengths_B.tolist(), strict=True):
            scores[row] = row_logits[:length]
    return scores


@torch.inference_mode()
def generate_candidates(
    bundle: ModelBundle,
    requests: pa.RecordBatch,
    catalogue: Catalogue,
    *,
    top_k: int,
    micro_batch: int = 64,
    device: str = "cpu",
    finder: SlotFinder | None = None,
    new_logit: float = 0.0,
) -> list[Generated]:
    """Returns the `top_k` most probable live POIs of each request.

    The list is exact, best first, and shorter than `top_k` only if fewer POIs are live. A model that copies from the
    crowd needs the `finder`, and `user_id` in the requests. `new_logit` is added to the log-odds of POIs that are new
    to the user (`models.serving.new_places`); 0 = as the model expects.
    """
    model = bundle.model(bundle.generator_stage, device)
    nothing = Generated(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64), np.nan)
    generated = [nothing] * requests.num_rows
    with bundle.autocast(device):
        for rows, state, visited in _request_states(
            model, requests, catalogue, micro_batch, device, finder, max_actions=bundle.serving.max_actions
        ):
            p_new_B = find_p_new(model, state, visited)
            shift = shift_new(visited, p_new_B, new_logit) if new_logit else None
            top = find_top_pois(model, state, top_k=top_k, shift=shift)
            pois = catalogue.find_rows(top.blocks_BN.cpu().numpy(), top.inners_BN.cpu().numpy())
            sources = _find_sources(top, state, visited).cpu().numpy()
            p_new = bundle.p_new_calibration.apply(p_new_B).tolist()
            log_probs = top.log_probs_BN.cpu().numpy()
            for place, row in enumerate(rows):
                is_live = log_probs[place] > -np.inf
                generated[row] = Generated(
                    pois[place, is_live],
                    log_probs[place, is_live].astype(np.float32),
                    sources[place, is_live],
                    p_new[place],
                )
    return generated


def _find_sources(top: TopPois, state: RequestState, visited: Visited) -> Tensor:
    """Returns the place in `CANDIDATE_SOURCES` of every generated POI, int64, (B, N)."""
    blocks_BN, inners_BN = top.blocks_BN, top.inners_BN
    is_crowd = torch.zeros_like(blocks_BN, dtype=torch.bool)
    if state.slots is not None:
        # Copies that are out of the question get a key that no POI has.
        keys_BC = pack_slots(state.slots.blocks_BQC, state.slots.inners_BQC)
        keys_BC = keys_BC.masked_fill(~state.slots.may_copy_BQC, -1)[:, 0]
        is_crowd = (pack_slots(blocks_BN, inners_BN)[..., None] == keys_BC[:, None]).any(dim=-1)
    is_visited = visited.contains(blocks_BN, inners_BN)
    generator, crowd, returned = (
        CANDIDATE_SOURCES.index(name) for name in ("generator", "crowd", "returned")
    )
    return torch.where(is_visited, returned, torch.where(is_crowd, crowd, generator))


@torch.inference_mode()
def rank_targets_by_model(
    model: SpacetimeDecoder,
    requests: pa.RecordBatch,
    targets: IntArray,
    catalogue: Catalogue,
    *,
    micro_batch: int = 64,
    device: str = "cpu",
    finder: SlotFinder | None = None,
    max_actions: int = Serving.max_actions,
) -> Ranks:
    """Returns the exact rank of each target (a row of the catalogue) among all POIs live on its day.

    A model that copies from the crowd needs the `finder`, and `user_id` in the requests. A batch has at most
    `max_actions` past actions, padding included.
    """
    higher, equal = np.zeros(requests.num_rows, np.int64), np.ones(requests.num_rows, np.int64)
    for rows, state, _ in _request_states(
        model, requests, catalogue, micro_batch, device, finder, max_actions=max_actions
    ):
        blocks, inners = (
            torch.from_numpy(ids[targets[rows]]).to(device)
            for ids in (catalogue.block_ids, catalogue.inner_ids)
        )
        ranks = rank_pois(model, state, blocks, inners)
        higher[rows], equal[rows] = ranks.num_higher, ranks.num_equal
    return Ranks(higher, equal)


@torch.inference_mode()
def predict_new(
    model: SpacetimeDecoder,
    requests: pa.RecordBatch,
    catalogue: Catalogue,
    *,
    micro_batch: int = 64,
    device: str = "cpu",
    finder: SlotFinder | None = None,
    max_actions: int = Serving.max_actions,
) -> Float64Array:
    """Returns P(new) of each request, not calibrated, (rows,); arguments as `rank_targets_by_model`."""
    p_new = np.zeros(requests.num_rows)
    for rows, state, visited in _request_states(
        model, requests, catalogue, micro_batch, device, finder, max_actions=max_actions
    ):
        p_new[rows] = find_p_new(model, state, visited).cpu().numpy()
    return p_new


class ShiftedRanks(NamedTuple):
    """Ranks of targets under shifts of the odds of new places, and P(new).

    Attributes:
        by_logit: exact ranks under each logit that was asked for.
        among_new: rank of the target among the POIs that are new to the user; meaningless for a return.
        p_new: P(new) of each request, without a shift.
    """

    by_logit: dict[float, Ranks]
    among_new: Ranks
    p_new: Float64Array


@torch.inference_mode()
def rank_targets_shifted(
    model: SpacetimeDecoder,
    requests: pa.RecordBatch,
    targets: IntArray,
    catalogue: Catalogue,
    *,
    logits: Sequence[float],
    micro_batch: int = 64,
    device: str = "cpu",
    finder: SlotFinder | None = None,
    max_actions: int = Serving.max_actions,
) -> ShiftedRanks:
    """Ranks each target under several shifts of the log-odds of new places, and among the new POIs alone.

    The other arguments are those of `rank_targets_by_model`.
    """
    higher = np.zeros((len(logits) + 1, requests.num_rows), np.int64)
    equal, p_new = np.ones_like(higher), np.zeros(requests.num_rows)
    for rows, state, visited in _request_states(
        model, requests, catalogue, micro_batch, device, finder, max_actions=max_actions
    ):
        blocks, inners = (
            torch.from_numpy(ids[targets[rows]]).to(device)
            for ids in (catalogue.block_ids, catalogue.inner_ids)
        )
        p_new_B = find_p_new(model, state, visited)
        shifts = [shift_new(visited, p_new_B, logit) for logit in logits]
        is_return_B = visited.contains(blocks[:, None], inners[:, None])[:, 0]
        shifts.append(leave_out_visited(visited, ~is_return_B))
        for place, ranks in enumerate(rank_shifted(model, state, blocks, inners, shifts)):
            higher[place, rows], equal[place, rows] = ranks.num_higher, ranks.num_equal
        p_new[rows] = p_new_B.cpu().numpy()
    found = [Ranks(more, ties) for more, ties in zip(higher, equal, strict=True)]
    return ShiftedRanks(dict(zip(logits, found, strict=False)), found[-1], p_new)


def history_lengths(rows: pa.RecordBatch) -> IntArray:
    """Returns the number of past actions of each row."""
    column = rows.column("timestamps_ms")
    return np.diff(column.offsets.to_numpy()).astype(np.int64)


def batch_by_length(
    lengths: IntArray, size: int, groups: IntArray | None = None, *, max_actions: int = Serving.max_actions
) -> Iterator[IntArray]:
    """Yields row numbers of batches within groups, short histories first to keep padding small.

    Args:
        lengths: past actions of each row.
        size: largest number of rows of a batch.
        groups: group of each row; a batch has rows of one group. None = one group.
        max_actions: limit on the rows of a batch times their longest history; a single row may exceed it.
    """
    groups = np.zeros(len(lengths), np.int64) if groups is None else groups
    order = np.lexsort((lengths, groups))
    for group in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        start = 0
        while start < len(group):
            longest = lengths[group[start : start + size]]
            # Lengths rise within a group, so each row is the longest one of the batch that ends with it.
            fits = np.arange(1, len(longest) + 1) * longest <= max_actions
            stop = start + max(1, int(fits.sum()))
            yield group[start:stop]
            start = stop


def encode_shared(model: SpacetimeDecoder, requests: pa.RecordBatch, device: str) -> Prefix:
    """Reads each distinct history once; requests of one user and day share its keys and values."""
    first, place = find_histories(requests)
    prefix = model.encode_prefix(collate_history(requests.take(pa.array(first))).to(device))
    if len(first) == requests.num_rows:
        return prefix
    shared: Prefix = take_sequences(prefix, torch.from_numpy(place).to(device))
    return shared


def find_histories(rows: pa.RecordBatch) -> tuple[IntArray, IntArray]:
    """Finds the rows with equal histories, by content.

    Returns:
        The first row of each distinct history, and for every row the place of its history among them.
    """
    parts = [_list_bytes(rows.column(name)) for name in HISTORY_INPUTS if name in rows.schema.names]
    places: dict[tuple[bytes, ...], int] = {}
    place = np.array([places.setdefault(key, len(places)) for key in zip(*parts, strict=True)], np.int64)
    return np.unique(place, return_index=True)[1].astype(np.int64), place


def _list_bytes(column: pa.Array) -> list[bytes]:
    """Returns the values of each row of a column of numbers, or of lists of numbers, as bytes."""
    if not pa.types.is_list(column.type):
        return [value.tobytes() for value in column.to_numpy(zero_copy_only=False)]
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy(zero_copy_only=False)
    return [values[start:stop].tobytes() for start, stop in itertools.pairwise(offsets)]


def _request_states(
    model: SpacetimeDecoder,
    requests: pa.RecordBatch,
    catalogue: Catalogue,
    micro_batch: int,
    device: str,
    finder: SlotFinder | None = None,
    *,
    max_actions: int,
) -> Iterator[tuple[IntArray, RequestState, Visited]]:
    """Yields (rows, their request states, their past POIs); rows of one batch share one set of live slots."""
    times = requests.column("request_ts_ms").to_numpy().astype(np.int64)
    epochs = catalogue.live_epochs(times)
    capacities = {"num_blocks": model.config.num_blocks, "max_inner": model.config.max_inner}
    for rows in batch_by_length(history_lengths(requests), micro_batch, epochs, max_actions=max_actions):
        part = requests.take(pa.array(rows))
        live = catalogue.live_slots(int(times[rows[0]]), **capacities).to(device)
        request = collate_asked(part, finder, model.config)
        prefix = encode_shared(model, part, device)
        # Not the prefix's history, which is cut to what the model reads.
        visited = list_visited(collate_history(part).to(device))
        yield rows, model.request_state(prefix, request.to(device), live), visited
