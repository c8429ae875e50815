"""The mixture of generator and memory, on numbers that can be added up by hand, and against a plain loop."""

import math

import pytest
import torch
from torch.testing import assert_close

from models.copying.pairs import TABLES, compare_pairs
from models.data.batch import steps_of
from models.network.history_copy import BLOCK, PairTables, log_mass, mix_all, mix_target
from models.network.trunk import past_of
from tests.models.tiny import (
    NUM_BLOCKS,
    tiny_candidates,
    tiny_decoder,
    tiny_history,
    tiny_requests,
    tiny_slots,
)

HALVES = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
SCORES = torch.tensor([[[1.0, 2.0, 1.0]]]).log()  # three past actions of weight 1, 2, 1
IDS = torch.tensor([[0, 2, 0]])


def test_the_mixture_adds_weights_to_the_generators_probabilities():
    mixed = mix_all(HALVES, SCORES, IDS).exp()

    assert_close(mixed, torch.tensor([[[2.5 / 5, 0.25 / 5, 2.25 / 5]]]))


def test_one_targets_probability_is_that_of_the_whole_mixture():
    whole = mix_all(HALVES, SCORES, IDS)

    for target in range(3):
        one = mix_target(HALVES[..., target], SCORES, (target == IDS)[:, None])
        assert_close(one, whole[..., target])


def test_actions_that_may_not_be_copied_have_no_weight():
    scores = torch.tensor([[[0.0, -math.inf, 0.0]]])

    assert_close(mix_all(HALVES, scores, IDS).exp(), torch.tensor([[[2.5 / 3, 0.25 / 3, 0.25 / 3]]]))


@pytest.mark.parametrize("scores", [torch.full((1, 1, 3), -math.inf), torch.zeros(1, 1, 0)])
def test_without_anything_to_copy_the_generator_is_untouched(scores):
    ids = IDS[:, : scores.shape[-1]]
    impossible = torch.tensor([[[0.0, -200.0, -math.inf]]])

    assert torch.equal(mix_all(impossible, scores, ids), impossible)
    assert torch.equal(log_mass(scores), torch.zeros(1, 1))


def test_huge_scores_do_not_overflow():
    mixed = mix_all(HALVES, torch.tensor([[[90.0, 91.0, -900.0]]]), IDS).exp()

    assert_close(mixed.sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert_close(mixed[0, 0, 2] / mixed[0, 0, 0], torch.tensor(math.e))


def test_gradients_are_finite_where_nothing_can_be_copied():
    scores = torch.zeros(1, 1, 3, requires_grad=True)

    hidden = scores.masked_fill(torch.ones(1, 1, 3, dtype=torch.bool), -math.inf)
    mix_target(HALVES[..., 0], hidden, (IDS == 0)[:, None]).sum().backward()

    assert scores.grad.abs().sum() == 0


@pytest.mark.parametrize("clock_tables", [True, False])
def test_sums_of_tables_and_their_gradients_equal_plain_lookups(clock_tables):
    history = tiny_history((12, 5, 1))
    features = compare_pairs(past_of(history), steps_of(history, torch.tensor([[4, 11], [2, 4], [0, 0]])))
    shape = features.age.shape
    tables = [table for table in TABLES if clock_tables or not table.is_clock]
    module = PairTables(tables)
    torch.nn.init.normal_(module.weight)
    weights = torch.rand(*shape, 2)

    (module(features, shape) * weights).sum().backward()

    plain = module.weight.detach().clone().requires_grad_()
    parts = plain.split([table.num_rows for table in tables])
    summed = sum(part[table.row(features)] for table, part in zip(tables, parts, strict=True))
    (summed * weights).sum().backward()
    assert_close(module(features, shape), summed.expand_as(weights))
    assert_close(module.weight.grad, plain.grad)


def test_a_fresh_model_copies_by_the_kernel_counters_weights():
    """With gates 0, constant 1 and no content match, scores are those of the tables."""
    model, history = tiny_decoder(), tiny_history((6, 6, 6))
    memory = model.history_copy
    memory.reset_start()
    with torch.no_grad():
        memory.query[BLOCK].weight.zero_()
    state = model.request_state(model.encode_prefix(history), tiny_requests(history))

    scores = memory.score(BLOCK, state.state_BD[:, None], state.memory, state.pairs)

    assert_close(scores, 1 + state.pairs.bias_BQL2[..., BLOCK])


def test_dead_slots_are_not_copied():
    model, history = tiny_decoder(), tiny_history((6, 6, 6))
    dead = (int(history.blocks_BL[0, 5]), int(history.inners_BL[0, 5]))
    live = tiny_slots(without=[dead])

    state = model.request_state(model.encode_prefix(history), tiny_requests(history), live)

    scores = model.history_copy.score(BLOCK, state.state_BD[:, None], state.memory, state.pairs)[0, 0]
    is_dead = (history.blocks_BL[0] == dead[0]) & (history.inners_BL[0] == dead[1])
    assert torch.equal(scores.isneginf(), is_dead)


def test_click_features_are_the_shares_of_poi_and_block():
    model, history = tiny_decoder(), tiny_history((9, 4, 0))
    prefix, request, candidates = model.encode_prefix(history), tiny_requests(history), tiny_candidates()
    state = model.request_state(prefix, request)
    scores = model.history_copy.score(BLOCK, state.state_BD[:, None], state.memory, state.pairs)[:, 0]

    features = model.candidate_states(prefix, request, candidates).memory_BC2

    for user, length in enumerate((9, 4, 0)):
        mass = [math.exp(score) for score in scores[user, :length].tolist()]
        for place, block in enumerate(candidates.blocks_BC[user].tolist()):
            same = [m for j, m in enumerate(mass) if int(history.blocks_BL[user, j]) == block]
            expected = math.log(sum(same) / (1 + sum(mass)) + 1e-4)
            assert features[user, place, 1].item() == pytest.approx(expected, abs=1e-4)
            assert features[user, place, 0] <= features[user, place, 1]


def test_a_user_without_past_pools_nothing():
    model, history = tiny_decoder(), tiny_history((0, 3))
    state = model.request_state(model.encode_prefix(history), None)
    scores = model.history_copy.score(BLOCK, state.state_BD[:, None], state.memory, state.pairs)

    pooled = model.history_copy.pool(scores, state.memory)

    assert pooled[0].abs().max() == 0
    assert pooled[1].abs().max() > 0
    assert model.block_log_probs(state).shape == (2, NUM_BLOCKS)
