"""SFT and preference losses against the formulas written out in plain Python."""

import math

import pytest
import torch

from models.training.losses import PreferenceLogProbs, click_loss, info_nce_loss, preference_loss


def _unit(*values: float) -> list[float]:
    norm = math.hypot(*values)
    return [value / norm for value in values]


def test_info_nce_equals_the_formula_over_exposed_and_in_batch_pois():
    vectors = {1: _unit(1, 0), 2: _unit(0, 1), 3: _unit(1, 1), 4: _unit(-1, 1)}
    users = [_unit(1, 0.5), _unit(0.2, 1)]
    keys = [[1, 2, 3], [4, 2, 0]]
    labels = [[1, 0, 0], [1, 0, -1]]  # the last of request 1 is padding
    pois = torch.tensor([[vectors.get(key, [0.0, 0.0]) for key in row] for row in keys])
    tau = 0.5

    def dot(user, key):
        return math.exp(sum(a * b for a, b in zip(user, vectors[key], strict=True)) / tau)

    # request 0: click 1 against its unclicked 2, 3 and the other click 4; request 1: click 4 against 2 and 1
    expected = -math.log(dot(users[0], 1) / sum(dot(users[0], key) for key in (1, 2, 3, 4)))
    expected -= math.log(dot(users[1], 4) / sum(dot(users[1], key) for key in (4, 2, 1)))
    loss, count = info_nce_loss(torch.tensor(users), pois, torch.tensor(labels), torch.tensor(keys), tau)
    assert count == 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_does_not_use_a_poi_the_request_shows_itself_as_an_in_batch_negative():
    users = torch.tensor([_unit(1, 0), _unit(1, 0)])
    pois = torch.tensor([[_unit(1, 0)], [_unit(1, 0)]])
    loss, _ = info_nce_loss(users, pois, torch.tensor([[1], [1]]), torch.tensor([[7], [7]]), 1.0)
    assert loss.item() == 0.0  # both clicked the same POI: there is nothing to tell apart


def test_info_nce_counts_every_click_of_a_request():
    users = torch.tensor([_unit(1, 0)])
    pois = torch.tensor([[_unit(1, 0), _unit(0, 1), _unit(1, 1)]])
    loss, count = info_nce_loss(users, pois, torch.tensor([[1, 1, 0]]), torch.tensor([[1, 2, 3]]), 1.0)
    similarity = [1.0, 0.0, math.sqrt(0.5)]
    expected = sum(math.log(1 + math.exp(similarity[2] - similarity[clicked])) for clicked in (0, 1))
    assert count == 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_click_loss_is_binary_cross_entropy_without_the_padding():
    loss, count = click_loss(torch.tensor([[0.3, -1.2, 99.0]]), torch.tensor([[1, 0, -1]]))
    assert count == 2
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(-1.2)), rel=1e-6)


POLICY = PreferenceLogProbs(torch.tensor([-1.0, -2.0]), torch.tensor([[-3.0, -2.5], [-1.0, 0.0]]))
REFERENCE = PreferenceLogProbs(torch.tensor([-1.5, -1.8]), torch.tensor([[-2.0, -2.6], [-1.1, 0.0]]))
IS_REJECTED = torch.tensor([[True, True], [True, False]])
BETA = 0.7
GAPS = [[BETA * (0.5 - -1.0), BETA * (0.5 - 0.1)], [BETA * (-0.2 - 0.1)]]  # chosen minus rejected log ratios


def test_dpo_equals_the_formula_with_rejected_pois_averaged():
    found = preference_loss(POLICY, REFERENCE, IS_REJECTED, beta=BETA, kind="dpo")
    losses = [[math.log(1 + math.exp(-gap)) for gap in gaps] for gaps in GAPS]
    assert found.loss.item() == pytest.approx(sum(sum(row) / len(row) for row in losses), rel=1e-5)
    assert found.num_pairs == 2
    assert found.margin.item() == pytest.approx(sum(sum(row) / len(row) for row in GAPS), rel=1e-5)
    assert found.accuracy.item() == 1.0  # both gaps of the first request are positive, the second's is not


def test_s_dpo_puts_all_rejected_pois_into_one_softmax():
    found = preference_loss(POLICY, REFERENCE, IS_REJECTED, beta=BETA, kind="s-dpo")
    expected = sum(math.log(1 + sum(math.exp(-gap) for gap in gaps)) for gaps in GAPS)
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)


def test_ipo_aims_at_a_log_ratio_of_half_over_beta():
    found = preference_loss(POLICY, REFERENCE, IS_REJECTED, beta=BETA, kind="ipo")
    losses = [[(gap / BETA - 1 / (2 * BETA)) ** 2 for gap in gaps] for gaps in GAPS]
    assert found.loss.item() == pytest.approx(sum(sum(row) / len(row) for row in losses), rel=1e-5)


def test_ipo_pairs_of_both_ways_round_hold_what_dpo_gives_up():
    """One context has a rule, another has pairs of both ways round; what is learnt moves both alike."""
    is_rejected = torch.ones(1, 1).bool()
    held = {}
    for kind in ("dpo", "ipo"):
        ratio = torch.tensor(1.0, requires_grad=True)  # nats by which a shared offset has moved
        still = PreferenceLogProbs(torch.zeros(1), torch.zeros(1, 1))
        moved = PreferenceLogProbs(ratio.expand(1), torch.zeros(1, 1))
        back = PreferenceLogProbs(torch.zeros(1), ratio.expand(1, 1))
        for policy in (moved, back):
            preference_loss(policy, still, is_rejected, beta=0.5, kind=kind).loss.backward()
        pull_back = ratio.grad.item()
        ratio.grad = None
        preference_loss(moved, still, is_rejected, beta=0.5, kind=kind).loss.backward()
        held[kind] = pull_back + ratio.grad.item()
    assert held["dpo"] < 0 < held["ipo"]  # a positive gradient takes the offset back


def test_an_unknown_preference_loss_is_refused():
    with pytest.raises(ValueError, match="'kto' is none of"):
        preference_loss(POLICY, REFERENCE, IS_REJECTED, beta=BETA, kind="kto")


@pytest.mark.parametrize("kind", ["dpo", "s-dpo"])
def test_pois_the_reference_cannot_produce_are_left_out_and_leave_gradients_finite(kind):
    minus = -math.inf
    chosen = torch.tensor([-1.0, minus], requires_grad=True)
    rejected = torch.tensor([[-2.0, minus], [-1.0, -1.0]], requires_grad=True)
    policy = PreferenceLogProbs(chosen, rejected)
    reference = PreferenceLogProbs(chosen.detach(), rejected.detach())
    found = preference_loss(policy, reference, torch.ones(2, 2).bool(), beta=1.0, kind=kind)
    found.loss.backward()
    assert found.num_pairs == 1
    assert found.loss.item() == pytest.approx(math.log(2))  # policy = reference
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()
    assert chosen.grad.tolist()[0] == pytest.approx(-0.5)
