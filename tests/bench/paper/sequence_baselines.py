"""Sequence models that name a POI by one token: GPT-style, LSTM, SASRec-like; trained and ranked as the decoder is.

They read the POIs of the window and nothing else, no time, no place, no index, and predict the next one by a softmax
over all POIs whose vectors are the input vectors. The state that predicts an action has read the actions before it.
"""

# Shape letters: B = sequences, L = actions, W = actions of the window, D = model width, Q = steps being predicted,
# P = POIs.

from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from models.config import DecoderConfig
from models.data.arrays import IntArray
from models.data.batch import HistoryBatch, collate_history, take_rows, target_steps, window_index
from models.data.ranks import Ranks
from models.data.slots import LiveSlots
from models.network.layers import rotate_positions, start_weights
from models.network.trunk import StepLogProbs, build_layers
from models.serving.inference import batch_by_length, history_lengths

Kind = Literal["gpt", "lstm", "sasrec"]
KINDS: tuple[Kind, ...] = ("gpt", "lstm", "sasrec")
START, UNKNOWN, NUM_OTHER = 0, 1, 2
"""Tokens that are no POI of the catalogue: nothing came before; a POI outside it."""


class SequenceBaseline(nn.Module):
    """POI tokens -> states -> log P(POI)."""

    def __init__(self, config: DecoderConfig, kind: Kind, slots: LiveSlots) -> None:
        """Builds an untrained model.

        Args:
            config: width, layers, heads, dropout and window; the rest is the decoder's alone.
            kind: of the encoder.
            slots: the catalogue; its (block, inner) pairs, in order, are the vocabulary.
        """
        super().__init__()
        self.config, self.slots = config, slots
        self.poi = nn.Embedding(NUM_OTHER + len(slots.keys_N), config.hidden_dim)
        self.dropout = nn.Dropout(config.embedding_dropout)
        encoders: dict[Kind, type[nn.Module]] = {
            "gpt": GptEncoder,
            "lstm": LstmEncoder,
            "sasrec": SasRecEncoder,
        }
        self.encoder = encoders[kind](config)
        self.apply(start_weights)
        if config.place_std:  # as the decoder's own vectors of places
            nn.init.normal_(self.poi.weight, std=config.place_std)

    def next_poi_log_probs(self, history: HistoryBatch, live: LiveSlots | None = None) -> StepLogProbs:
        """Returns log P(POI) at every loss target; the whole of it under `block_BQ`, since there is one token."""
        index_BW, window_BQ, is_target_BQ = target_steps(history, self.config.window_actions)
        states_BQD = take_rows(self._read(history, index_BW), window_BQ)
        index_BQ = index_BW.gather(1, window_BQ)
        tokens_BQ = self._tokens(history).gather(1, index_BQ)
        is_target_BQ = is_target_BQ & (tokens_BQ >= NUM_OTHER)
        rows_BQ = (tokens_BQ - NUM_OTHER) * is_target_BQ
        log_probs = self._log_probs(states_BQD).gather(2, rows_BQ[..., None])[..., 0]
        log_probs = log_probs.masked_fill(~is_target_BQ, 0.0)
        return StepLogProbs(log_probs, torch.zeros_like(log_probs), is_target_BQ)

    def request_log_probs(self, history: HistoryBatch) -> Tensor:
        """Returns log P(POI) of the action after each history, (B, P); POIs in the order of the slots."""
        num_actions = history.timestamps_BL.shape[1]
        index_BW, valid_BW = window_index(history.lengths_B + 1, num_actions + 1, self.config.window_actions)
        states = self._read(history, index_BW)
        last_B1 = valid_BW.sum(dim=1, keepdim=True) - 1
        return self._log_probs(take_rows(states, last_B1))[:, 0]

    def _read(self, history: HistoryBatch, index_BW: Tensor) -> Tensor:
        """Returns the states that predict some actions: each has read the actions before it."""
        before = nn.functional.pad(self._tokens(history), (1, 0), value=START)
        states: Tensor = self.encoder(self.dropout(self.poi(before.gather(1, index_BW))))
        return states

    def _tokens(self, history: HistoryBatch) -> Tensor:
        rows, is_known = self.slots.find(history.blocks_BL, history.inners_BL)
        return torch.where(is_known, rows + NUM_OTHER, UNKNOWN)

    def _log_probs(self, states: Tensor) -> Tensor:
        return (states @ self.poi.weight[NUM_OTHER:].T).float().log_softmax(dim=-1)


class GptEncoder(nn.Module):
    """The decoder's own layers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim, self.theta = config.hidden_dim // config.num_heads, config.rope_theta
        self.layers = build_layers(config)
        self.norm = nn.RMSNorm(config.hidden_dim, config.norm_eps)

    def forward(self, x_BWD: Tensor) -> Tensor:
        positions = torch.arange(x_BWD.shape[1], device=x_BWD.device)[None]
        rotation = rotate_positions(positions, head_dim=self.head_dim, theta=self.theta)
        for layer in self.layers:
            x_BWD, _ = layer(x_BWD, rotation, None)
        return self.norm(x_BWD)


class LstmEncoder(nn.Module):
    """A stack of LSTM layers."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        between = config.dropout if config.num_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            config.hidden_dim, config.hidden_dim, config.num_layers, batch_first=True, dropout=between
        )

    def forward(self, x_BWD: Tensor) -> Tensor:
        states: Tensor = self.lstm(x_BWD)[0]
        return states


class SasRecEncoder(nn.Module):
    """Self-attention with learned absolute positions and LayerNorm (Kang and McAuley, 2018), full softmax."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(config.window_actions, config.hidden_dim)
        layer = nn.TransformerEncoderLayer(
            config.hidden_dim,
            config.num_heads,
            config.hidden_dim,
            config.dropout,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, x_BWD: Tensor) -> Tensor:
        num_places = x_BWD.shape[1]
        places = torch.arange(num_places, device=x_BWD.device)
        mask = nn.Transformer.generate_square_subsequent_mask(num_places, device=x_BWD.device)
        x_BWD = x_BWD * x_BWD.shape[-1] ** 0.5 + self.position(places)
        return self.norm(self.layers(x_BWD, mask=mask, is_causal=True))


@torch.inference_mode()
def rank_targets_by_baseline(
    model: SequenceBaseline, requests: pa.RecordBatch, targets: IntArray, *, micro_batch: int = 64
) -> Ranks:
    """Ranks each target (a row of the catalogue) among all POIs of the catalogue.

    The catalogue is sorted by (block, inner), as the model's vocabulary is.
    """
    higher, equal = np.zeros(requests.num_rows, np.int64), np.ones(requests.num_rows, np.int64)
    for rows in batch_by_length(history_lengths(requests), micro_batch):
        log_probs = model.request_log_probs(collate_history(requests.take(pa.array(rows)))).double()
        own = log_probs.gather(1, torch.from_numpy(targets[rows])[:, None])
        higher[rows] = (log_probs > own).sum(dim=1).numpy()
        equal[rows] = (log_probs == own).sum(dim=1).numpy()
    return Ranks(higher, equal)
