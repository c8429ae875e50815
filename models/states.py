"""What passes between the steps of the decoder: caches, states, and which actions they are about."""

# Shape letters: B = sequences, L = actions, W = actions of the window, T = tokens, D = model width,
# G = key/value heads, E = width of a head, C = candidates, Q = steps being predicted.

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conf.tokens import TOKENS_PER_ACTION, Slot
from models.batch import HistoryBatch, RequestBatch
from models.copying import SlotBank, Sources
from models.layers import KeyValues, take_rows
from models.memory import Bank, PairBias
from models.pairs import Past, Steps, take_actions
from models.slots import LiveSlots


class Cache(NamedTuple):
    """Keys and values of tokens already read.

    Attributes:
        layers: per layer, (B, G, T, E) each.
        valid_BT: bool, False = padding.
        next_positions_B: int64, position of the next token.
    """

    layers: tuple[KeyValues, ...]
    valid_BT: Tensor
    next_positions_B: Tensor

    def grow(self, new: tuple[KeyValues, ...]) -> "Cache":
        """Returns the cache with tokens appended that the next ones see; copies the old ones."""
        layers = tuple(
            KeyValues(torch.cat([old.keys, own.keys], 2), torch.cat([old.values, own.values], 2))
            for old, own in zip(self.layers, new, strict=True)
        )
        num_new = new[0].keys.shape[2]
        valid = nn.functional.pad(self.valid_BT, (0, num_new), value=True)
        return Cache(layers, valid, self.next_positions_B + num_new)


class Prefix(NamedTuple):
    """The user part, read once and used for every request of the user."""

    cache: Cache
    history: HistoryBatch
    bank: Bank | None
    taste_B2E: Tensor | None = None


class RequestState(NamedTuple):
    """The user part and one request.

    Attributes:
        cache: with the request's spacetime and action tokens.
        state_BD: state at the action token: predicts the block, and is the user tower's input.
        bank, pairs: what the memory knows; None if it is off.
        slots: what others suggest; None if that is off, or nothing was given.
        live: slots that exist as of the request; None = all within the capacities.
    """

    cache: Cache
    state_BD: Tensor
    bank: Bank | None
    pairs: PairBias | None
    slots: SlotBank | None
    live: LiveSlots | None

    @property
    def sources(self) -> Sources:
        """What can be copied."""
        return Sources(self.bank, self.pairs, self.slots)


class CandidateStates(NamedTuple):
    """States at the candidates' inner tokens, the memory's log shares of POI and block, and the evidence of taste.

    The evidence, if the model has it: by how much more probable than by chance the generator finds block and POI (log),
    and how alike the POI is to the user's past, by embedding and by text.
    """

    states_BCD: Tensor
    memory_BC2: Tensor
    evidence_BC4: Tensor | None = None


class StepLogProbs(NamedTuple):
    """Log probabilities at the loss targets, in nats; 0 where `is_target_BQ` is False (padding)."""

    block_BQ: Tensor
    inner_BQ: Tensor
    is_target_BQ: Tensor


def take_sequences(part: Any, rows: Tensor) -> Any:
    """Takes rows of a tensor, or of all tensors of a (named) tuple; rows may be taken again and again."""
    if isinstance(part, Tensor):
        return part[rows]
    if isinstance(part, tuple):
        taken = [take_sequences(field, rows) for field in part]
        return type(part)(*taken) if hasattr(part, "_fields") else tuple(taken)
    return part


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


def valid_user(history: HistoryBatch) -> Tensor:
    """User token, then profile tokens; (B, 1 + P)."""
    return nn.functional.pad(history.profile_ids_BP > 0, (1, 0), value=True)


def keep_last(history: HistoryBatch, num_actions: int) -> HistoryBatch:
    """Cuts pasts to their last actions; slots of others belong to the window and stay."""
    longest = history.timestamps_BL.shape[1]
    if longest <= num_actions:
        return history
    dropped_B = (history.lengths_B - num_actions).clamp(min=0)
    index_BK = dropped_B[:, None] + torch.arange(num_actions, device=dropped_B.device)
    rows = torch.arange(len(dropped_B), device=dropped_B.device)[:, None]
    cut = {
        name: field[rows, index_BK]
        for name, field in history._asdict().items()
        if name.endswith(("_BL", "_BL2", "_BLM")) and field is not None
    }
    lengths_B = history.lengths_B - dropped_B
    return history._replace(
        lengths_B=lengths_B, num_context_B=(history.num_context_B - dropped_B).clamp(min=0), **cut
    )


def past_of(history: HistoryBatch) -> Past:
    return Past(
        history.timestamps_BL,
        history.tz_offsets_BL,
        history.blocks_BL,
        history.inners_BL,
        history.categories_BL,
        history.poi_lonlat_BL2,
    )


def steps_of(history: HistoryBatch, index_BQ: Tensor, *, hide_time: bool = False) -> Steps:
    """Steps that predict actions of the history: their own time and user place are the request's (trap 2).

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


def neutral_request(history: HistoryBatch) -> RequestBatch:
    last = last_steps(history)
    is_neutral = torch.ones_like(history.lengths_B, dtype=torch.bool)
    return RequestBatch(
        last.timestamps_BQ[:, 0],
        last.tz_offsets_BQ[:, 0],
        last.user_lonlat_BQ2[:, 0],
        torch.zeros_like(history.lengths_B),
        is_neutral,
    )


def request_steps(history: HistoryBatch, request: RequestBatch, *, hide_time: bool) -> Steps:
    """Returns the steps that the requests ask for; without a request those of the user's last action."""
    asked = Steps(
        history.lengths_B[:, None],
        request.timestamps_B[:, None],
        request.tz_offsets_B[:, None],
        request.user_lonlat_B2[:, None],
    )
    if hide_time:
        asked = hide_times(asked, history)
    both = zip(asked, last_steps(history), strict=True)
    return Steps(*(torch.where(_like(request.is_neutral_B, own), old, own) for own, old in both))


def _like(mask_B: Tensor, other: Tensor) -> Tensor:
    return mask_B.view(-1, *(1 for _ in other.shape[1:]))
