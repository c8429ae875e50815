"""Raw features of actions -> token embeddings: learned weighted sums, exactly as in docs/design.md 4 (paper 3.2.1).

    e(spacetime) = w1 E_time(t) + w2 E_geo(user place)
    e(action)    = E_action(a)
    e(block)     = w3 E_block(b) + w4 E_geo(block centre)
    e(inner)     = w5 E_inner(i) + w6 E_category(c) + w7 E_geo(POI place) [+ W multimodal(p)]

Trap (1): `embed_blocks` takes block ids only. Category and place of the POI enter at the inner token only, since the
inner id is predicted from the block token.

A POI can have a learned vector and a given vector of its text or images; both are looked up by (block, inner).

The generator's output heads map hidden states to log P(block) and log P(inner | block), before any memory. Output
vectors are the input vectors (`tie_embeddings`) or separate tables. An inner id's vector is the shared vector plus the
POI's vector, where the model has POI vectors. With `tie_side_information` it is the whole input vector of the token, so
that category and place also serve POIs with few visits.
"""

# Shape letters: ... = any shape, D = model width, V = blocks, I = inner ids of a block, S = inner ids of several
# blocks, R = rows, M = length of given vectors, N = slots, or steps of the output heads.

import math
from collections.abc import Iterable

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
    hash_slots,
    is_known_place,
    num_fourier_features,
    split_time,
)
from models.data.slots import LiveSlots, pack_slots


class PoiVectors(nn.Module):
    """A learned vector for each (block, inner): exact rows per block, or hashed rows.

    Exact: block b owns the rows `starts[b]` to `starts[b + 1]` - 1, one per inner id, with room to grow. POIs beyond
    them have no vector (zero). The vectors start at zero, so that a POI without training data is represented by inner
    id, category and place; with `place_std` they start at random (`TokenEmbedding.reset_start`).

    Shape:
        block_ids, inner_ids: int64, (...).
        returns: float, (..., D).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.is_hashed = config.poi_vectors == "hashed"
        self.num_rows, self.num_blocks = max(config.poi_rows, 2), config.num_blocks
        self.weight = nn.Parameter(torch.zeros(self.num_rows, config.hidden_dim))
        even = torch.arange(self.num_blocks + 1) * (self.num_rows // max(self.num_blocks, 1))
        self.register_buffer("starts_V1", even)
        self.starts_V1: Tensor

    def assign_rows(self, num_inners_V: Tensor) -> None:
        """Assigns rows to blocks in proportion to their POIs, (V,) int64; call it before training only."""
        # Each block gets one row first, so that none is without; rounding down keeps the sum within the total.
        room = self.num_rows - len(num_inners_V)
        scale = max(room, 0) / max(int(num_inners_V.sum()), 1)
        shares = (num_inners_V.double() * scale).floor().long() + 1
        self.starts_V1 = torch.cat([torch.zeros_like(shares[:1]), shares.cumsum(0)])

    def rows(self, block_ids: Tensor, inner_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the row of each slot and whether it has one, (...) each."""
        known = (block_ids < self.num_blocks) & (block_ids >= 0)
        if self.is_hashed:
            return torch.where(known, hash_slots(block_ids, inner_ids, self.num_rows), 0), known
        block = torch.where(known, block_ids, 0)
        row = self.starts_V1[block] + inner_ids
        known = known & (row < self.starts_V1[block + 1])
        return torch.where(known, row, 0), known

    def forward(self, block_ids: Tensor, inner_ids: Tensor) -> Tensor:
        row, known = self.rows(block_ids, inner_ids)
        return nn.functional.embedding(row, self.weight) * known[..., None]


class GivenVectors(nn.Module):
    """Vectors of POIs that a frozen encoder computed from text or images, looked up by (block, inner).

    They are buffers: saved with the weights, never trained. So the model carries the vectors it was fused with, and
    training, scoring and generation use the same ones. They are standardised over the POIs of `set_vectors`; a POI
    without a vector is zero, which is the average POI.

    Shape:
        block_ids, inner_ids: int64, (...).
        returns: float, (..., M).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        rows, dim = max(config.multimodal_rows, 1), config.multimodal_dim
        # Unused keys have the largest int64, so that the table stays sorted for searchsorted.
        self.register_buffer("keys_R", torch.full((rows,), torch.iinfo(torch.int64).max))
        self.register_buffer("vectors_RM", torch.zeros(rows, dim))
        self.register_buffer("mean_M", torch.zeros(dim))
        self.register_buffer("scale_M", torch.ones(dim))
        self.keys_R: Tensor
        self.vectors_RM: Tensor
        self.mean_M: Tensor
        self.scale_M: Tensor

    def set_vectors(self, block_ids: Tensor, inner_ids: Tensor, vectors_NM: Tensor) -> None:
        """Sets the vectors (N, M) of slots (N,), N at most the number of rows, and their mean and scale."""
        if len(vectors_NM) > len(self.keys_R) or vectors_NM.shape[1] != len(self.mean_M):
            raise ValueError(
                f"vectors {tuple(vectors_NM.shape)} do not fit the table {tuple(self.vectors_RM.shape)}"
            )
        keys, order = pack_slots(block_ids.long(), inner_ids.long()).sort()
        vectors = vectors_NM.double()[order]
        self.mean_M.copy_(vectors.mean(dim=0))
        # With correction the spread of a single vector would be nan. The floor is for dimensions without spread.
        self.scale_M.copy_(vectors.std(dim=0, correction=0).clamp(min=1e-6))
        self.keys_R[: len(keys)] = keys
        self.vectors_RM[: len(keys)] = ((vectors - self.mean_M) / self.scale_M).to(self.vectors_RM)

    def forward(self, block_ids: Tensor, inner_ids: Tensor) -> Tensor:
        keys = pack_slots(block_ids.long(), inner_ids.long())
        rows = torch.searchsorted(self.keys_R, keys).clamp(max=len(self.keys_R) - 1)
        is_given = self.keys_R[rows] == keys
        return nn.functional.embedding(rows, self.vectors_RM) * is_given[..., None]


WEIGHT_NAMES = ("time", "user_geo", "block", "block_geo", "inner", "category", "poi_geo")
"""w1 to w7."""
GEO_SCALES_KM = (100.0, 25.0, 5.0, 1.0, 0.25)
"""Sides of the geo cells."""
GEO_WAVES_KM = (20_000.0, 4_000.0, 800.0, 160.0, 32.0, 8.0, 2.0)
"""Wave lengths of the Fourier coordinates."""
GEO_SHARE = 0.1
"""Initial spread of geo vectors relative to the spread of block and POI vectors (`place_std`)."""


class TimeEmbedding(nn.Module):
    """Embeds local hour, weekday, hour of week, season and holiday, and the gap to the previous action.

    Shape:
        timestamps, tz_offsets, gaps_ms: int64, (...); has_previous: bool, (...).
        returns: float, (..., D).
    """

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
    """Embeds a place: hashed geo cells at several scales plus continuous coordinates.

    Shape:
        lonlat: float, (..., 2), degrees; NaN = unknown.
        returns: float, (..., D).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_buckets = config.geo_buckets
        self.cell = nn.Embedding(len(GEO_SCALES_KM) * self.num_buckets, config.hidden_dim)
        self.fourier = nn.Linear(num_fourier_features(GEO_WAVES_KM), config.hidden_dim, bias=False)
        self.starts_apart = bool(config.place_std)

    @property
    def rate_scales(self) -> dict[str, float]:
        """Factors on the learning rate (`models.training.optimizer.collect_rate_scales`)."""
        return {"fourier": self.wave_rate} if self.starts_apart else {}

    @property
    def wave_rate(self) -> float:
        """Factor that gives the map of all waves the initial size and step size of one table row."""
        # The squares of a sine and its cosine sum to 1, so the input's squared norm is half its length.
        return (num_fourier_features(GEO_WAVES_KM) / 2) ** -0.5

    def forward(self, lonlat: Tensor) -> Tensor:
        cells = hash_geo_cells(lonlat, GEO_SCALES_KM, self.num_buckets)
        flat = nn.functional.embedding_bag(cells.flatten(0, -2), self.cell.weight, mode="sum")
        continuous = self.fourier(encode_fourier(lonlat, GEO_WAVES_KM).to(self.fourier.weight.dtype))
        return flat.view_as(continuous) + continuous


class TokenEmbedding(nn.Module):
    """All input vectors of the decoder; the block and inner tables also serve as output vectors if they are tied."""

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
    def reset_start(self) -> None:
        """Starts block and POI vectors at random with spread `place_std`, if it is set; call it before training only.

        Geo vectors start smaller: at their usual size they would dominate, since neighbours share geo cells and waves.
        """
        std = self.config.place_std
        if std:
            nn.init.normal_(self.blocks.weight[NUM_SPECIAL:], std=std)
            if self.poi_vectors is not None:
                nn.init.normal_(self.poi_vectors.weight, std=std)
            nn.init.normal_(self.geo.cell.weight, std=GEO_SHARE * std)
            nn.init.normal_(self.geo.fourier.weight, std=GEO_SHARE * std * self.geo.wave_rate)

    def assign_poi_rows(self, num_inners_V: Tensor) -> None:
        """Assigns the rows of exact POI vectors to blocks by their POIs, (V,) int64; call it before training only."""
        if self.poi_vectors is not None:
            self.poi_vectors.assign_rows(num_inners_V)

    def set_block_centers(self, block_ids: Tensor, lonlat: Tensor) -> None:
        """Sets block centres: ids (N,) int64 and places (N, 2) in degrees; other blocks keep an unknown place.

        Blocks beyond the capacity are ignored: they have no token.
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
        """Embeds time and place of an action or request, (..., D); gaps are to the user's previous action."""
        if not self.config.spacetime:
            return self.user.weight.new_zeros(*timestamps.shape, self.config.hidden_dim)
        time = self.time(timestamps, tz_offsets, gaps_ms, has_previous)
        return self.weights["time"] * time + self.weights["user_geo"] * self.geo(user_lonlat)

    def embed_no_request(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Returns the spacetime and action tokens that stand for "no request", (..., D) each."""
        ids = torch.full(shape, CAND, device=self.user.weight.device)
        return self.user(ids), self.actions(ids)

    def embed_actions(self, action_types: Tensor) -> Tensor:
        """Embeds action types, (...) -> (..., D); types newer than the model are unknown (zero)."""
        return self.actions(_shift(action_types, len(ACTION_TYPES)))

    def embed_blocks(self, block_ids: Tensor) -> Tensor:
        """Embeds blocks from their ids alone, (...) -> (..., D) (docs/design.md, trap 1)."""
        vectors = self.weights["block"] * self.blocks(_shift(block_ids, self.config.num_blocks))
        if not self.config.spacetime:
            return vectors
        known = block_ids < self.config.num_blocks
        # Block 0 is only a stand-in for the look-up: without the NaN all newer blocks would lie at its place.
        centers = self.block_centers_V2[torch.where(known, block_ids, 0)]
        centers = torch.where(known[..., None], centers, math.nan)
        return vectors + self.weights["block_geo"] * self.geo(centers)

    def embed_inners(
        self,
        block_ids: Tensor,
        inner_ids: Tensor,
        categories: Tensor,
        lonlat: Tensor,
        vectors: Tensor | None = None,
    ) -> Tensor:
        """Embeds POIs within their blocks, (..., D); a POI newer than the model has only category and place.

        `vectors`, (..., M), are multimodal vectors; None = those that the model carries.
        """
        vectors = self.look_up_vectors(block_ids, inner_ids, vectors)
        inner = self.inners(_shift(inner_ids, self.config.max_inner))
        if self.poi_vectors is not None:
            inner = inner + self.poi_vectors(block_ids, inner_ids)
        known_categories = torch.where(categories < self.categories.num_embeddings, categories, 0)
        embedded = self.weights["inner"] * inner + self.weights["category"] * self.categories(
            known_categories
        )
        if self.config.spacetime:
            embedded = embedded + self.weights["poi_geo"] * self.geo(lonlat)
        if self.multimodal is not None and vectors is not None:
            embedded = embedded + self.multimodal(vectors.to(embedded.dtype))
        return embedded

    def look_up_vectors(self, block_ids: Tensor, inner_ids: Tensor, vectors: Tensor | None) -> Tensor | None:
        """Returns `vectors`, (..., M), or else the multimodal vectors that the model carries; None = neither."""
        if vectors is None and self.given_vectors is not None:
            vectors = self.given_vectors(block_ids, inner_ids)
        return vectors

    def has_block_center(self, block_ids: Tensor) -> Tensor:
        """Returns which blocks have a known place, (...) bool."""
        return is_known_place(self.block_centers_V2[block_ids])


def _shift(ids: Tensor, capacity: int) -> Tensor:
    """Shifts ids past the special ids; ids beyond the capacity become padding (zero)."""
    return torch.where((ids >= 0) & (ids < capacity), ids + NUM_SPECIAL, PAD)


class Generator(nn.Module):
    """The two softmax heads; neither gives probability to slots that are not live."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.is_tied = config.tie_embeddings
        if not self.is_tied:
            self.blocks = nn.Linear(config.hidden_dim, config.num_blocks, bias=False)
            self.inners = nn.Linear(config.hidden_dim, config.max_inner, bias=False)
            self.poi_vectors = None if config.poi_vectors == "off" else PoiVectors(config)

    def assign_poi_rows(self, num_inners_V: Tensor) -> None:
        """Assigns the rows of untied POI vectors to blocks by their POIs, (V,) int64; call it before training only."""
        if not self.is_tied and self.poi_vectors is not None:
            self.poi_vectors.assign_rows(num_inners_V)

    def block_log_probs(self, states: Tensor, embedding: TokenEmbedding, live: LiveSlots | None) -> Tensor:
        """Returns log P(block), (..., D) -> (..., V), float32."""
        logits = (states @ self._block_vectors(embedding).to(states.dtype).T).float()
        if live is not None:
            logits = logits.masked_fill(~live.mask_blocks(), -torch.inf)
        return logits.log_softmax(dim=-1)

    def inner_log_probs(
        self, states: Tensor, block_ids: Tensor, embedding: TokenEmbedding, live: LiveSlots | None
    ) -> Tensor:
        """Returns log P(inner | block), (..., D) and (...) -> (..., I), float32.

        In a block without a live slot every inner id has log probability -inf.
        """
        max_inner = self.config.max_inner
        order, parts = self._each_block(states.flatten(0, -2), block_ids.flatten(), embedding, live)
        # A block without a live slot has a part of width 0; padding makes its row -inf, not nan.
        whole = [nn.functional.pad(part, (0, max_inner - part.shape[1]), value=-torch.inf) for part in parts]
        log_probs = torch.cat([states.new_zeros(0, max_inner, dtype=torch.float32), *whole])
        return log_probs[torch.argsort(order)].view(*block_ids.shape, max_inner)

    def target_log_probs(
        self,
        states_ND: Tensor,
        blocks_N: Tensor,
        inners_N: Tensor,
        embedding: TokenEmbedding,
        live: LiveSlots | None,
    ) -> Tensor:
        """Returns log P(inner | block) of one live slot per state, (N,), without an (N, I) tensor in memory."""
        order, parts = self._each_block(states_ND, blocks_N, embedding, live)
        inners = inners_N[order].split([len(part) for part in parts])
        chosen = [part.gather(1, inner[:, None])[:, 0] for part, inner in zip(parts, inners, strict=True)]
        return torch.cat([states_ND.new_zeros(0, dtype=torch.float32), *chosen])[torch.argsort(order)]

    def _each_block(
        self, states_ND: Tensor, blocks_N: Tensor, embedding: TokenEmbedding, live: LiveSlots | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Sorts states by block and returns the order and each block's log probabilities, (n, inner ids)."""
        order = torch.argsort(blocks_N, stable=True)
        blocks, counts = torch.unique_consecutive(blocks_N[order], return_counts=True)
        whole_I = torch.ones(self.config.max_inner, dtype=torch.bool, device=blocks_N.device)
        masks = [whole_I if live is None else live.mask_block(block) for block in blocks]
        vectors = self._inner_vectors(blocks, [len(mask) for mask in masks], embedding, live)
        parts = []
        for states, is_live_I, vectors_ID in zip(
            states_ND[order].split(counts.tolist()), masks, vectors, strict=True
        ):
            logits = (states @ vectors_ID.to(states.dtype).T).float()
            parts.append(logits.masked_fill(~is_live_I, -torch.inf).log_softmax(dim=-1))
        return order, parts

    def _block_vectors(self, embedding: TokenEmbedding) -> Tensor:
        """Returns the output vectors of all blocks, (V, D)."""
        if not self.is_tied:
            return self.blocks.weight
        vectors: Tensor = embedding.blocks.weight[NUM_SPECIAL:]
        if not self.config.tie_side_information:
            return vectors
        return embedding.embed_blocks(torch.arange(len(vectors), device=vectors.device))

    def _inner_vectors(
        self, blocks: Tensor, sizes: list[int], embedding: TokenEmbedding, live: LiveSlots | None
    ) -> Iterable[Tensor]:
        """Returns the output vectors of the first inner ids of each block, (size, D) each."""
        if self.config.tie_side_information:
            return self._whole_vectors(blocks, sizes, embedding, live)
        weight = embedding.inners.weight[NUM_SPECIAL:] if self.is_tied else self.inners.weight
        poi_vectors = embedding.poi_vectors if self.is_tied else self.poi_vectors
        if poi_vectors is None:
            return [weight[:size] for size in sizes]
        if torch.is_grad_enabled():
            # Each look-up makes a gradient of the whole table, so all blocks share one.
            blocks_S, inners_S = _slots_of(blocks, sizes)
            shared = nn.functional.embedding(inners_S, weight)
            return (shared + poi_vectors(blocks_S, inners_S)).split(sizes)
        inners = torch.arange(max(sizes, default=0), device=blocks.device)
        # One block at a time: all blocks together may hold as many vectors as there are POIs.
        return (
            weight[:size] + poi_vectors(block.expand(size), inners[:size])
            for block, size in zip(blocks, sizes, strict=True)
        )

    def _whole_vectors(
        self, blocks: Tensor, sizes: list[int], embedding: TokenEmbedding, live: LiveSlots | None
    ) -> tuple[Tensor, ...]:
        """Returns whole input vectors of inner tokens, (size, D) each, with category and place; one pass is faster."""
        if live is None:
            raise ValueError("output vectors take in category and place, so live slots must be given")
        if not sizes:
            return ()
        about = [live.about_block(block) for block in blocks]
        categories_S, lonlat_S2 = (torch.cat(values) for values in zip(*about, strict=True))
        blocks_S, inners_S = _slots_of(blocks, sizes)
        return embedding.embed_inners(blocks_S, inners_S, categories_S, lonlat_S2).split(sizes)


def _slots_of(blocks: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Returns block and inner id of the first slots of each block, (S,) each."""
    inners_S = torch.cat([torch.arange(size, device=blocks.device) for size in (*sizes, 0)])
    counts = torch.tensor(sizes, dtype=torch.int64, device=blocks.device)
    return blocks.repeat_interleave(counts), inners_S
