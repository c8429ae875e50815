"""The crowd copy: one exact distribution, the same in training and serving, and off by a switch."""

import math

import pytest
import torch
from torch.testing import assert_close

from models.config import CrowdConfig
from models.data.batch import CrowdSlots, steps_of
from models.network.copies import bucket_novelty
from models.network.decoder import gather_copies
from models.network.history_copy import BLOCK
from models.network.trunk import past_of
from tests.models.tiny import (
    MAX_INNER,
    NUM_BLOCKS,
    cut_step,
    tiny_crowd,
    tiny_decoder,
    tiny_history,
    tiny_requests,
    tiny_slots,
)

ON = CrowdConfig(enabled=True, num_followers=2, num_near=3)
ALL_BLOCKS = torch.arange(NUM_BLOCKS)[None].expand(3, NUM_BLOCKS)
WINDOW = 6
VARIANTS = [{}, {"memory": False}, {"poi_vectors": "off"}, {"hide_request_time": True}]


def ask(model, history, request=None, live=None):
    request = request or tiny_requests(history)._replace(crowd=tiny_crowd(len(history.lengths_B), 1))
    return model.request_state(model.encode_prefix(history), request, live)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_training_and_serving_give_the_same_log_probabilities(variant):
    model, history = tiny_decoder(crowd=ON, **variant), tiny_history((9, 4, 1))
    slots = tiny_crowd(3, WINDOW)
    trained = model.next_poi_log_probs(history._replace(crowd=slots))
    last, rows = history.lengths_B - 1, torch.arange(3)
    past, request = cut_step(history, last)
    in_window = torch.tensor([WINDOW - 1, 3, 0])

    state = ask(model, past, request._replace(crowd=slots.take_steps(in_window[:, None])))
    blocks, inners = history.blocks_BL[rows, last], history.inners_BL[rows, last]
    block = model.block_log_probs(state)[rows, blocks]
    inner = model.inner_log_probs(state, ALL_BLOCKS)[rows, blocks, inners]

    at = trained.is_target_BQ.sum(dim=1) - 1
    assert_close(trained.block_BQ[rows, at], block)
    assert_close(trained.inner_BQ[rows, at], inner)
    assert_close(model.poi_log_probs(state, blocks[:, None], inners[:, None])[:, 0], block + inner)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_probabilities_of_all_live_pois_sum_to_one(variant):
    model, history = tiny_decoder(crowd=ON, **variant), tiny_history((9, 4, 0))
    live = tiny_slots(without=[(0, 1), (2, 3)])

    state = ask(model, history, live=live)

    whole = model.block_log_probs(state)[..., None] + model.inner_log_probs(state, ALL_BLOCKS)
    assert_close(whole.exp().sum(dim=(1, 2)), torch.ones(3))
    assert whole[:, 0, 1].exp().max() == 0
    assert whole[:, 2, 3].exp().max() == 0


def test_a_slot_adds_its_weight_to_its_poi():
    """One slot of weight 3 beside the generator's 1: the rest of the distribution shrinks to a quarter."""
    model, history = tiny_decoder(memory=False, crowd=ON), tiny_history((9, 4, 2))
    slots = tiny_crowd(3, 1, num_slots=1)._replace(is_real_BQC=torch.ones(3, 1, 1, dtype=torch.bool))
    with torch.no_grad():
        for part in (
            model.crowd_copy.small,
            model.crowd_copy.large,
            model.crowd_copy.poi,
            model.crowd_copy.key.weight,
        ):
            part.zero_()
        for gate in model.crowd_copy.gate:
            gate.weight.zero_()
            gate.bias.fill_(math.log(3.0))

    state = ask(model, history, tiny_requests(history)._replace(crowd=slots))
    alone = ask(model, history, tiny_requests(history))

    rows, block = torch.arange(3), slots.blocks_BQC[:, 0, 0]
    expected = model.block_log_probs(alone).exp() / 4
    expected[rows, block] += 3 / 4
    assert_close(model.block_log_probs(state).exp(), expected)


def test_empty_dead_and_newer_slots_copy_nothing():
    model, history = tiny_decoder(memory=False, crowd=ON), tiny_history((9, 4, 2))
    slots = tiny_crowd(3, 1, num_slots=3)
    slots = slots._replace(
        is_real_BQC=torch.tensor([[[False, True, True]]]).expand(3, 1, 3),
        blocks_BQC=torch.tensor([[[1, 0, 0]]]).expand(3, 1, 3),
        inners_BQC=torch.tensor([[[1, 1, MAX_INNER + 4]]]).expand(3, 1, 3),
    )
    live = tiny_slots(without=[(0, 1)])

    state = ask(model, history, tiny_requests(history)._replace(crowd=slots), live)

    copies = gather_copies(None, model.crowd_copy, BLOCK, state.state_BD[:, None], state.sources)
    assert copies.scores_BQX.isneginf().all()
    alone = ask(model, history, tiny_requests(history), live)
    assert_close(model.block_log_probs(state), model.block_log_probs(alone))


def test_own_visits_of_a_slot_are_counted_up_to_the_step():
    model, history = tiny_decoder(crowd=ON), tiny_history((12, 5, 1))
    index = torch.tensor([[0, 4, 11], [1, 2, 4], [0, 0, 0]])
    slots, steps = tiny_crowd(3, 3), steps_of(history, index)

    found = model.crowd_copy._count_own(slots, past_of(history), steps)

    for b, q, c in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).tolist():
        poi = (slots.blocks_BQC[b, q, c], slots.inners_BQC[b, q, c])
        visits = sum(
            (history.blocks_BL[b, j], history.inners_BL[b, j]) == poi for j in range(int(index[b, q]))
        )
        assert found[b, q, c] == min(3, int(math.log2(visits + 1)))


def test_tastes_are_counted_up_to_the_step():
    """New POIs among the last actions, and visits to the slot's category, by a plain loop."""
    model, history = tiny_decoder(crowd=ON), tiny_history((12, 5, 1))
    index = torch.tensor([[0, 4, 11], [1, 2, 4], [0, 0, 0]])
    slots, steps, past = tiny_crowd(3, 3), steps_of(history, index), past_of(history)

    novelty, taste = bucket_novelty(past, steps), model.crowd_copy._bucket_affinity(slots, past, steps)

    for b, q in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
        n = int(index[b, q])
        pois = [(int(history.blocks_BL[b, j]), int(history.inners_BL[b, j])) for j in range(n)]
        num_new = sum(poi not in pois[:j] for j, poi in enumerate(pois))
        assert novelty[b, q] == (num_new * 11 // (n + 1) if n else 11)
        for c in range(taste.shape[2]):
            category = int(slots.categories_BQC[b, q, c])
            visits = history.categories_BL[b, :n].tolist().count(category) if category else 0
            expected = [int(1.5 * math.log2(count + 1)) for count in (visits, n)]
            assert taste[b, q, c] == expected[0] * 12 + expected[1]


def test_without_slots_a_decoder_that_could_copy_gives_what_the_memory_gives():
    model, history = tiny_decoder(crowd=ON), tiny_history()
    request = tiny_requests(history)
    empty = tiny_crowd(3, 1)._replace(is_real_BQC=torch.zeros(3, 1, 5, dtype=torch.bool))

    without, with_empty = ask(model, history, request), ask(model, history, request._replace(crowd=empty))

    assert_close(model.block_log_probs(with_empty), model.block_log_probs(without))
    assert_close(model.inner_log_probs(with_empty, ALL_BLOCKS), model.inner_log_probs(without, ALL_BLOCKS))


def test_off_is_the_model_without_any_of_it():
    model, history = tiny_decoder(), tiny_history()

    assert not any(name.startswith("crowd_copy.") for name, _ in model.named_parameters())
    request = tiny_requests(history)
    given = ask(model, history, request._replace(crowd=tiny_crowd(3, 1)))
    assert torch.equal(model.block_log_probs(given), model.block_log_probs(ask(model, history, request)))


def test_every_weight_of_the_slots_learns():
    model, history = tiny_decoder(crowd=ON), tiny_history()
    log_probs = model.next_poi_log_probs(history._replace(crowd=tiny_crowd(3, WINDOW)))
    (log_probs.block_BQ.sum() + log_probs.inner_BQ.sum()).backward()

    silent = [
        n for n, p in model.crowd_copy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]

    assert silent == []


# --- hidden request time ---------------------------------------------------------------------------------


def test_a_hidden_request_time_moves_nothing():
    model, history = tiny_decoder(hide_request_time=True), tiny_history((9, 4, 0))
    early, late = tiny_requests(history, seed=1), tiny_requests(history, seed=1)
    late = late._replace(timestamps_B=late.timestamps_B + 5_000_000, tz_offsets_B=late.tz_offsets_B + 60)

    first, second = ask(model, history, early), ask(model, history, late)

    assert torch.equal(model.block_log_probs(first), model.block_log_probs(second))
    assert torch.equal(model.inner_log_probs(first, ALL_BLOCKS), model.inner_log_probs(second, ALL_BLOCKS))


def test_a_target_in_training_does_not_see_its_own_time_but_the_next_one_does():
    model, history = tiny_decoder(hide_request_time=True), tiny_history((9, 9, 9))
    times = history.timestamps_BL.clone()
    times[:, 7] += 300_000  # gaps are multiples of ten minutes, so the order stays

    before = model.next_poi_log_probs(history)
    after = model.next_poi_log_probs(history._replace(timestamps_BL=times))

    assert_close(after.block_BQ[:, :-1], before.block_BQ[:, :-1])  # steps up to 7
    assert (after.block_BQ[:, -1] != before.block_BQ[:, -1]).any()  # step 8 knows when action 7 was


def test_slots_of_some_steps_are_those_steps_slots():
    slots = tiny_crowd(2, 4)
    taken = slots.take_steps(torch.tensor([[3, 0], [1, 1]]))

    assert isinstance(taken, CrowdSlots)
    assert torch.equal(taken.blocks_BQC[0], slots.blocks_BQC[0, [3, 0]])
    assert torch.equal(taken.lonlat_BQC2[1, 0], slots.lonlat_BQC2[1, 1])


def test_the_ranking_of_new_candidates_is_that_of_the_mixture_without_all_else():
    """log P(block) + log P(inner | block) over the new candidates, by brute force from the scores."""
    crowd = CrowdConfig(enabled=True, num_followers=2, num_near=3, mlp_dim=4, ranking_weight=1.0)
    model, history = tiny_decoder(crowd=crowd).train(), tiny_history((9, 4, 7))
    slots = tiny_crowd(3, WINDOW)
    targets = model.read_targets(history._replace(crowd=slots))
    memory = targets.sources.slots
    B, Q = targets.blocks_BQ.shape

    found = model.score_targets(targets).among_new_BQ

    scores = [
        model.crowd_copy.score(which, states, memory)
        for which, states in ((0, targets.at_action_BQD), (1, targets.at_block_BQD))
    ]
    num_ranked = 0
    for b in range(B):
        for q in range(Q):
            block, inner = int(targets.blocks_BQ[b, q]), int(targets.inners_BQ[b, q])
            step = int(targets.index_BQ[b, q])
            past = set(
                zip(history.blocks_BL[b, :step].tolist(), history.inners_BL[b, :step].tolist(), strict=True)
            )
            places = [
                (c, int(memory.blocks_BQC[b, q, c]), int(memory.inners_BQC[b, q, c]))
                for c in range(memory.blocks_BQC.shape[2])
                if memory.may_copy_BQC[b, q, c]
            ]
            new = [place for place in places if place[1:] not in past]
            if not targets.is_target_BQ[b, q] or (block, inner) not in [place[1:] for place in new]:
                assert found[b, q] == 0
                continue
            num_ranked += 1
            of_block = sum(scores[0][b, q, c].exp() for c, own, _ in new if own == block)
            whole = sum(scores[0][b, q, c].exp() for c, *_ in new)
            of_inner = sum(scores[1][b, q, c].exp() for c, own, id_ in new if (own, id_) == (block, inner))
            inside = sum(scores[1][b, q, c].exp() for c, own, _ in new if own == block)
            assert_close(found[b, q].exp(), of_block / whole * of_inner / inside)
    assert num_ranked > 0


def test_the_ranking_of_new_candidates_gives_finite_gradients():
    crowd = CrowdConfig(enabled=True, num_followers=2, num_near=3, mlp_dim=4, ranking_weight=1.0)
    model, history = tiny_decoder(crowd=crowd).train(), tiny_history((9, 4, 7))
    log_probs = model.next_poi_log_probs(history._replace(crowd=tiny_crowd(3, WINDOW)))

    (log_probs.among_new_BQ.sum() + log_probs.block_BQ.sum()).backward()

    gradients = [weight.grad for weight in model.crowd_copy.parameters() if weight.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert model.crowd_copy.amounts.last.weight.grad.abs().sum() > 0


def test_candidates_at_unknown_places_are_as_far_as_the_constant_says():
    model, history = (
        tiny_decoder(crowd=CrowdConfig(enabled=True, num_followers=2, num_near=3, mlp_dim=4)),
        tiny_history((5,)),
    )
    slots = tiny_crowd(1, 1)
    nowhere = slots._replace(lonlat_BQC2=torch.full_like(slots.lonlat_BQC2, torch.nan))
    steps = steps_of(history, torch.tensor([[4]]))

    measured = model.crowd_copy._measure(nowhere, past_of(history), steps)

    assert_close(measured[..., 0], torch.full_like(measured[..., 0], math.log(10.1)))
