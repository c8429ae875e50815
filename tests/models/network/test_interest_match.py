"""The interest match: what it starts as, what it may look at, and that its evidence is the generator's own."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.config import InterestMatchConfig
from models.data.batch import mark_first_visits
from models.network.checkpoint import save_stage
from models.network.decoder import SpacetimeDecoder
from models.network.interest_match import Content, InterestMatch, match, principal_components
from models.network.trunk import CandidateStates
from models.training.multimodal import SlotVectors, start_posttraining
from tests.models.tiny import tiny_candidates, tiny_config, tiny_decoder, tiny_history, tiny_requests

TASTE = InterestMatchConfig(enabled=True, dropout=0.0)


def _fresh(**changes: object) -> InterestMatch:
    taste = InterestMatch(tiny_config(hidden_dim=8, embedding_dim=8, interest_match=TASTE, **changes)).eval()
    taste.reset_start()
    return taste


def test_it_starts_as_the_likeness_of_the_mean_past_and_the_candidate():
    taste, inner = _fresh(), torch.randn(2, 3, 8)
    is_past = torch.tensor([[True, True, False], [True, True, True]])
    shown = torch.randn(2, 4, 8)

    found = match(taste.read_past(Content(inner, None), is_past), taste.read_candidates(Content(shown, None)))

    def normed(x: torch.Tensor) -> torch.Tensor:
        return x / x.square().mean(dim=-1, keepdim=True).sqrt()

    means = torch.stack([normed(inner[0, :2]).mean(dim=0), normed(inner[1]).mean(dim=0)])
    assert_close(found[..., 0], (means[:, None] * normed(shown)).sum(dim=-1) / 8**0.5, atol=1e-4, rtol=1e-4)
    assert not found[..., 1].any()


def test_distinct_pois_add_up_over_the_root_of_their_number():
    model, inner = _fresh(), torch.randn(1, 3, 8)
    is_first = torch.tensor([[True, True, False]])

    past = model.sum_distinct(Content(inner, None), is_first)

    assert_close(past[:, 0], model.past(model.norm(inner[:, :2]).sum(dim=1)) / 2**0.5)


def test_the_first_visits_of_a_history_are_marked():
    history = tiny_history((5, 2))
    blocks, inners = (
        torch.tensor([[0, 3, 0, 3, 0], [2, 2, 0, 0, 0]]),
        torch.tensor([[0, 1, 0, 2, 1], [4, 4, 0, 0, 0]]),
    )

    found = mark_first_visits(history._replace(blocks_BL=blocks, inners_BL=inners))

    assert found.int().tolist() == [[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]]


def test_the_click_head_is_told_the_match_of_distinct_pois_and_the_cosine_of_both_towers():
    on = InterestMatchConfig(enabled=True, dropout=0.0, distinct=True, towers=True)
    model, history = tiny_decoder(interest_match=on), tiny_history()
    candidates, request = tiny_candidates(), tiny_requests(history)
    prefix = model.encode_prefix(history)

    shown = model.candidate_states(prefix, request, candidates)

    cosine_BC = (model.user_state(prefix, request)[:, None] * model.poi_state(candidates)).sum(dim=-1)
    content, _ = model.trunk.history_content(history, model.trunk.embed_history(history)[1])
    distinct = model.interest_match.sum_distinct(content, mark_first_visits(history))
    shown_BCD = model.trunk.embed_candidates(candidates)
    pois = model.interest_match.read_candidates(model.trunk.candidate_content(candidates, shown_BCD))
    assert_close(shown.evidence_BCF[..., 4:6], match(distinct, pois))
    assert_close(shown.evidence_BCF[..., 6], cosine_BC)
    assert model.click.evidence.weight.shape == (1, 7)


def test_without_a_past_nothing_is_alike():
    taste = _fresh()
    past = taste.read_past(Content(torch.randn(1, 2, 8), None), torch.zeros(1, 2, dtype=torch.bool))
    assert not past.any()


def test_what_padding_holds_changes_nothing():
    taste, inner = _fresh(), torch.randn(1, 3, 8)
    is_past = torch.tensor([[True, True, False]])
    other = inner.clone()
    other[0, 2] = 99.0
    assert_close(
        taste.read_past(Content(inner, None), is_past),
        taste.read_past(Content(other, None), is_past),
    )


def test_principal_components_are_those_of_numpy_with_spread_one():
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 5)) @ np.diag([9, 4, 2, 1, 1e-9]))
    found = principal_components(vectors, 3)
    centred = vectors.numpy() - vectors.numpy().mean(axis=0)

    spread = (centred @ found.numpy().T).std(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)

    np.testing.assert_allclose(spread, np.ones(3), rtol=1e-6)
    unit = found.numpy() / np.linalg.norm(found.numpy(), axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(np.sum(unit * directions[:3], axis=1)), np.ones(3), rtol=1e-6)
    assert len(principal_components(vectors, 5)) == 4, "a direction without spread was made large"


def test_texts_are_told_apart_by_what_few_of_them_say():
    """One loud direction that all differ in by chance, one faint one that is the taste: equal spread lets it count."""
    faint = torch.tensor([1.0, -1.0]).repeat(10)
    vectors = torch.stack([0.01 * faint, torch.linspace(-1, 1, 20)], dim=1)
    taste = _fresh(multimodal_dim=2, multimodal_rows=20)
    taste.start_texts((vectors - vectors.mean(0)) / vectors.std(0))
    past = Content(torch.randn(1, 4, 8), vectors[None, [0, 2, 16, 18]] / vectors.std(0))
    shown = Content(torch.randn(1, 2, 8), vectors[None, [10, 11]] / vectors.std(0))

    user = taste.read_past(past, torch.ones(1, 4, dtype=torch.bool))
    found = match(user, taste.read_candidates(shown))

    assert found[0, 0, 1] > found[0, 1, 1]


@pytest.mark.parametrize("memory", [True, False])
def test_the_click_head_is_told_the_generators_own_log_probabilities(memory):
    model, history = tiny_decoder(memory=memory, interest_match=TASTE), tiny_history()
    candidates, request = tiny_candidates(), tiny_requests(history)
    prefix = model.encode_prefix(history)

    shown = model.candidate_states(prefix, request, candidates)

    state = model.request_state(prefix, request)
    log_poi = model.poi_log_probs(state, candidates.blocks_BC, candidates.inners_BC)
    log_block = model.block_log_probs(state).gather(1, candidates.blocks_BC)
    chance = torch.tensor([model.config.num_blocks, model.config.num_blocks * model.config.max_inner]).log()
    assert_close(shown.evidence_BCF[..., 0], log_block + chance[0])
    assert_close(shown.evidence_BCF[..., 1], log_poi + chance[1])


def test_a_poi_newer_than_the_model_has_a_finite_click_logit():
    model, history = tiny_decoder(interest_match=TASTE), tiny_history()
    newer = tiny_candidates()
    newer = newer._replace(inners_BC=newer.inners_BC.clone().index_fill_(1, torch.tensor([0]), 999))

    logits = model.click_logits(
        model.candidate_states(model.encode_prefix(history), tiny_requests(history), newer)
    )

    assert logits.isfinite().all()


def test_a_candidate_is_scored_alone_as_among_others():
    model, history = tiny_decoder(interest_match=TASTE), tiny_history((9, 4, 0))
    candidates, prefix = tiny_candidates((4, 4, 4)), model.encode_prefix(history)
    one = type(candidates)(torch.ones(3, dtype=torch.int64), *(field[:, 2:3] for field in candidates[1:5]))

    def score(shown):
        return model.click_logits(model.candidate_states(prefix, tiny_requests(history), shown))

    assert_close(score(one)[:, 0], score(candidates)[:, 2])
    assert_close(model.poi_state(one)[:, 0], model.poi_state(candidates)[:, 2])


def test_post_training_with_vectors_starts_the_maps_of_texts(tmp_path):
    save_stage(tmp_path / "model", tiny_decoder(interest_match=TASTE))
    slots = SlotVectors(torch.arange(4), torch.arange(4), torch.randn(4, 3))

    fused = start_posttraining(tmp_path, vectors=slots).eval()

    history, candidates = tiny_history(), tiny_candidates()
    known = candidates._replace(
        inners_BC=candidates.blocks_BC.clamp(max=3), blocks_BC=candidates.blocks_BC.clamp(max=3)
    )
    own = tiny_history()._replace(inners_BL=history.blocks_BL)
    shown = fused.candidate_states(fused.encode_prefix(own), tiny_requests(own), known)
    assert shown.evidence_BCF[..., 3].any()


def test_rescaling_the_head_is_linear_in_every_part():
    model = SpacetimeDecoder(tiny_config(interest_match=TASTE))
    torch.nn.init.normal_(model.click.evidence.weight)
    torch.nn.init.normal_(model.click.memory.weight)
    states = CandidateStates(torch.randn(2, 3, 16), torch.randn(2, 3, 2), torch.randn(2, 3, 4))
    before = model.click_logits(states)

    model.click.rescale(2.5, -0.5)

    assert_close(model.click_logits(states), 2.5 * before - 0.5)
