"""Raw features of actions -> token embeddings: learned weighted sums, exactly as in docs/design.md 4 (paper 3.2.1).

    e(spacetime) = w1 E_time(t) + w2 E_geo(user place)
    e(action)    = E_action(a)
    e(block)     = w3 E_block(b) + w4 E_geo(block centre)
    e(inner)     = w5 E_inner(i) + w6 E_category(c) + w7 E_geo(POI place) [+ W multimodal(p)]

Trap (1): `embed_blocks` takes nothing but block ids. Category and place of the POI enter at the inner token
only, since the inner id is predicted from the block token.
"""

# Shape letters: ... = any shape, D = model width, V = blocks, I = inner ids, M = length of given vectors.

import math

import torch
from torch import Tensor, nn

from conf.tokens import ACTION_TYPES, CAND, NUM_SPECIAL, PAD, PROFILE_BUCKETS, USR
from conf.units import HOURS_PER_DAY
from models.config import DecoderConfig
from models.data.features import (
    DAYS_PER_WEEK,
    HOURS_PER_WEEK,
    MONTHS,
    NUM_GAP_BUCKETS,
    bucket_gap,
    encode_fourier,
    hash_geo_cells,
    is_known_place,
    num_fourier_features,
    split_time,
)
from models.network.poi_vectors import GivenVectors, PoiVectors

WEIGHT_NAMES = ("time", "user_geo", "block", "block_geo", "inner", "category", "poi_geo")
"""w1 to w7."""
GEO_SHARE = 0.1
"""Spread of geo vectors at the start over that of vectors of places (`place_std`)."""


class TimeEmbedding(nn.Module):
    """Embeds local hour, weekday, hour of week, season and holiday, and the gap to the previous action."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.holidays = config.holidays
        self.hour = nn.Embedding(HOURS_PER_DAY, config.hidden_dim)
        self.weekday = nn.Embedding(DAYS_PER_WEEK, config.hidden_dim)
        self.hour_of_week = nn.Embedding(HOURS_PER_WEEK, config.hidden_dim)
        self.season = nn.Embedding(MONTHS, config.hidden_dim)
        self.holiday = nn.Embedding(2, config.hidden_dim)
        self.gap = nn.Embedding(NUM_GAP_BUCKETS, config.hidden_dim)

    def forward(
        self, timestamps: Tensor, tz_offsets: Tensor, gaps_ms: Tensor, has_previous: Tensor
    ) -> Tensor:
        clock = split_time(timestamps, tz_offsets, self.holidays)
        return (
            self.hour(clock.hour)
            + self.weekday(clock.weekday)
            + self.hour_of_week(clock.hour_of_week)
            + self.season(clock.month)
            + self.holiday(clock.is_holiday)
            + self.gap(bucket_gap(gaps_ms, has_previous))
        )


class GeoEmbedding(nn.Module):
    """Embeds a place: hashed cells at several scales plus continuous coordinates.

    Shape:
        lonlat: float, (..., 2), degrees; NaN = unknown.
        returns: float, (..., D).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.scales_km, self.waves_km, self.num_buckets = (
            config.geo_scales_km,
            config.geo_waves_km,
            config.geo_buckets,
        )
        self.cell = nn.Embedding(len(self.scales_km) * self.num_buckets, config.hidden_dim)
        self.fourier = nn.Linear(num_fourier_features(self.waves_km), config.hidden_dim, bias=False)

    @property
    def wave_rate(self) -> float:
        """Factor that makes the map of all waves start, and move per step, as one row of a table does."""
        # The squares of a sine and its cosine sum to 1, so the input's squared norm is half its length.
        return (num_fourier_features(self.waves_km) / 2) ** -0.5

    def forward(self, lonlat: Tensor) -> Tensor:
        cells = hash_geo_cells(lonlat, self.scales_km, self.num_buckets)
        flat = nn.functional.embedding_bag(cells.flatten(0, -2), self.cell.weight, mode="sum")
        continuous = self.fourier(encode_fourier(lonlat, self.waves_km).to(self.fourier.weight.dtype))
        return flat.view_as(continuous) + continuous


class TokenEmbedding(nn.Module):
    """All input vectors of the decoder; the block and inner tables are its output vectors too."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        D = config.hidden_dim
        self.time = TimeEmbedding(config)
        self.geo = GeoEmbedding(config)
        self.user = nn.Embedding(NUM_SPECIAL, D)
        self.profile = nn.Embedding(NUM_SPECIAL + PROFILE_BUCKETS, D, padding_idx=PAD)
        self.actions = nn.Embedding(NUM_SPECIAL + len(ACTION_TYPES), D, padding_idx=PAD)
        self.blocks = nn.Embedding(NUM_SPECIAL + config.num_blocks, D, padding_idx=PAD)
        self.inners = nn.Embedding(NUM_SPECIAL + config.max_inner, D, padding_idx=PAD)
        self.categories = nn.Embedding(max(config.num_categories, 1), D)
        self.poi_vectors = None if config.poi_vectors == "off" else PoiVectors(config)
        self.multimodal = nn.Linear(config.multimodal_dim, D, bias=False) if config.multimodal_dim else None
        self.given_vectors = GivenVectors(config) if config.multimodal_rows else None
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.ones(())) for name in WEIGHT_NAMES})
        self.register_buffer("block_centers_V2", torch.full((config.num_blocks, 2), math.nan))
        self.block_centers_V2: Tensor

    @torch.no_grad()
    def start_places(self) -> None:
        """Starts block and POI vectors `place_std` apart, where that is asked for; before training only.

        Geo starts quieter: as loud as usual it would drown them, since neighbours share cells and waves.
        """
        std = self.config.place_std
        if std:
            nn.init.normal_(self.blocks.weight[NUM_SPECIAL:], std=std)
            if self.poi_vectors is not None:
                nn.init.normal_(self.poi_vectors.weight, std=std)
            nn.init.normal_(self.geo.cell.weight, std=GEO_SHARE * std)
            nn.init.normal_(self.geo.fourier.weight, std=GEO_SHARE * std * self.geo.wave_rate)

    def set_block_centers(self, block_ids: Tensor, lonlat: Tensor) -> None:
        """Tells where blocks lie, (N,) and (N, 2) degrees; blocks not told of have an unknown place.

        Blocks beyond the capacity are passed over: they have no token of their own.
        """
        fits = block_ids < self.config.num_blocks
        self.block_centers_V2[block_ids[fits]] = lonlat[fits].to(self.block_centers_V2)

    def embed_user(self, profile_ids_BP: Tensor) -> Tensor:
        """Returns the user token and the profile tokens, (B, 1 + P, D)."""
        user = self.user(torch.full_like(profile_ids_BP.new_empty(len(profile_ids_BP), 1), USR))
        shifted = torch.where(profile_ids_BP > 0, (profile_ids_BP - 1) % PROFILE_BUCKETS + NUM_SPECIAL, PAD)
        return torch.cat([user, self.profile(shifted)], dim=1)

    def embed_spacetime(
        self,
        timestamps: Tensor,
        tz_offsets: Tensor,
        gaps_ms: Tensor,
        has_previous: Tensor,
        user_lonlat: Tensor,
    ) -> Tensor:
        """Embeds when and where the user acts or asks; gaps are to the user's previous action."""
        if not self.config.spacetime:
            return self.user.weight.new_zeros(*timestamps.shape, self.config.hidden_dim)
        time = self.time(timestamps, tz_offsets, gaps_ms, has_previous)
        return self.weights["time"] * time + self.weights["user_geo"] * self.geo(user_lonlat)

    def embed_no_request(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Returns the spacetime and action tokens that stand for "nothing was asked", (..., D) each."""
        ids = torch.full(shape, CAND, device=self.user.weight.device)
        return self.user(ids), self.actions(ids)

    def embed_actions(self, action_types: Tensor) -> Tensor:
        """Embeds action types; types newer than the model are unknown (zero)."""
        return self.actions(_shift(action_types, len(ACTION_TYPES)))

    def embed_blocks(self, block_ids: Tensor) -> Tensor:
        """Embeds blocks, from their ids alone (docs/design.md, trap 1)."""
        own = self.weights["block"] * self.blocks(_shift(block_ids, self.config.num_blocks))
        if not self.config.spacetime:
            return own
        known = block_ids < self.config.num_blocks
        # Block 0 stands in for the look-up alone: without the NaN all newer blocks would lie at its place.
        centers = self.block_centers_V2[torch.where(known, block_ids, 0)]
        centers = torch.where(known[..., None], centers, math.nan)
        return own + self.weights["block_geo"] * self.geo(centers)

    def embed_inners(
        self,
        block_ids: Tensor,
        inner_ids: Tensor,
        categories: Tensor,
        lonlat: Tensor,
        vectors: Tensor | None = None,
    ) -> Tensor:
        """Embeds POIs within their blocks; a POI newer than the model is its category and place.

        Multimodal vectors, (..., M), are those given here, else those that the model carries.
        """
        vectors = self.look_up_vectors(block_ids, inner_ids, vectors)
        own = self.inners(_shift(inner_ids, self.config.max_inner))
        if self.poi_vectors is not None:
            own = own + self.poi_vectors(block_ids, inner_ids)
        known_categories = torch.where(categories < self.categories.num_embeddings, categories, 0)
        embedded = self.weights["inner"] * own + self.weights["category"] * self.categories(known_categories)
        if self.config.spacetime:
            embedded = embedded + self.weights["poi_geo"] * self.geo(lonlat)
        if self.multimodal is not None and vectors is not None:
            embedded = embedded + self.multimodal(vectors.to(embedded.dtype))
        return embedded

    def look_up_vectors(self, block_ids: Tensor, inner_ids: Tensor, vectors: Tensor | None) -> Tensor | None:
        """Returns multimodal vectors, (..., M): those given here, else those that the model carries; None = neither."""
        if vectors is None and self.given_vectors is not None:
            vectors = self.given_vectors(block_ids, inner_ids)
        return vectors

    def has_block_center(self, block_ids: Tensor) -> Tensor:
        """Tells which blocks have a known place."""
        return is_known_place(self.block_centers_V2[block_ids])


def _shift(ids: Tensor, capacity: int) -> Tensor:
    """Moves ids of real things behind the special ones; those beyond the capacity become padding (zero)."""
    return torch.where((ids >= 0) & (ids < capacity), ids + NUM_SPECIAL, PAD)
