"""Where the transformer's attention goes in space and time, for one request.

The request's action token predicts the block and feeds the user tower. Its attention on the tokens of past actions,
averaged over layers and heads, is grouped by the age of the action and by its distance from the user. What is left
falls on the user's own tokens and on the request.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from conf.tokens import TOKENS_PER_ACTION
from conf.units import MS_PER_DAY, MS_PER_HOUR
from models.data.arrays import Float64Array, IntArray
from models.data.batch import collate_history, collate_requests
from models.data.geo import distance_km
from models.explain.attribution import Explanation
from models.network.decoder import SpacetimeDecoder
from models.network.layers import Attention, KeyValues, Rotation

AGES = ("within an hour", "within a day", "within a week", "older")
AGE_LIMITS_MS = (MS_PER_HOUR, MS_PER_DAY, 7 * MS_PER_DAY)
DISTANCES = ("under 1 km", "1 to 5 km", "5 to 20 km", "farther")
DISTANCE_LIMITS_KM = (1.0, 5.0, 20.0)


@dataclass(frozen=True)
class AttentionMap:
    """Shares of the attention; `on_actions`, `on_user` and `on_request` add up to 1.

    Attributes:
        on_actions: by age and distance, (4, 4).
        num_actions: actions of each group, (4, 4) int64; only those in the window have attention.
        on_user: on the tokens of user and profile.
        on_request: on the request's own tokens.
    """

    on_actions: Float64Array
    num_actions: IntArray
    on_user: float
    on_request: float


@torch.inference_mode()
def map_attention(
    model: SpacetimeDecoder, request: pa.RecordBatch, explanation: Explanation
) -> AttentionMap | None:
    """Groups the attention of a request's action token; None if the user's place is unknown or there is no past.

    Args:
        model: model in evaluation mode.
        request: one row, of which `explanation` is the explanation.
        explanation: holds place, time and past actions.
    """
    past = explanation.past
    if np.isnan(explanation.place[0]) or not len(past):
        return None
    history, asked = collate_history(request), collate_requests(request)
    prefix = model.encode_prefix(history)
    with _recorded(model) as recorded:
        model.request_state(prefix, asked)
    weights_T = torch.stack(recorded).mean(dim=0)
    num_window = min(len(past), model.config.window_actions - 1)
    num_request = weights_T.shape[0] - prefix.cache.valid_BT.shape[1]
    of_user, of_actions, of_request = weights_T.split(
        [
            len(weights_T) - num_request - TOKENS_PER_ACTION * num_window,
            TOKENS_PER_ACTION * num_window,
            num_request,
        ]
    )
    per_action = of_actions.view(num_window, TOKENS_PER_ACTION).sum(dim=1).double().numpy()
    seen = slice(len(past) - num_window, None)
    ages = np.searchsorted(AGE_LIMITS_MS, explanation.timestamp_ms - past.timestamps_ms[seen])
    lon, lat = (np.full(num_window, axis) for axis in explanation.place)
    apart = distance_km(lon, lat, past.lons[seen], past.lats[seen])
    distances = np.searchsorted(DISTANCE_LIMITS_KM, apart, side="right")
    shares, counts = np.zeros((len(AGES), len(DISTANCES))), np.zeros((len(AGES), len(DISTANCES)), np.int64)
    np.add.at(shares, (ages, distances), per_action)
    np.add.at(counts, (ages, distances), 1)
    return AttentionMap(shares, counts, float(of_user.sum()), float(of_request.sum()))


@contextmanager
def _recorded(model: SpacetimeDecoder) -> Iterator[list[Tensor]]:
    """Collects the last token's attention of every layer that runs meanwhile, mean over heads, (S + T,) each."""
    found: list[Tensor] = []

    def record(attention: nn.Module, inputs: tuple[Tensor, Rotation, Tensor, KeyValues]) -> None:
        assert isinstance(attention, Attention)
        x_BTD, rotation, mask, past = inputs[:4]
        found.append(attention.weights(x_BTD, rotation, mask, past)[0, :, -1].mean(dim=0))

    parts = [part for part in model.trunk.modules() if isinstance(part, Attention)]
    handles = [part.register_forward_pre_hook(record) for part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
