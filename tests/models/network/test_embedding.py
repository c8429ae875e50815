"""Token embeddings: learned weights, unknown things, exact and hashed POI vectors."""

import math

import pytest
import torch
from torch.testing import assert_close

from conf.tokens import NUM_SPECIAL
from models.data.features import encode_fourier
from models.network.decoder import SpacetimeDecoder
from models.network.embedding import GEO_SCALES_KM, GEO_WAVES_KM, WEIGHT_NAMES, PoiVectors, TokenEmbedding
from tests.models.tiny import MAX_INNER, NUM_BLOCKS, tiny_config, tiny_slots

PLACE = torch.tensor([[4.9, 52.37]])
UNKNOWN = torch.full((1, 2), math.nan)
ONE = torch.tensor([1])


@pytest.fixture
def embedding() -> TokenEmbedding:
    torch.manual_seed(0)
    return TokenEmbedding(tiny_config())


def set_weights(embedding: TokenEmbedding, **weights: float) -> None:
    for name in WEIGHT_NAMES:
        embedding.weights[name].data.fill_(weights.get(name, 0.0))


def test_each_token_is_the_weighted_sum_of_its_parts(embedding):
    inner = (ONE, ONE, ONE, PLACE)
    set_weights(embedding, inner=2.0)
    own = embedding.embed_inners(*inner)
    set_weights(embedding, category=3.0)
    category = embedding.embed_inners(*inner)
    set_weights(embedding, inner=2.0, category=3.0, poi_geo=0.5)

    whole = embedding.embed_inners(*inner)

    assert_close(whole, own + category + 0.5 * embedding.geo(PLACE))


def test_place_and_time_share_the_spacetime_token_by_weight(embedding):
    now = (torch.tensor([1_767_225_600_000]), ONE, ONE, torch.tensor([True]))
    set_weights(embedding, user_geo=2.0)

    assert_close(embedding.embed_spacetime(*now, PLACE), 2 * embedding.geo(PLACE))


def test_a_block_token_is_made_of_the_block_alone(embedding):
    """Trap 1, by construction: there is nowhere to put a category or a POI's place."""
    embedding.set_block_centers(ONE, PLACE)
    set_weights(embedding, block_geo=1.0)

    assert_close(embedding.embed_blocks(ONE), embedding.geo(PLACE))
    assert_close(embedding.embed_blocks(torch.tensor([2])), embedding.geo(UNKNOWN))


def test_a_poi_newer_than_the_model_is_its_category_and_place(embedding):
    newer = (torch.tensor([NUM_BLOCKS + 2]), torch.tensor([MAX_INNER + 2]), ONE, PLACE)
    set_weights(embedding, inner=1.0)

    assert embedding.embed_inners(*newer).abs().max() == 0
    assert embedding.embed_inners(ONE, ONE, ONE, PLACE).abs().max() > 0


def test_a_category_newer_than_the_model_is_unknown(embedding):
    set_weights(embedding, category=1.0)

    newer = embedding.embed_inners(ONE, ONE, torch.tensor([99]), PLACE)

    assert_close(newer, embedding.embed_inners(ONE, ONE, torch.tensor([0]), PLACE))


def test_places_at_sea_and_unknown_ones_differ(embedding):
    assert not torch.allclose(embedding.geo(UNKNOWN), embedding.geo(torch.zeros(1, 2)))


def test_exact_rows_differ_for_every_slot_of_the_index():
    vectors = PoiVectors(tiny_config())  # 35 slots, 30 x 1.25 + 2 x 5 rows
    vectors.assign_rows(tiny_slots().count_inners())
    block, inner = torch.meshgrid(torch.arange(NUM_BLOCKS), torch.arange(MAX_INNER), indexing="ij")

    rows, known = vectors.rows(block, inner)

    assert known.all()
    assert len(rows.unique()) == NUM_BLOCKS * MAX_INNER
    assert int(rows.max()) < vectors.num_rows


def test_rows_go_to_blocks_in_proportion_to_their_pois():
    vectors = PoiVectors(tiny_config(poi_rows=40))
    vectors.assign_rows(torch.tensor([20, 5, 0, 0, 0]))

    assert vectors.starts_V1.diff().tolist() == [29, 8, 1, 1, 1]


@pytest.mark.parametrize("kind", ["exact", "hashed"])
def test_a_poi_without_a_row_has_no_vector_and_all_start_at_zero(kind):
    vectors = PoiVectors(tiny_config(poi_vectors=kind))
    assert vectors(ONE, ONE).abs().max() == 0
    torch.nn.init.normal_(vectors.weight)

    assert vectors(torch.tensor([NUM_BLOCKS]), ONE).abs().max() == 0
    assert vectors(ONE, ONE).abs().max() > 0


def test_places_can_start_apart_and_nothing_else_moves():
    def start(std: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return dict(SpacetimeDecoder(tiny_config(place_std=std)).named_parameters())

    usual, apart = start(0.0), start(0.5)

    moved = {name for name, value in usual.items() if not torch.equal(value, apart[name])}
    assert moved == {
        f"trunk.embedding.{part}.weight" for part in ("blocks", "poi_vectors", "geo.cell", "geo.fourier")
    }
    blocks = apart["trunk.embedding.blocks.weight"]
    assert_close(blocks[:NUM_SPECIAL], usual["trunk.embedding.blocks.weight"][:NUM_SPECIAL])
    assert 0.3 < blocks[NUM_SPECIAL:].std() < 0.7
    assert 0.4 < apart["trunk.embedding.poi_vectors.weight"].std() < 0.6


def test_places_that_start_apart_are_louder_than_where_they_lie():
    torch.manual_seed(0)
    embedding = SpacetimeDecoder(tiny_config(place_std=0.1, hidden_dim=64, geo_buckets=512)).trunk.embedding
    lonlat = torch.rand(500, 2)

    cells = embedding.geo(lonlat) - embedding.geo.fourier(encode_fourier(lonlat, GEO_WAVES_KM))
    waves = embedding.geo(lonlat) - cells

    assert embedding.poi_vectors.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert cells.std().item() == pytest.approx(0.01 * len(GEO_SCALES_KM) ** 0.5, rel=0.1)
    assert waves.std().item() == pytest.approx(0.01, rel=0.2)  # all waves together as one cell


def test_multimodal_vectors_are_added_to_the_inner_token_only_if_given():
    embedding = TokenEmbedding(tiny_config(multimodal_dim=3))
    vector = torch.randn(1, 3)

    without = embedding.embed_inners(ONE, ONE, ONE, PLACE)

    assert_close(embedding.embed_inners(ONE, ONE, ONE, PLACE, vector), without + embedding.multimodal(vector))


def test_profile_tokens_follow_the_user_token_and_padding_is_zero(embedding):
    tokens = embedding.embed_user(torch.tensor([[7, 0], [0, 0]]))

    assert tokens.shape == (2, 3, 16)
    assert_close(tokens[0, 0], tokens[1, 0])
    assert tokens[0, 1].abs().max() > 0
    assert tokens[:, 2].abs().max() == 0
