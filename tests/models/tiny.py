"""Toy tensors for tests of the model core: small enough to print, random enough to catch a wrong index."""

from collections.abc import Sequence

import torch
from torch import Tensor

from conf.tokens import TokenLayout
from models.config import DecoderConfig, MemoryConfig
from models.copying.crowd_candidates import NUM_AMOUNTS, NUM_BUCKETS
from models.data.batch import CandidateBatch, CrowdSlots, HistoryBatch, RequestBatch
from models.data.slots import AboutSlots, LiveSlots
from models.network.decoder import SpacetimeDecoder

NUM_BLOCKS, MAX_INNER, NUM_CATEGORIES = 5, 7, 4
FIRST_MS = 1_767_225_600_000  # 2026-01-01, a Thursday
LAYOUT = TokenLayout(
    index_version=1, num_blocks=NUM_BLOCKS, max_inner=MAX_INNER, num_categories=NUM_CATEGORIES
)


def tiny_config(*, memory: bool = True, routines: bool = False, **changes: object) -> DecoderConfig:
    """A decoder of a few thousand weights, without dropout."""
    config = DecoderConfig(
        hidden_dim=16,
        ffn_dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        dropout=0.0,
        embedding_dropout=0.0,
        window_actions=6,
        embedding_dim=8,
        geo_buckets=16,
        memory=MemoryConfig(enabled=memory, key_dim=8, routine_tables=routines),
    )
    return config.model_copy(update=changes).with_layout(LAYOUT, num_pois=30)


def tiny_decoder(*, memory: bool = True, seed: int = 0, **changes: object) -> SpacetimeDecoder:
    """A decoder whose weights are far from their start, so that every part has a say."""
    torch.manual_seed(seed)
    model = SpacetimeDecoder(tiny_config(memory=memory, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.set_block_centers(torch.arange(NUM_BLOCKS - 1), 40 * torch.rand(NUM_BLOCKS - 1, 2))
    return model.eval()


def tiny_history(lengths: Sequence[int] = (9, 4, 1), *, seed: int = 0, num_profile: int = 2) -> HistoryBatch:
    """Random pasts; every action is a target; users 0, 1 ... have 2, 1, 0 ... profile attributes."""
    generator = torch.Generator().manual_seed(seed)
    B, L = len(lengths), max(lengths, default=0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    lengths_B = torch.tensor(lengths, dtype=torch.int64)
    is_real = torch.arange(L) < lengths_B[:, None]
    times = FIRST_MS + (draw(90, B, L) * 600_000).cumsum(dim=1)
    user_lonlat = torch.rand(B, L, 2, generator=generator) * 0.2
    user_lonlat[:, :1] = torch.nan  # before the first action nobody knows where the user was
    profile = 1 + draw(9, B, num_profile)
    keeps = torch.arange(num_profile) < (num_profile - torch.arange(B).clamp(max=num_profile))[:, None]
    return HistoryBatch(
        lengths_B=lengths_B,
        num_context_B=torch.zeros_like(lengths_B),
        timestamps_BL=times * is_real,
        tz_offsets_BL=60 * draw(3, B, L) * is_real,
        user_lonlat_BL2=user_lonlat.masked_fill(~is_real[..., None], torch.nan),
        action_types_BL=draw(8, B, L) * is_real,
        blocks_BL=draw(NUM_BLOCKS, B, L) * is_real,
        inners_BL=draw(MAX_INNER, B, L) * is_real,
        poi_lonlat_BL2=(torch.rand(B, L, 2, generator=generator) * 0.2).masked_fill(
            ~is_real[..., None], torch.nan
        ),
        categories_BL=draw(NUM_CATEGORIES, B, L) * is_real,
        is_targets_BL=is_real,
        profile_ids_BP=profile * keeps,
    )


def tiny_requests(history: HistoryBatch, *, seed: int = 1) -> RequestBatch:
    """One request per user, an hour after the last action."""
    generator = torch.Generator().manual_seed(seed)
    B = len(history.lengths_B)
    return RequestBatch(
        timestamps_B=FIRST_MS + 60 * 86_400_000 + torch.randint(0, 10**8, (B,), generator=generator),
        tz_offsets_B=torch.full((B,), 60),
        user_lonlat_B2=torch.rand(B, 2, generator=generator) * 0.2,
        action_types_B=torch.randint(0, 8, (B,), generator=generator),
        is_neutral_B=torch.zeros(B, dtype=torch.bool),
    )


def tiny_candidates(lengths: Sequence[int] = (4, 2, 3), *, seed: int = 2) -> CandidateBatch:
    """Random POIs; what is beyond a request's length is padding."""
    generator = torch.Generator().manual_seed(seed)
    B, C = len(lengths), max(lengths)
    return CandidateBatch(
        lengths_B=torch.tensor(lengths),
        blocks_BC=torch.randint(0, NUM_BLOCKS, (B, C), generator=generator),
        inners_BC=torch.randint(0, MAX_INNER, (B, C), generator=generator),
        lonlat_BC2=torch.rand(B, C, 2, generator=generator) * 0.2,
        categories_BC=torch.randint(0, NUM_CATEGORIES, (B, C), generator=generator),
    )


def tiny_slots(*, without: Sequence[tuple[int, int]] = ()) -> LiveSlots:
    """All slots but some, with a category and a place for each."""
    pairs = [(b, i) for b in range(NUM_BLOCKS) for i in range(MAX_INNER) if (b, i) not in without]
    blocks, inners = torch.tensor(pairs).T
    places = torch.stack([blocks * 0.05 + inners * 0.01, inners * 0.02 - blocks * 0.03], dim=-1)
    about = AboutSlots((blocks + inners) % NUM_CATEGORIES, places)
    return LiveSlots(blocks, inners, num_blocks=NUM_BLOCKS, max_inner=MAX_INNER, about=about)


def cut_step(history: HistoryBatch, steps: Tensor) -> tuple[HistoryBatch, RequestBatch]:
    """The past before one action of each user, and that action's time, place and type as request."""
    rows = torch.arange(len(steps))
    request = RequestBatch(
        history.timestamps_BL[rows, steps],
        history.tz_offsets_BL[rows, steps],
        history.user_lonlat_BL2[rows, steps],
        history.action_types_BL[rows, steps],
        torch.zeros(len(steps), dtype=torch.bool),
    )
    return history._replace(lengths_B=steps), request


def drop_columns(history: HistoryBatch, num_actions: int) -> HistoryBatch:
    """The same batch without its last columns (which must be padding)."""
    return HistoryBatch(
        *(
            field[:, :num_actions] if field is not None and name.split("_")[-1].startswith("BL") else field
            for name, field in history._asdict().items()
        )
    )


def tiny_crowd(num_rows: int, num_steps: int, *, num_slots: int = 5, seed: int = 3) -> CrowdSlots:
    """Random slots for every step; some are empty."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_steps, num_slots)

    def draw(high: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    blocks, inners = draw(NUM_BLOCKS), draw(MAX_INNER)
    return CrowdSlots(
        blocks_BQC=blocks,
        inners_BQC=inners,
        categories_BQC=(blocks + inners) % NUM_CATEGORIES,  # one POI has one category and one place
        lonlat_BQC2=torch.stack([blocks, inners], dim=-1) * 0.02,
        lists_BQC=draw(2),
        count_BQC=draw(NUM_BUCKETS),
        share_BQC=draw(NUM_BUCKETS),
        lift_BQC=draw(NUM_BUCKETS),
        popularity_BQC=draw(NUM_BUCKETS),
        similarity_BQC=draw(NUM_BUCKETS),
        is_real_BQC=draw(4) > 0,
        amounts_BQCF=torch.randn(*shape, NUM_AMOUNTS, generator=generator),
    )
