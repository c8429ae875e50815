"""Next-POI loss: sums over targets, nothing over padding or functional actions."""

import torch

from models.network.trunk import StepLogProbs
from models.training.losses import next_poi_loss, rank_new_loss
from tests.models.tiny import tiny_decoder, tiny_history


def test_the_loss_adds_block_and_inner_logs_of_targets():
    is_target = torch.tensor([[True, True], [True, False]])
    log_probs = StepLogProbs(
        torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[-0.5, -0.5], [-0.5, 0.0]]), is_target
    )

    loss, num_targets = next_poi_loss(log_probs)

    assert (loss.item(), num_targets) == (7.5, 3)


def test_functional_actions_are_context_only():
    model, history = tiny_decoder(), tiny_history((5, 5))
    errand = history._replace(is_targets_BL=history.is_targets_BL.clone())
    errand.is_targets_BL[:, 2] = False

    everything, without = model.next_poi_log_probs(history), model.next_poi_log_probs(errand)

    assert next_poi_loss(without)[1] == next_poi_loss(everything)[1] - 2
    kept = torch.tensor([0, 1, 3, 4])
    assert torch.allclose(without.block_BQ, everything.block_BQ[:, kept], atol=1e-6)


def test_a_batch_without_targets_has_loss_zero():
    history = tiny_history((3, 2))

    loss, num_targets = next_poi_loss(
        tiny_decoder().next_poi_log_probs(history._replace(is_targets_BL=history.is_targets_BL & False))
    )

    assert (loss.item(), num_targets) == (0.0, 0)


def test_the_ranking_of_new_candidates_counts_by_its_weight():
    zeros = torch.zeros(1, 2)
    log_probs = StepLogProbs(zeros, zeros, zeros == 0, torch.tensor([[-1.5, 0.0]]))

    assert rank_new_loss(log_probs, 2.0) == 3.0
    assert rank_new_loss(log_probs, 0.0) == 0.0
    assert rank_new_loss(log_probs._replace(among_new_BQ=None), 2.0) == 0.0
