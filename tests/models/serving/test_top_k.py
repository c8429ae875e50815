"""Exact top-k and exact ranks against brute force over every POI."""

import numpy as np
import pytest
import torch

from models.data.batch import collate_history, collate_requests
from models.evaluation.metrics import rank_targets
from models.serving.top_k import find_top_pois, rank_pois

EARLY_MS, LATE_MS = 1_768_500_000_000, 1_772_000_000_000  # mid January and end of February 2026


def _state(model, rows, catalogue, time_ms):
    live = catalogue.live_slots(time_ms, num_blocks=model.config.num_blocks, max_inner=model.config.max_inner)
    return model.request_state(model.encode_prefix(collate_history(rows)), collate_requests(rows), live)


@torch.inference_mode()
def _brute_force(model, state, catalogue):
    """log P of every slot of the catalogue, (requests, slots)."""
    blocks, inners = (torch.from_numpy(ids).expand(len(state.state_BD), -1)
                      for ids in (catalogue.block_ids, catalogue.inner_ids))  # fmt: skip
    return model.poi_log_probs(state, blocks, inners).double().numpy()


PARTS = [
    {"memory": {"enabled": False}},
    {},
    {"interest_match": {"enabled": True}},
    {"tie_side_information": True},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("top_k", [1, 7, 25])
def test_top_pois_equal_brute_force(make_decoder, requests_batch, catalogue, parts, top_k):
    model = make_decoder(**parts)
    state = _state(model, requests_batch, catalogue, LATE_MS)
    expected = _brute_force(model, state, catalogue)
    top = find_top_pois(model, state, top_k=top_k)
    rows = catalogue.find_rows(top.blocks_BN.numpy(), top.inners_BN.numpy())
    best = np.argsort(-expected, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(rows, best)
    np.testing.assert_allclose(top.log_probs_BN.numpy(), np.take_along_axis(expected, best, 1), atol=1e-5)


def test_opening_blocks_one_by_one_gives_the_same_list(make_decoder, requests_batch, catalogue, monkeypatch):
    model = make_decoder()
    state = _state(model, requests_batch, catalogue, LATE_MS)
    at_once = find_top_pois(model, state, top_k=6)
    monkeypatch.setattr("models.serving.top_k.BLOCKS_PER_STEP", 1)
    one_by_one = find_top_pois(model, state, top_k=6)
    assert torch.equal(at_once.blocks_BN, one_by_one.blocks_BN)
    assert torch.equal(at_once.inners_BN, one_by_one.inners_BN)


def test_only_slots_live_at_the_time_are_generated(make_decoder, requests_batch, catalogue):
    model = make_decoder()
    for time_ms in (EARLY_MS, LATE_MS):
        top = find_top_pois(model, _state(model, requests_batch, catalogue, time_ms), top_k=60)
        is_found = ~top.log_probs_BN.isneginf().numpy()
        rows = catalogue.find_rows(top.blocks_BN.numpy(), top.inners_BN.numpy())
        live = np.flatnonzero(catalogue.live_mask(np.array([time_ms]))[0])
        for own, found in zip(rows, is_found, strict=True):
            assert sorted(own[found]) == live.tolist()  # each once, and nothing else


def test_probabilities_of_all_live_pois_sum_to_one(make_decoder, requests_batch, catalogue):
    model = make_decoder()
    top = find_top_pois(model, _state(model, requests_batch, catalogue, LATE_MS), top_k=60)
    np.testing.assert_allclose(top.log_probs_BN.exp().sum(dim=1).numpy(), 1.0, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_ranks_equal_brute_force_for_every_poi_as_target(
    make_decoder, requests_batch, catalogue, parts, monkeypatch
):
    monkeypatch.setattr("models.serving.top_k.BLOCKS_PER_STEP", 2)
    model = make_decoder(**parts)
    state = _state(model, requests_batch, catalogue, LATE_MS)
    live = catalogue.live_mask(np.array([LATE_MS]))
    scores = _brute_force(model, state, catalogue)
    for target in np.flatnonzero(live[0])[::3]:
        blocks, inners = (
            torch.full((10,), int(ids[target])) for ids in (catalogue.block_ids, catalogue.inner_ids)
        )
        expected = rank_targets(scores, np.full(10, target), live)
        np.testing.assert_array_equal(rank_pois(model, state, blocks, inners).expected, expected.expected)


def test_a_target_beyond_the_capacity_is_last(make_decoder, requests_batch, catalogue):
    model = make_decoder()
    state = _state(model, requests_batch, catalogue, LATE_MS)
    ranks = rank_pois(model, state, torch.full((10,), 99), torch.zeros(10, dtype=torch.int64))
    assert ranks.num_higher.tolist() == [int(catalogue.live_mask(np.array([LATE_MS])).sum())] * 10


def test_some_requests_of_a_state_answer_as_in_the_whole(make_decoder, requests_batch, catalogue):
    model = make_decoder()
    state = _state(model, requests_batch, catalogue, LATE_MS)
    some = torch.tensor([7, 2])
    torch.testing.assert_close(
        model.block_log_probs(state.take(some)),
        model.block_log_probs(state)[some],
        atol=1e-6,
        rtol=0,
    )


@torch.inference_mode()
def test_a_model_that_computes_no_numbers_finds_nothing(make_decoder, requests_batch, catalogue):
    model = make_decoder()
    model.trunk.norm.weight.data.fill_(torch.nan)
    state = _state(model, requests_batch, catalogue, LATE_MS)
    number = len(requests_batch)
    blocks, inners = (torch.from_numpy(ids[:number]) for ids in (catalogue.block_ids, catalogue.inner_ids))

    ranks = rank_pois(model, state, blocks, inners)

    num_live = int(catalogue.live_mask(np.array([LATE_MS])).sum())
    assert (ranks.expected == num_live + 1).all()
