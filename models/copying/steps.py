"""Which actions of a history are predicted, and what is known of each step: index helpers of the decoder."""

# Shape letters: B = sequences, L = actions, W = actions of the window, T = tokens, Q = steps being predicted.

from typing import NamedTuple

import torch
from torch import Tensor

from conf.tokens import TOKENS_PER_ACTION, Slot
from models.data.batch import HistoryBatch


class Steps(NamedTuple):
    """What is known of the steps being predicted.

    Attributes:
        num_past_BQ: int64, actions strictly before the step.
        timestamps_BQ, tz_offsets_BQ: int64, time of the request.
        user_lonlat_BQ2: float, place of the user; NaN = unknown.
    """

    num_past_BQ: Tensor
    timestamps_BQ: Tensor
    tz_offsets_BQ: Tensor
    user_lonlat_BQ2: Tensor


def window_index(lengths_B: Tensor, num_actions: int, window: int) -> tuple[Tensor, Tensor]:
    """Returns which actions the window holds, (B, W), and which of its places are real."""
    longest = min(window, num_actions)
    index = (lengths_B - window).clamp(min=0)[:, None] + torch.arange(longest, device=lengths_B.device)
    valid = index < lengths_B[:, None]
    return index.clamp(max=max(num_actions - 1, 0)), valid


def pack_steps(is_target_BW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the places of the targets, (B, Q), Q = most of a row, and which of them are real."""
    most = int(is_target_BW.sum(dim=1).max()) if is_target_BW.numel() else 0
    places = torch.argsort(is_target_BW.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    return places, is_target_BW.gather(1, places)


def target_steps(history: HistoryBatch, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns which actions the window holds, (B, W), the places of its targets, and which are real, (B, Q)."""
    index_BW, valid_BW = window_index(history.lengths_B, history.timestamps_BL.shape[1], window)
    is_target_BW = valid_BW & history.is_targets_BL.gather(1, index_BW)
    is_target_BW = is_target_BW & (index_BW >= history.num_context_B[:, None])
    return index_BW, *pack_steps(is_target_BW)


def predicting_tokens(window_BQ: Tensor) -> Tensor:
    """Returns the tokens of the window that predict some of its actions, (B, 2 Q): blocks, then inner ids."""
    first_BQ = TOKENS_PER_ACTION * window_BQ
    return torch.cat([first_BQ + Slot.ACTION, first_BQ + Slot.BLOCK], dim=1)


def steps_of(history: HistoryBatch, index_BQ: Tensor, *, hide_time: bool = False) -> Steps:
    """Steps that predict actions of a history: their time and user place are the request's (docs/design.md, trap 2).

    With `hide_time` the time is that of the action before, 0 where there is none.
    """
    steps = Steps(
        index_BQ,
        history.timestamps_BL.gather(1, index_BQ),
        history.tz_offsets_BL.gather(1, index_BQ),
        take_rows(history.user_lonlat_BL2, index_BQ),
    )
    return hide_times(steps, history) if hide_time else steps


def hide_times(steps: Steps, history: HistoryBatch) -> Steps:
    """Replaces the time of each step by that of the action before it."""
    before = steps.num_past_BQ - 1
    return steps._replace(
        timestamps_BQ=take_actions(history.timestamps_BL, before, fill=0),
        tz_offsets_BQ=take_actions(history.tz_offsets_BL, before, fill=0),
    )


def last_steps(history: HistoryBatch) -> Steps:
    """Clock and place of each user's last action; zeros and NaN without one."""
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
    """Gathers along the actions; `fill` where the index points before the first."""
    if values_BL.shape[1] == 0:
        return torch.full_like(index_BQ, fill)
    return torch.where(index_BQ >= 0, values_BL.gather(1, index_BQ.clamp(min=0)), fill)


def shift_right(values_BL: Tensor, by: int, fill: int) -> Tensor:
    """Returns the value `by` actions before each action, `fill` for the first ones."""
    return torch.nn.functional.pad(values_BL, (by, 0), value=fill)[:, : values_BL.shape[1]]
