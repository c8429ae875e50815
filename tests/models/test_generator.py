"""Output heads: block by block equals all at once, dead slots have no probability."""

import pytest
import torch
from torch.testing import assert_close

from conf.tokens import NUM_SPECIAL
from tests.models.toy import MAX_INNER, NUM_BLOCKS, toy_decoder, toy_slots

DEAD = [(0, 1), (0, 6), (2, 3), *[(4, inner) for inner in range(MAX_INNER)]]


@pytest.mark.parametrize("kind", ["exact", "hashed", "off"])
@pytest.mark.parametrize("live", [None, toy_slots(without=DEAD)], ids=["all", "some dead"])
def test_inner_probabilities_equal_one_softmax_per_state(kind, live):
    model = toy_decoder(poi_vectors=kind)
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


def test_one_target_each_equals_the_whole_distribution():
    model, live = toy_decoder(), toy_slots(without=[(0, 1)])
    states, blocks = torch.randn(9, 16), torch.tensor([3, 0, 2, 0, 1, 3, 3, 4, 0])
    inners = torch.tensor([6, 0, 3, 6, 2, 1, 6, 5, 2])

    one = model.generator.target_log_probs(states, blocks, inners, model.trunk.embedding, live)

    whole = model.generator.inner_log_probs(states, blocks, model.trunk.embedding, live)
    assert_close(one, whole.gather(1, inners[:, None])[:, 0])


def test_no_state_gives_no_log_probability():
    model, none = toy_decoder(), torch.zeros(0, dtype=torch.int64)

    assert model.generator.target_log_probs(
        torch.zeros(0, 16), none, none, model.trunk.embedding, None
    ).shape == (0,)
