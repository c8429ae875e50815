"""Crowd candidates for batches: Arrow rows and tensors in, `CrowdSlots` out.

The finder excludes the requesting user's training rows from all counts, so it needs the user of each row.
"""

# Shape letters: B = sequences, W = actions of the window, Q = steps, C = crowd candidates,
# S = steps that get candidates.

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from conf.errors import MissingInputError
from conf.tables import TRAINING_TRANSITIONS, TRAINING_VISITS
from models.config import CrowdConfig, DecoderConfig
from models.copying.crowd_candidates import NEAR, Asked, SlotFinder
from models.data.batch import (
    CrowdSlots,
    HistoryBatch,
    RequestBatch,
    Steps,
    collate_history,
    collate_requests,
    hide_times,
    steps_of,
    take_actions,
    window_index,
)
from models.data.features import split_time
from models.data.ragged import rows_and_places


def add_to_history(
    history: HistoryBatch, rows: pa.Table | pa.RecordBatch, finder: SlotFinder | None, config: DecoderConfig
) -> HistoryBatch:
    """Adds crowd candidates for every loss target in the window; does nothing if the model does not copy them.

    Args:
        history: history of training samples.
        rows: the samples, with `user_id`.
        finder: holds the training rows of all users.
        config: configuration of the decoder: crowd copy, window, hidden request times.

    Raises:
        MissingInputError: the model copies from the crowd, but there is no finder.
    """
    if not config.crowd.enabled:
        return history
    index_BW, valid_BW = window_index(
        history.lengths_B, history.timestamps_BL.shape[1], config.window_actions
    )
    asks_BW = valid_BW & history.is_targets_BL.gather(1, index_BW)
    asks_BW = asks_BW & (index_BW >= history.num_context_B[:, None])
    steps = steps_of(history, index_BW, hide_time=config.hide_request_time)
    return history._replace(crowd=_find(history, steps, asks_BW, rows, finder, config.crowd))


def collate_asked(
    rows: pa.Table | pa.RecordBatch, finder: SlotFinder | None, config: DecoderConfig
) -> RequestBatch:
    """Collates one request per row, with crowd candidates if the model copies them; neutral requests have none.

    Args:
        rows: request columns, history columns, and `user_id` if the model copies.
        finder: holds the training rows of all users.
        config: configuration of the decoder: crowd copy, hidden request times.

    Raises:
        MissingInputError: the model copies from the crowd, but there is no finder.
    """
    request = collate_requests(rows)
    if not config.crowd.enabled:
        return request
    history = collate_history(rows)
    steps = Steps(
        history.lengths_B[:, None],
        request.timestamps_B[:, None],
        request.tz_offsets_B[:, None],
        request.user_lonlat_B2[:, None],
    )
    if config.hide_request_time:
        steps = hide_times(steps, history)
    asks_BQ = ~request.is_neutral_B[:, None]
    return request._replace(crowd=_find(history, steps, asks_BQ, rows, finder, config.crowd))


def _find(
    history: HistoryBatch,
    steps: Steps,
    asks_BQ: Tensor,
    samples: pa.Table | pa.RecordBatch,
    finder: SlotFinder | None,
    sizes: CrowdConfig,
) -> CrowdSlots:
    """Looks up crowd candidates for the steps selected by `asks_BQ`, (B, Q) bool."""
    if finder is None:
        raise MissingInputError(
            what="what the crowd did", where=f"{TRAINING_VISITS.name} and {TRAINING_TRANSITIONS.name}",
            needed_by="A decoder that copies from the crowd (decoder.crowd)",
            remedy=f"Run: {TRAINING_VISITS.command} --day DAY, and have its tables read.",
        )  # fmt: skip
    users = np.asarray(samples["user_id"].to_pylist(), dtype=str)
    rows = asks_BQ.nonzero()[:, 0].numpy()
    last_block, last_inner = (
        take_actions(ids, steps.num_past_BQ - 1, fill=-1)[asks_BQ].numpy()
        for ids in (history.blocks_BL, history.inners_BL)
    )
    lonlat_S2 = steps.user_lonlat_BQ2[asks_BQ].numpy().astype(np.float64)
    hour_BQ = split_time(steps.timestamps_BQ, steps.tz_offsets_BQ).hour
    known = finder.statistics.find_users(users)
    current = np.where(last_block >= 0, finder.catalogue.find_rows(last_block, last_inner), -1)
    past_rows, past_places = rows_and_places(steps.num_past_BQ[asks_BQ].numpy())
    blocks, inners = history.blocks_BL.numpy(), history.inners_BL.numpy()
    pois_BL = finder.catalogue.find_rows(blocks, inners)
    requests = Asked(
        users=known[rows],
        current=current,
        lons=lonlat_S2[:, 0],
        lats=lonlat_S2[:, 1],
        hours=hour_BQ[asks_BQ].numpy(),
        past_requests=past_rows,
        past_pois=pois_BL[rows[past_rows], past_places],
    )
    candidates = finder.find(requests, num_followers=sizes.num_followers, num_near=sizes.num_near)
    pois, catalogue = np.maximum(candidates.pois, 0), finder.catalogue
    lists = np.zeros_like(pois)
    lists[:, sizes.num_followers :] = NEAR
    places = np.stack([catalogue.lons[pois], catalogue.lats[pois]], axis=-1).astype(np.float32)

    def spread(values_SC: np.ndarray) -> Tensor:
        return _scatter(torch.from_numpy(np.ascontiguousarray(values_SC)), asks_BQ)

    return CrowdSlots(
        blocks_BQC=spread(catalogue.block_ids[pois]),
        inners_BQC=spread(catalogue.inner_ids[pois]),
        categories_BQC=spread(catalogue.category_ids[pois]),
        lonlat_BQC2=spread(places),
        lists_BQC=spread(lists),
        count_BQC=spread(candidates.count),
        share_BQC=spread(candidates.share),
        lift_BQC=spread(candidates.lift),
        popularity_BQC=spread(candidates.popularity),
        similarity_BQC=spread(candidates.similarity),
        is_real_BQC=spread(candidates.pois >= 0),
        amounts_BQCF=spread(candidates.amounts),
    )


def _scatter(values_SC: Tensor, asks_BQ: Tensor) -> Tensor:
    whole = values_SC.new_zeros(*asks_BQ.shape, *values_SC.shape[1:])
    whole[asks_BQ] = values_SC
    return whole
