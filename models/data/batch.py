"""Tensor contracts, and the conversion of Arrow rows to tensors.

All tensors are padded on the right. Padding is 0 for ids and times, False for flags and NaN for places; readers of a
field must look at the lengths first. Ids are those of the tables (from 0); the shift by `NUM_SPECIAL` happens inside
the model only.

The index helpers of the decoder choose the predicted actions of a history and collect the features of each step.
"""

# Shape letters: B = sequences, L = actions of the longest, P = profile attributes, C = candidates,
# M = length of multimodal vectors, W = actions of the window, T = tokens, Q = steps being predicted.

from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from conf.tables import HISTORY_NAMES
from conf.tokens import TOKENS_PER_ACTION, Slot
from models.data.slots import pack_slots

HISTORY_INPUTS = (
    "seq_len", "profile_ids", *(name for name in HISTORY_NAMES if name not in ("poi_ids", "is_interests",
    "is_travels")),
)  # fmt: skip
"""Columns that hold everything the model reads of a user's past."""


class _Movable:
    """Adds `to` to NamedTuples of tensors."""

    __slots__ = ()

    def to(self, device: torch.device | str) -> Self:
        """Returns the batch on another device."""
        moved = (None if field is None else field.to(device) for field in self)  # type: ignore[attr-defined]
        return type(self)(*moved)


class _CrowdSlots(NamedTuple):
    blocks_BQC: Tensor
    inners_BQC: Tensor
    categories_BQC: Tensor
    lonlat_BQC2: Tensor
    lists_BQC: Tensor
    count_BQC: Tensor
    share_BQC: Tensor
    lift_BQC: Tensor
    popularity_BQC: Tensor
    similarity_BQC: Tensor
    is_real_BQC: Tensor
    amounts_BQCF: Tensor


class CrowdSlots(_Movable, _CrowdSlots):
    """Crowd candidates of each step: POIs that the rows of other users suggest. All (B, Q, C).

    Attributes:
        blocks_BQC, inners_BQC, categories_BQC: int64 ids.
        lonlat_BQC2: float32, (B, Q, C, 2), place of the POI.
        lists_BQC: int64, the list of `models.copying.crowd_candidates` that suggests the POI.
        count_BQC, share_BQC, lift_BQC, popularity_BQC, similarity_BQC: int64 buckets, as in
            `models.copying.crowd_candidates.SlotLists`.
        is_real_BQC: bool, False = padding.
        amounts_BQCF: float32, (B, Q, C, F), the numbers behind the buckets.
    """

    __slots__ = ()

    def take_steps(self, index_BQ: Tensor) -> "CrowdSlots":
        """Returns the crowd candidates of some of the steps, (B, Q) int64."""
        rows = torch.arange(len(index_BQ), device=index_BQ.device)[:, None]
        return CrowdSlots(*(field[rows, index_BQ] for field in self))


class _History(NamedTuple):
    lengths_B: Tensor
    num_context_B: Tensor
    timestamps_BL: Tensor
    tz_offsets_BL: Tensor
    user_lonlat_BL2: Tensor
    action_types_BL: Tensor
    blocks_BL: Tensor
    inners_BL: Tensor
    poi_lonlat_BL2: Tensor
    categories_BL: Tensor
    is_targets_BL: Tensor
    profile_ids_BP: Tensor
    vectors_BLM: Tensor | None = None
    crowd: CrowdSlots | None = None


class HistoryBatch(_Movable, _History):
    """Pasts of users, oldest action first.

    Attributes:
        lengths_B: int64, (B,), actions of each user; may be 0.
        num_context_B: int64, (B,), leading actions that are never targets.
        timestamps_BL: int64, (B, L), epoch milliseconds UTC.
        tz_offsets_BL: int64, (B, L), minutes to add for local time.
        user_lonlat_BL2: float32, (B, L, 2), place of the user (never the place of the action's POI); NaN = unknown.
        action_types_BL, blocks_BL, inners_BL, categories_BL: int64 ids, (B, L).
        poi_lonlat_BL2: float32, (B, L, 2), place of the POI.
        is_targets_BL: bool, (B, L), True = the action is a loss target.
        profile_ids_BP: int64, (B, P), 0 = padding.
        vectors_BLM: float32, (B, L, M), multimodal vectors of the POIs, or None.
        crowd: crowd candidates of the steps of the transformer's window (Q = W), or None.
    """

    __slots__ = ()


class _Request(NamedTuple):
    timestamps_B: Tensor
    tz_offsets_B: Tensor
    user_lonlat_B2: Tensor
    action_types_B: Tensor
    is_neutral_B: Tensor
    crowd: CrowdSlots | None = None


class RequestBatch(_Movable, _Request):
    """Time, place and action type of requests.

    Attributes:
        timestamps_B: int64, (B,), epoch milliseconds UTC.
        tz_offsets_B: int64, (B,), minutes to add for local time.
        user_lonlat_B2: float32, (B, 2), NaN = unknown.
        action_types_B: int64, (B,), the action to predict.
        is_neutral_B: bool, (B,), True = there is no request, and the row's other fields are ignored.
        crowd: crowd candidates of the request (Q = 1), or None.
    """

    __slots__ = ()


class _Candidates(NamedTuple):
    lengths_B: Tensor
    blocks_BC: Tensor
    inners_BC: Tensor
    lonlat_BC2: Tensor
    categories_BC: Tensor
    vectors_BCM: Tensor | None = None


class CandidateBatch(_Movable, _Candidates):
    """POIs to be scored for each request.

    Attributes:
        lengths_B: int64, (B,), candidates of each request; may be 0.
        blocks_BC, inners_BC, categories_BC: int64 ids, (B, C).
        lonlat_BC2: float32, (B, C, 2), place of the POI.
        vectors_BCM: float32, (B, C, M), multimodal vectors of the POIs, or None.
    """

    __slots__ = ()


def collate_history(rows: pa.RecordBatch | pa.Table) -> HistoryBatch:
    """Collates rows that have the history columns of `conf.tables`.

    `num_context`, `is_targets` and `profile_ids` may be absent: then there is no context, no target and no profile.
    Lengths may differ and be 0.
    """
    lengths = list_lengths(rows, "timestamps_ms")
    names = rows.schema.names
    num_context = (
        column_to_tensor(rows, "num_context") if "num_context" in names else torch.zeros_like(lengths)
    )
    timestamps = pad_lists(rows, "timestamps_ms", torch.int64)
    if "is_targets" in names:
        is_targets = pad_lists(rows, "is_targets", torch.bool)
    else:
        is_targets = torch.zeros_like(timestamps, dtype=torch.bool)
    no_profile = torch.zeros(len(lengths), 0, dtype=torch.int64)
    return HistoryBatch(
        lengths_B=lengths,
        num_context_B=num_context,
        timestamps_BL=timestamps,
        tz_offsets_BL=pad_lists(rows, "tz_offsets_min", torch.int64),
        user_lonlat_BL2=_pad_places(rows, "user_lons", "user_lats"),
        action_types_BL=pad_lists(rows, "action_type_ids", torch.int64),
        blocks_BL=pad_lists(rows, "block_ids", torch.int64),
        inners_BL=pad_lists(rows, "inner_ids", torch.int64),
        poi_lonlat_BL2=_pad_places(rows, "poi_lons", "poi_lats"),
        categories_BL=pad_lists(rows, "category_ids", torch.int64),
        is_targets_BL=is_targets,
        profile_ids_BP=pad_lists(rows, "profile_ids", torch.int64) if "profile_ids" in names else no_profile,
    )


def collate_requests(rows: pa.RecordBatch | pa.Table) -> RequestBatch:
    """Collates rows that have the request columns and `action_type_id`; null places become NaN."""
    timestamps = column_to_tensor(rows, "request_ts_ms")
    lon, lat = (torch.from_numpy(_to_numpy(rows, name, np.float32)) for name in ("user_lon", "user_lat"))
    return RequestBatch(
        timestamps_B=timestamps,
        tz_offsets_B=column_to_tensor(rows, "tz_offset_min"),
        user_lonlat_B2=torch.stack([lon, lat], dim=-1),
        action_types_B=column_to_tensor(rows, "action_type_id"),
        is_neutral_B=torch.zeros_like(timestamps, dtype=torch.bool),
    )


def collate_candidates(rows: pa.RecordBatch | pa.Table, prefix: str = "candidate") -> CandidateBatch:
    """Collates the list columns `{prefix}_block_ids`, `_inner_ids`, `_lons`, `_lats`, `_category_ids`."""
    return CandidateBatch(
        lengths_B=list_lengths(rows, f"{prefix}_block_ids"),
        blocks_BC=pad_lists(rows, f"{prefix}_block_ids", torch.int64),
        inners_BC=pad_lists(rows, f"{prefix}_inner_ids", torch.int64),
        lonlat_BC2=_pad_places(rows, f"{prefix}_lons", f"{prefix}_lats"),
        categories_BC=pad_lists(rows, f"{prefix}_category_ids", torch.int64),
    )


def column_to_tensor(rows: pa.RecordBatch | pa.Table, name: str) -> Tensor:
    """Returns an integer column as int64, (B,)."""
    return torch.from_numpy(_to_numpy(rows, name, np.int64))


def list_lengths(rows: pa.RecordBatch | pa.Table, name: str) -> Tensor:
    """Returns the number of elements of each list, (B,) int64."""
    return torch.from_numpy(np.diff(_as_lists(rows, name).offsets.to_numpy()).astype(np.int64))


def pad_lists(rows: pa.RecordBatch | pa.Table, name: str, dtype: torch.dtype, fill: float = 0) -> Tensor:
    """Returns a list column as (B, longest), padded with `fill` on the right.

    It uses the offsets of the lists: they may differ in length, and a slice of a larger array may start anywhere.
    """
    lists = _as_lists(rows, name)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    flat = lists.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy(zero_copy_only=False)
    longest = int(lengths.max(initial=0))
    padded = torch.full((len(lengths), longest), fill, dtype=dtype)
    is_real = torch.arange(longest)[None, :] < torch.from_numpy(lengths)[:, None]
    padded[is_real] = torch.from_numpy(np.array(flat)).to(dtype)  # copied, since Arrow's memory is read-only
    return padded


def _pad_places(rows: pa.RecordBatch | pa.Table, lons: str, lats: str) -> Tensor:
    both = [pad_lists(rows, name, torch.float32, fill=float("nan")) for name in (lons, lats)]
    return torch.stack(both, dim=-1)


def _as_lists(rows: pa.RecordBatch | pa.Table, name: str) -> pa.ListArray:
    column = rows.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # no chunk, or one for an empty table
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    if column.null_count:
        raise ValueError(f"column {name} has {column.null_count} null lists; empty histories are empty lists")
    return column


def _to_numpy(rows: pa.RecordBatch | pa.Table, name: str, dtype: type[np.generic]) -> np.ndarray:
    column = rows.column(name)
    if column.null_count and np.issubdtype(dtype, np.integer):
        raise ValueError(f"column {name} has {column.null_count} nulls where an integer is needed")
    values = (
        column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    )
    return np.array(values, dtype=dtype)


class Steps(NamedTuple):
    """Features of the steps being predicted.

    Attributes:
        num_past_BQ: int64, (B, Q), number of actions strictly before the step.
        timestamps_BQ, tz_offsets_BQ: int64, (B, Q), time of the request.
        user_lonlat_BQ2: float, (B, Q, 2), place of the user; NaN = unknown.
    """

    num_past_BQ: Tensor
    timestamps_BQ: Tensor
    tz_offsets_BQ: Tensor
    user_lonlat_BQ2: Tensor


def window_index(lengths_B: Tensor, num_actions: int, window: int) -> tuple[Tensor, Tensor]:
    """Returns the actions in the window, (B, W) int64, and which of its positions are real, (B, W) bool."""
    longest = min(window, num_actions)
    index = (lengths_B - window).clamp(min=0)[:, None] + torch.arange(longest, device=lengths_B.device)
    valid = index < lengths_B[:, None]
    return index.clamp(max=max(num_actions - 1, 0)), valid


def mark_first_visits(history: HistoryBatch) -> Tensor:
    """Marks the first action at each POI of a history, (B, L) bool; False at padding."""
    keys_BL = pack_slots(history.blocks_BL, history.inners_BL)
    sorted_BL, order_BL = keys_BL.sort(dim=1, stable=True)
    is_run_BL = torch.ones_like(sorted_BL, dtype=torch.bool)
    is_run_BL[:, 1:] = sorted_BL[:, 1:] != sorted_BL[:, :-1]
    is_first_BL = torch.zeros_like(is_run_BL).scatter(1, order_BL, is_run_BL)
    places = torch.arange(keys_BL.shape[1], device=keys_BL.device)
    return is_first_BL & (places < history.lengths_B[:, None])


def pack_steps(is_target_BW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the positions of the targets, (B, Q) with Q the maximum of a row, and which are real, (B, Q) bool."""
    most = int(is_target_BW.sum(dim=1).max()) if is_target_BW.numel() else 0
    places = torch.argsort(is_target_BW.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    return places, is_target_BW.gather(1, places)


def target_steps(history: HistoryBatch, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the actions in the window, (B, W), the positions of its targets, (B, Q), and which are real, (B, Q)."""
    index_BW, valid_BW = window_index(history.lengths_B, history.timestamps_BL.shape[1], window)
    is_target_BW = valid_BW & history.is_targets_BL.gather(1, index_BW)
    is_target_BW = is_target_BW & (index_BW >= history.num_context_B[:, None])
    return index_BW, *pack_steps(is_target_BW)


def predicting_tokens(window_BQ: Tensor) -> Tensor:
    """Returns the window's tokens that predict the given actions, (B, 2 Q): those for blocks, then for inner ids."""
    first_BQ = TOKENS_PER_ACTION * window_BQ
    return torch.cat([first_BQ + Slot.ACTION, first_BQ + Slot.BLOCK], dim=1)


def steps_of(history: HistoryBatch, index_BQ: Tensor, *, hide_time: bool = False) -> Steps:
    """Returns the steps that predict actions of a history, (B, Q) int64; each action gives time and user place.

    Time and user place are those of the request (docs/design.md, trap 2). With `hide_time` the time is that of the
    previous action, 0 where there is none.
    """
    steps = Steps(
        index_BQ,
        history.timestamps_BL.gather(1, index_BQ),
        history.tz_offsets_BL.gather(1, index_BQ),
        take_rows(history.user_lonlat_BL2, index_BQ),
    )
    return hide_times(steps, history) if hide_time else steps


def hide_times(steps: Steps, history: HistoryBatch) -> Steps:
    """Replaces the time of each step by the time of the previous action."""
    before = steps.num_past_BQ - 1
    return steps._replace(
        timestamps_BQ=take_actions(history.timestamps_BL, before, fill=0),
        tz_offsets_BQ=take_actions(history.tz_offsets_BL, before, fill=0),
    )


def last_steps(history: HistoryBatch) -> Steps:
    """Returns steps (Q = 1) with clock and place of each user's last action; zeros and NaN without one."""
    if history.timestamps_BL.shape[1] == 0:
        zeros = torch.zeros_like(history.lengths_B)[:, None]
        return Steps(zeros, zeros, zeros, torch.full((len(zeros), 1, 2), torch.nan, device=zeros.device))
    last = steps_of(history, (history.lengths_B - 1).clamp(min=0)[:, None])
    return last._replace(num_past_BQ=history.lengths_B[:, None])


def take_rows(x_BTD: Tensor, wanted_BN: Tensor | None) -> Tensor:
    """Returns some rows of each sequence, (B, N, D); None = all."""
    if wanted_BN is None:
        return x_BTD
    return x_BTD.gather(1, wanted_BN[..., None].expand(-1, -1, x_BTD.shape[-1]))


def take_actions(values_BL: Tensor, index_BQ: Tensor, fill: int) -> Tensor:
    """Gathers values along the actions, (B, Q); `fill` where the index points before the first action."""
    if values_BL.shape[1] == 0:
        return torch.full_like(index_BQ, fill)
    return torch.where(index_BQ >= 0, values_BL.gather(1, index_BQ.clamp(min=0)), fill)


def shift_right(values_BL: Tensor, by: int, fill: int) -> Tensor:
    """Returns the value `by` actions before each action, (B, L); `fill` for the first ones."""
    return torch.nn.functional.pad(values_BL, (by, 0), value=fill)[:, : values_BL.shape[1]]
