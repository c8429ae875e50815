"""What passes between the steps of the decoder: caches, states, and which actions they are about."""

# Shape letters: B = sequences, L = actions, W = actions of the window, T = tokens, D = model width,
# G = key/value heads, E = width of a head, C = candidates, Q = steps being predicted.

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.copying.pairs import Past
from models.copying.steps import Steps, hide_times, last_steps
from models.data.batch import HistoryBatch, RequestBatch
from models.data.live_slots import LiveSlots
from models.network.copies import SlotBank, Sources
from models.network.history_copy import Bank, PairBias
from models.network.layers import KeyValues


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
    # The shape letters of their names tell which fields run along the actions.
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
