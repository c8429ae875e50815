"""Output heads: block by block equals all at once, dead slots have no probability."""

import pytest
import torch
from torch.testing import assert_close

from conf.tokens import NUM_SPECIAL
from tests.models.tiny import MAX_INNER, NUM_BLOCKS, NUM_CATEGORIES, tiny_decoder, tiny_slots

DEAD = [(0, 1), (0, 6), (2, 3), *[(4, inner) for inner in range(MAX_INNER)]]


@pytest.mark.parametrize("kind", ["exact", "hashed", "off"])
@pytest.mark.parametrize("live", [None, tiny_slots(without=DEAD)], ids=["all", "some dead"])
def test_inner_probabilities_equal_one_softmax_per_state(kind, live):
    model = tiny_decoder(poi_vectors=kind)
    embedding, states = model.trunk.embedding, torch.randn(3, 4, 16)
    blocks = torch.randint(0, NUM_BLOCKS, (3, 4))

    found = model.generator.inner_log_probs(states, blocks, embedding, live)

    inners = torch.arange(MAX_INNER)
    for row, place in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
        block = blocks[row, place].expand(MAX_INNER)
        vectors = embedding.inners.weight[NUM_SPECIAL:]
        if embedding.poi_vectors is not None:
            vectors = vectors + embedding.poi_vectors(block, inners)
        logits = vectors @ states[row, place]
        if live is not None:
            logits = logits.masked_fill(~live.contains(block, inners), -torch.inf)
        expected = torch.nan_to_num(logits.softmax(dim=0))  # a block without live slots has no probability
        assert_close(found[row, place].exp(), expected)


@pytest.mark.parametrize("spacetime", [True, False])
def test_outputs_that_take_in_side_information_are_the_whole_input_vectors(spacetime):
    model = tiny_decoder(tie_side_information=True, spacetime=spacetime)
    live, embedding = tiny_slots(without=DEAD), model.trunk.embedding
    states, blocks = torch.randn(6, 16), torch.tensor([3, 0, 2, 0, 1, 4])

    found = model.generator.inner_log_probs(states, blocks, embedding, live)

    for state, block, log_probs in zip(states, blocks, found, strict=True):
        logits = torch.full((MAX_INNER,), -torch.inf)
        for inner in range(MAX_INNER):
            if (int(block), inner) not in DEAD:
                place = torch.tensor([[block * 0.05 + inner * 0.01, inner * 0.02 - block * 0.03]])
                category, own = (block[None] + inner) % NUM_CATEGORIES, torch.tensor([inner])
                logits[inner] = state @ embedding.embed_inners(block[None], own, category, place)[0]
        assert_close(log_probs.exp(), torch.nan_to_num(logits.softmax(dim=0)))
    by_block = model.generator.block_log_probs(states, embedding, None)
    whole = torch.cat([embedding.embed_blocks(torch.tensor([block])) for block in range(NUM_BLOCKS)])
    assert_close(by_block, (states @ whole.T).log_softmax(dim=-1))


def test_a_poi_newer_than_the_training_is_as_likely_as_its_category_and_place_say():
    model = tiny_decoder(tie_side_information=True, poi_rows=NUM_BLOCKS)  # one row a block: inner id 0
    live, embedding = tiny_slots(), model.trunk.embedding
    with torch.no_grad():
        embedding.inners.weight.zero_()
        embedding.categories.weight.zero_()
        embedding.categories.weight[2] = torch.ones(16)
        embedding.geo.cell.weight.zero_()
        embedding.geo.fourier.weight.zero_()

    found = model.generator.inner_log_probs(torch.ones(1, 16), torch.tensor([1]), embedding, live)[0]

    new = torch.arange(1, MAX_INNER)
    is_liked = (1 + new) % NUM_CATEGORIES == 2  # the category that the state asks for
    assert found[new][is_liked].min() > found[new][~is_liked].max()
    assert_close(found[new][~is_liked], found[new][~is_liked][:1].expand(int((~is_liked).sum())))


def test_outputs_with_side_information_need_slots_that_have_it():
    model = tiny_decoder(tie_side_information=True)

    with pytest.raises(ValueError, match="live slots must be given"):
        model.generator.inner_log_probs(
            torch.ones(1, 16), torch.tensor([1]), model.trunk.embedding, live=None
        )


def test_one_target_each_equals_the_whole_distribution():
    model, live = tiny_decoder(), tiny_slots(without=[(0, 1)])
    states, blocks = torch.randn(9, 16), torch.tensor([3, 0, 2, 0, 1, 3, 3, 4, 0])
    inners = torch.tensor([6, 0, 3, 6, 2, 1, 6, 5, 2])

    one = model.generator.target_log_probs(states, blocks, inners, model.trunk.embedding, live)

    whole = model.generator.inner_log_probs(states, blocks, model.trunk.embedding, live)
    assert_close(one, whole.gather(1, inners[:, None])[:, 0])


def test_no_state_gives_no_log_probability():
    model, none = tiny_decoder(), torch.zeros(0, dtype=torch.int64)

    assert model.generator.target_log_probs(
        torch.zeros(0, 16), none, none, model.trunk.embedding, None
    ).shape == (0,)
