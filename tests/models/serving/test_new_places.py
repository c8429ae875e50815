"""P(new) and its shift, against brute force over every POI."""

import math

import numpy as np
import pytest
import torch

from conf.tables import CANDIDATE_SOURCES
from models.data.batch import collate_history, collate_requests
from models.data.slots import pack_slots
from models.evaluation.metrics import rank_targets
from models.serving.inference import generate_candidates
from models.serving.new_places import NO_SLOT, Visited, find_p_new, list_visited, shift_new
from models.serving.top_k import find_top_pois, rank_shifted
from tests.models.serving.test_inference import bundle  # noqa: F401

TIME_MS = 1_772_000_000_000
LOGITS = (-2.0, 1.5, 4.0)


@pytest.fixture
def asked(make_decoder, requests_batch, catalogue):
    """A model, the state of ten requests, their past POIs, log P of every slot, and which of them were visited."""
    model, history = make_decoder(), collate_history(requests_batch)
    live = catalogue.live_slots(TIME_MS, num_blocks=model.config.num_blocks, max_inner=model.config.max_inner)
    with torch.inference_mode():
        state = model.request_state(model.encode_prefix(history), collate_requests(requests_batch), live)
        blocks, inners = (
            torch.from_numpy(ids).expand(len(state.state_BD), -1)
            for ids in (catalogue.block_ids, catalogue.inner_ids)
        )
        log_probs = model.poi_log_probs(state, blocks, inners).double().numpy()
    pasts = [
        set(pack_slots(*(np.asarray(requests_batch.column(f"{kind}_ids")[row].as_py(), np.int64)
                         for kind in ("block", "inner"))).tolist())
        for row in range(requests_batch.num_rows)
    ]  # fmt: skip
    keys = pack_slots(catalogue.block_ids, catalogue.inner_ids)
    was_there = np.array([[key in past for key in keys.tolist()] for past in pasts])
    return model, state, list_visited(history), log_probs, was_there


def test_p_new_is_the_sum_over_all_new_pois(asked):
    model, state, visited, log_probs, was_there = asked
    assert was_there.any(axis=1).sum() > 5
    expected = np.where(was_there, 0.0, np.exp(log_probs)).sum(axis=1)
    np.testing.assert_allclose(find_p_new(model, state, visited).numpy(), expected, atol=1e-5)


def test_a_user_without_a_past_finds_everything_new(asked):
    model, state, visited, *_ = asked
    nowhere = Visited(visited.keys_BL[:, :0])
    assert find_p_new(model, state, nowhere).tolist() == [1.0] * 10
    assert not nowhere.contains(
        torch.zeros(10, 3, dtype=torch.int64), torch.zeros(10, 3, dtype=torch.int64)
    ).any()


@pytest.mark.parametrize("logit", LOGITS)
def test_a_shift_changes_the_odds_of_new_by_its_logit_and_nothing_else(asked, logit):
    model, state, visited, *_ = asked
    p_new = find_p_new(model, state, visited)
    top = find_top_pois(model, state, top_k=60, shift=shift_new(visited, p_new, logit))

    probs = top.log_probs_BN.exp()
    is_visited = visited.contains(top.blocks_BN, top.inners_BN)
    shifted = torch.where(is_visited, 0.0, probs).sum(dim=1)
    np.testing.assert_allclose(probs.sum(dim=1).numpy(), 1.0, atol=1e-5)
    known = (p_new < 1) & (p_new > 0)
    np.testing.assert_allclose(
        torch.logit(shifted[known]).numpy(), torch.logit(p_new[known]).numpy() + logit, atol=0.01
    )


@pytest.mark.parametrize("logit", LOGITS)
def test_shifted_lists_and_ranks_equal_brute_force(asked, catalogue, logit, monkeypatch):
    monkeypatch.setattr("models.serving.top_k.BLOCKS_PER_STEP", 2)
    model, state, visited, log_probs, was_there = asked
    shift = shift_new(visited, find_p_new(model, state, visited), logit)
    to_new, to_visited = shift.to_new_B.numpy()[:, None], shift.to_visited_B.numpy()[:, None]
    expected = log_probs + np.where(was_there, to_visited, to_new)

    top = find_top_pois(model, state, top_k=7, shift=shift)

    best = np.argsort(-expected, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(catalogue.find_rows(top.blocks_BN.numpy(), top.inners_BN.numpy()), best)
    live = catalogue.live_mask(np.array([TIME_MS]))
    for target in np.flatnonzero(live[0])[::4]:
        blocks, inners = (
            torch.full((10,), int(ids[target])) for ids in (catalogue.block_ids, catalogue.inner_ids)
        )
        plain, shifted = rank_shifted(model, state, blocks, inners, [None, shift])
        for ranks, scores in ((plain, log_probs), (shifted, expected)):
            brute = rank_targets(scores, np.full(10, target), live)
            np.testing.assert_array_equal(ranks.expected, brute.expected)


def test_lists_move_towards_new_pois_and_name_the_source_of_each(bundle, requests_batch, catalogue):  # noqa: F811
    plain = generate_candidates(bundle, requests_batch, catalogue, top_k=5)
    shifted = generate_candidates(bundle, requests_batch, catalogue, top_k=5, new_logit=3.0)

    returned = CANDIDATE_SOURCES.index("returned")
    shares = [np.mean([np.mean(made.sources == returned) for made in lists]) for lists in (plain, shifted)]
    assert shares[0] > shares[1]
    for row, made in enumerate(plain):
        pairs = zip(
            *(requests_batch.column(f"{kind}_ids")[row].as_py() for kind in ("block", "inner")), strict=True
        )
        past = set(pairs)
        own = [(int(catalogue.block_ids[poi]), int(catalogue.inner_ids[poi])) in past for poi in made.pois]
        assert (made.sources == returned).tolist() == own
    assert [made.p_new for made in plain] == [made.p_new for made in shifted]


def test_padding_and_repeats_are_no_past():
    blocks, inners = torch.tensor([[3, 1, 3, 0]]), torch.tensor([[2, 1, 2, 0]])
    history = type("History", (), {"blocks_BL": blocks, "inners_BL": inners, "lengths_B": torch.tensor([3])})
    visited = list_visited(history)  # type: ignore[arg-type]
    assert visited.keys_BL.tolist() == [[(1 << 32) + 1, (3 << 32) + 2, NO_SLOT, NO_SLOT]]
    assert visited.mark(torch.tensor([[3, 0]]), 4).tolist() == [[[False, False, True, False], [False] * 4]]
    assert math.isclose(
        float(shift_new(visited, torch.tensor([0.5]), math.log(3)).to_new_B.exp()), 1.5, rel_tol=1e-6
    )
