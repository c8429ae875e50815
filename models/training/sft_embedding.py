"""Stage 2a: embedding SFT (paper 3.3.1): one decoder as two towers, trained with InfoNCE.

The user tower reads profile, history and request; the POI tower reads the POI's tokens alone. Both return unit vectors.
The negatives of a clicked POI are the unclicked POIs of its request and the other clicks of the batch. A share of the
training requests is made neutral, so that the user's vector as of the last action, without a request, is trained too.
The stage reads `ranking_samples` at a pinned version and starts from the pre-trained weights.

    python -m models sft_embedding --day 2026-01-31
"""

import math

import pyarrow as pa
import torch
from torch import Tensor, nn

from models.config import EmbeddingSftConfig
from models.data.batch import collate_candidates, collate_history, collate_requests, pad_lists
from models.data.slots import pack_slots
from models.network.decoder import SpacetimeDecoder
from models.training.losses import info_nce_loss
from models.training.posttraining import NO_LABEL, ClickStage, ScoredBatch, SftRun, Splits, run_sft
from models.training.stage import TrainResult

LOWEST_TEMPERATURE = 0.01


class TwoTowers(nn.Module):
    """The decoder and a temperature; only the decoder is saved."""

    def __init__(self, decoder: SpacetimeDecoder, *, temperature: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """InfoNCE tau, at least `LOWEST_TEMPERATURE`, so that no single pair takes all gradient."""
        return self.log_temperature.exp().clamp(min=LOWEST_TEMPERATURE)


class EmbeddingStage(ClickStage[TwoTowers]):
    """Batches and loss of embedding SFT."""

    name = "sft_embedding"

    def __init__(self, splits: Splits, config: EmbeddingSftConfig) -> None:
        super().__init__(splits)
        self.config = config

    def loss(self, model: TwoTowers, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed InfoNCE and the number of clicks; makes some requests neutral."""
        return self.loss_of_share(model, rows, slice(0, rows.num_rows))

    def loss_of_share(
        self, model: TwoTowers, rows: pa.Table, own: slice
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the loss summed over the requests of `own`; the clicks of all requests are negatives."""
        users, pois, labels, keys = embed_rows(
            model.decoder, rows, drop_request=self.config.drop_request, own=own
        )
        loss, count = info_nce_loss(users, pois, labels, keys, model.temperature, own=own)
        return loss, count, {"train/temperature": float(model.temperature.detach()) * count}

    def score(self, model: TwoTowers, rows: pa.Table) -> ScoredBatch:
        """Returns the summed InfoNCE without correction, the number of clicks, and the dot products."""
        users, pois, labels, keys = embed_rows(model.decoder, rows)
        loss, num_clicks = info_nce_loss(users, pois, labels, keys, model.temperature)
        return ScoredBatch(loss, num_clicks, (users[:, None] * pois).sum(dim=-1), labels)


def embed_rows(
    decoder: SpacetimeDecoder, rows: pa.Table, *, drop_request: float = 0.0, own: slice | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns user vectors (B, E), POI vectors (B, C, E), labels and POI keys (B, C) of ranking samples.

    With `own`, users are those of these rows only; POIs are always those of all rows.
    """
    device = next(decoder.parameters()).device
    users_rows = rows if own is None else rows.slice(own.start, own.stop - own.start)
    requests = collate_requests(users_rows)
    if drop_request:
        requests = requests._replace(is_neutral_B=torch.rand(users_rows.num_rows) < drop_request)
    candidates = collate_candidates(rows).to(device)
    prefix = decoder.encode_prefix(collate_history(users_rows).to(device))
    users = decoder.user_state(prefix, requests.to(device))
    labels = pad_lists(rows, "labels", torch.int64, fill=NO_LABEL).to(device)
    keys = pack_slots(candidates.blocks_BC, candidates.inners_BC)
    return users, decoder.poi_state(candidates), labels, keys


def run_sft_embedding(run: SftRun) -> TrainResult:
    """Trains the embedding stage; raises the errors of `run_sft`."""
    config = run.recipe.sft_embedding

    def build(decoder: SpacetimeDecoder, splits: Splits) -> tuple[EmbeddingStage, TwoTowers]:
        towers = TwoTowers(decoder, temperature=config.temperature)
        return EmbeddingStage(splits, config), towers

    return run_sft(run, config, build)
