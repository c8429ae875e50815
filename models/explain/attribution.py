"""Attribution of one prediction: block map, top POIs, and the past actions with the largest shares.

The model mixes its generator with copies of the past (`models.network.history_copy`), so a prediction can be decomposed
exactly. In the block's prediction, past action j has the share

    e^{s_j} / (1 + sum e^{s})           and the generator 1 / (1 + sum e^{s});

in the POI's prediction, which draws a block and then an inner id, the shares inside each block count with
P(block). Both add up to 1 over generator, crowd candidates and past actions. The part of P(POI) from the user's
visits is the sum of the POI shares of the visits to it.
"""

# Shape letters: L = past actions, X = copies (L, then crowd candidates), V = blocks, K = blocks looked into.

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from models.copying.crowd_batches import collate_asked
from models.copying.crowd_candidates import SlotFinder
from models.data.arrays import Float64Array, IntArray
from models.data.batch import collate_history
from models.data.catalogue import Catalogue
from models.data.geo import distance_km
from models.network.decoder import SpacetimeDecoder, gather_copies
from models.network.history_copy import BLOCK, INNER, log_mass
from models.network.trunk import RequestState
from models.serving.top_k import find_top_pois

Place = tuple[float, float]
"""Longitude and latitude, degrees."""
NOWHERE = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Shares:
    """The shares of a prediction by source; they add up to 1.

    Attributes:
        generator: share of the transformer's softmax.
        crowd: share of the crowd candidates.
        actions: share of each past action, (L,); 0 if it cannot be copied or the memory is off.
    """

    generator: float
    crowd: float
    actions: Float64Array


@dataclass(frozen=True)
class PastActions:
    """The user's actions before the request, oldest first; all (L,).

    Attributes:
        poi_ids: catalogue id of the POI.
        block_ids: block of the slot that the POI had.
        inner_ids: inner id of the slot.
        timestamps_ms: epoch milliseconds UTC.
        tz_offsets_min: minutes to add for local time.
        lons: longitude of the POI, degrees.
        lats: latitude of the POI, degrees.
    """

    poi_ids: tuple[str, ...]
    block_ids: IntArray
    inner_ids: IntArray
    timestamps_ms: IntArray
    tz_offsets_min: IntArray
    lons: Float64Array
    lats: Float64Array

    def __len__(self) -> int:
        return len(self.poi_ids)


@dataclass(frozen=True)
class BlockChance:
    """A block and its probability; `place` is its centre, nan if unknown."""

    block_id: int
    probability: float
    place: Place


@dataclass(frozen=True)
class PoiChance:
    """A POI and its probability.

    Attributes:
        poi_id: catalogue id.
        block_id: block of the POI.
        probability: P(POI).
        from_visits: part of the probability that copies the user's visits, 0 to 1.
        place: place of the POI.
        distance_km: distance from the user; nan = the user's place is unknown.
        num_visits: visits of the user before the request.
    """

    poi_id: str
    block_id: int
    probability: float
    from_visits: float
    place: Place
    distance_km: float
    num_visits: int


@dataclass(frozen=True)
class Explanation:
    """The decomposed prediction of one request.

    Attributes:
        user_id: the requesting user.
        timestamp_ms: time of the request, epoch milliseconds UTC.
        tz_offset_min: minutes to add for local time.
        place: place of the user; nan = unknown.
        past: actions before the request.
        has_memory: True = the model can copy the past.
        block_shares: shares of the block's prediction.
        poi_shares: shares of the POI's prediction.
        blocks: every block that can be predicted, most probable first.
        pois: the most probable POIs, best first.
    """

    user_id: str
    timestamp_ms: int
    tz_offset_min: int
    place: Place
    past: PastActions
    has_memory: bool
    block_shares: Shares
    poi_shares: Shares
    blocks: tuple[BlockChance, ...]
    pois: tuple[PoiChance, ...]

    def leaned_on(self, most: int) -> IntArray:
        """Returns positions in `past` of the actions with the largest shares, largest first; no zero shares."""
        both = self.block_shares.actions + self.poi_shares.actions
        order = np.argsort(-both, kind="stable")[:most]
        return order[both[order] > 0]


@torch.inference_mode()
def explain_request(
    model: SpacetimeDecoder,
    request: pa.RecordBatch,
    catalogue: Catalogue,
    centers: Mapping[int, Place],
    *,
    top_k: int,
    finder: SlotFinder | None = None,
) -> Explanation:
    """Decomposes the prediction for one request.

    Args:
        model: model in evaluation mode.
        request: one row: `user_id`, the history columns with `poi_ids`, and the request's columns.
        catalogue: slots of the model's index version.
        centers: centres of blocks.
        top_k: number of POIs to list; fewer if fewer are live.
        finder: finder of crowd candidates, for a model that copies them.

    Raises:
        ValueError: there is more than one row, or none.
    """
    if request.num_rows != 1:
        raise ValueError(f"one request is explained at a time, not {request.num_rows}")
    requests = collate_asked(request, finder, model.config)
    timestamp_ms = int(requests.timestamps_B[0])
    live = catalogue.live_slots(
        timestamp_ms, num_blocks=model.config.num_blocks, max_inner=model.config.max_inner
    )
    state = model.request_state(model.encode_prefix(collate_history(request)), requests, live)
    past = _read_past(request)
    place = (_number(request, "user_lon"), _number(request, "user_lat"))
    poi_shares = share_pois(model, state, len(past))
    return Explanation(
        user_id=str(request.column("user_id")[0]),
        timestamp_ms=timestamp_ms,
        tz_offset_min=int(requests.tz_offsets_B[0]),
        place=place,
        past=past,
        has_memory=model.history_copy is not None,
        block_shares=share_block(model, state, len(past)),
        poi_shares=poi_shares,
        blocks=list_blocks(model, state, centers),
        pois=list_pois(model, state, catalogue, past, poi_shares, place, top_k=top_k),
    )


def share_block(model: SpacetimeDecoder, state: RequestState, num_actions: int) -> Shares:
    """Returns the shares of the block's prediction of one request with `num_actions` past actions."""
    copies = gather_copies(
        model.history_copy, model.crowd_copy, BLOCK, state.state_BD[:, None], state.sources
    )
    if copies is None:
        return Shares(1.0, 0.0, np.zeros(num_actions))
    scores_X = copies.scores_BQX[0, 0].double()
    mass = log_mass(scores_X)
    shares_X = (scores_X - mass).exp().numpy()
    return _split_shares(model, float((-mass).exp()), shares_X, num_actions)


def share_pois(model: SpacetimeDecoder, state: RequestState, num_actions: int) -> Shares:
    """Returns the shares of the POI's prediction: the shares inside each block, averaged by P(block)."""
    at_block = gather_copies(
        model.history_copy, model.crowd_copy, BLOCK, state.state_BD[:, None], state.sources
    )
    if at_block is None:
        return Shares(1.0, 0.0, np.zeros(num_actions))
    can_copy_X = ~at_block.scores_BQX[0, 0].isneginf()
    blocks_1K = torch.unique(at_block.blocks_BQX[0, 0][can_copy_X])[None]
    if blocks_1K.shape[1] == 0:
        return Shares(1.0, 0.0, np.zeros(num_actions))
    states_1KD = model.look_into(state, blocks_1K)
    copies = gather_copies(model.history_copy, model.crowd_copy, INNER, states_1KD, state.sources)
    assert copies is not None
    scores_KX = copies.inside(blocks_1K).scores_BQX[0].double()
    mass_K = log_mass(scores_KX)
    block_V = model.block_log_probs(state)[0].double().exp()
    block_K = block_V[blocks_1K[0]]
    shares_X = (block_K[:, None] * (scores_KX - mass_K[:, None]).exp()).sum(dim=0).numpy()
    # Blocks without copies belong to the generator alone.
    inside = float((block_K * (-mass_K).exp()).sum())
    block_V[blocks_1K[0]] = 0.0
    return _split_shares(model, inside + float(block_V.sum()), shares_X, num_actions)


def list_blocks(
    model: SpacetimeDecoder, state: RequestState, centers: Mapping[int, Place]
) -> tuple[BlockChance, ...]:
    """Lists the blocks that have any probability, most probable first, ties by number."""
    probabilities_V = model.block_log_probs(state)[0].double().exp().numpy()
    order = np.argsort(-probabilities_V, kind="stable")
    return tuple(
        BlockChance(int(block), float(probabilities_V[block]), centers.get(int(block), NOWHERE))
        for block in order
        if probabilities_V[block] > 0
    )


def list_pois(
    model: SpacetimeDecoder,
    state: RequestState,
    catalogue: Catalogue,
    past: PastActions,
    shares: Shares,
    place: Place,
    *,
    top_k: int,
) -> tuple[PoiChance, ...]:
    """Lists the most probable live POIs, exactly."""
    top = find_top_pois(model, state, top_k=top_k)
    is_found = ~top.log_probs_BN[0].isneginf()
    blocks, inners = (ids[0][is_found].numpy() for ids in (top.blocks_BN, top.inners_BN))
    probabilities = top.log_probs_BN[0][is_found].exp().numpy()
    chances = []
    for row, probability in zip(catalogue.find_rows(blocks, inners), probabilities, strict=True):
        poi_id, block = str(catalogue.poi_ids[row]), int(catalogue.block_ids[row])
        # Visits to a POI that has moved may be in its old slot; those are not copies of this slot.
        is_copy = (past.block_ids == block) & (past.inner_ids == catalogue.inner_ids[row])
        copied = shares.actions[is_copy].sum()
        where = (float(catalogue.lons[row]), float(catalogue.lats[row]))
        km = distance_km(np.array(place[0]), np.array(place[1]), np.array(where[0]), np.array(where[1]))
        part = min(1.0, float(copied / probability)) if probability > 0 else 0.0
        chances.append(
            PoiChance(poi_id, block, float(probability), part, where, float(km), past.poi_ids.count(poi_id))
        )
    return tuple(chances)


def _split_shares(
    model: SpacetimeDecoder, generator: float, shares_X: Float64Array, num_actions: int
) -> Shares:
    """Splits the shares of the user's past and of crowd candidates; the past comes first if there is a memory."""
    if model.history_copy is None:
        return Shares(generator, float(shares_X.sum()), np.zeros(num_actions))
    return Shares(generator, float(shares_X[num_actions:].sum()), shares_X[:num_actions])


def _read_past(request: pa.RecordBatch) -> PastActions:
    values = {
        name: np.array(request.column(name)[0].as_py())
        for name in ("block_ids", "inner_ids", "timestamps_ms", "tz_offsets_min", "poi_lons", "poi_lats")
    }
    return PastActions(
        poi_ids=tuple(request.column("poi_ids")[0].as_py()),
        block_ids=values["block_ids"].astype(np.int64),
        inner_ids=values["inner_ids"].astype(np.int64),
        timestamps_ms=values["timestamps_ms"].astype(np.int64),
        tz_offsets_min=values["tz_offsets_min"].astype(np.int64),
        lons=values["poi_lons"].astype(np.float64),
        lats=values["poi_lats"].astype(np.float64),
    )


def _number(request: pa.RecordBatch, name: str) -> float:
    value = request.column(name)[0].as_py()
    return float("nan") if value is None else float(value)
