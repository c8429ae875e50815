"""Baselines with one token per POI: what a prediction may know, training against serving, and the ranks."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from models.data.slots import LiveSlots
from tests.bench.paper.sequence_baselines import KINDS, SequenceBaseline, rank_targets_by_baseline
from tests.models.tiny import MAX_INNER, NUM_BLOCKS, tiny_config, tiny_history

every_kind = pytest.mark.parametrize("kind", KINDS)


def tiny_baseline(kind) -> SequenceBaseline:
    torch.manual_seed(0)
    blocks = torch.arange(NUM_BLOCKS).repeat_interleave(MAX_INNER)
    inners = torch.arange(MAX_INNER).repeat(NUM_BLOCKS)
    slots = LiveSlots(blocks, inners, num_blocks=NUM_BLOCKS, max_inner=MAX_INNER)
    model = SequenceBaseline(tiny_config(memory=False), kind, slots)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@every_kind
def test_a_target_does_not_move_its_own_prediction_but_the_next_ones(kind):
    model, history = tiny_baseline(kind), tiny_history((6,))
    blocks = history.blocks_BL.clone()
    blocks[0, 3] = (blocks[0, 3] + 1) % NUM_BLOCKS

    index = torch.arange(6)[None]
    before, after = (model._read(own, index) for own in (history, history._replace(blocks_BL=blocks)))

    assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


@every_kind
@pytest.mark.parametrize("length", [1, 4, 9], ids=["no past", "short past", "longer than the window"])
def test_training_and_serving_give_the_same_log_probability(kind, length):
    model, history = tiny_baseline(kind), tiny_history((length,))
    trained = model.next_poi_log_probs(history)
    past = history._replace(
        lengths_B=history.lengths_B - 1,
        **{
            name: value[:, :-1] for name, value in history._asdict().items() if name.endswith(("_BL", "_BL2"))
        },
    )

    served = model.request_log_probs(past)

    target = history.blocks_BL[0, -1] * MAX_INNER + history.inners_BL[0, -1]
    assert_close(served[0, target], trained.block_BQ[0, -1])
    assert_close(served.exp().sum(), torch.tensor(1.0))


@every_kind
def test_padding_and_batch_mates_change_nothing(kind):
    model, history = tiny_baseline(kind), tiny_history((9, 4))
    alone = tiny_history((9, 4))
    alone = alone._replace(
        **{name: value[1:] for name, value in alone._asdict().items() if value is not None}
    )

    assert_close(model.request_log_probs(history)[1:], model.request_log_probs(alone))


def test_a_poi_outside_the_catalogue_is_read_but_is_no_target():
    model, history = tiny_baseline("gpt"), tiny_history((5,))
    inners = history.inners_BL.clone()
    inners[0, 2] = MAX_INNER + 3

    log_probs = model.next_poi_log_probs(history._replace(inners_BL=inners))

    assert log_probs.is_target_BQ[0].tolist() == [True, True, False, True, True]
    assert log_probs.block_BQ[0, 2] == 0


def test_ranks_count_the_pois_with_a_higher_probability():
    model, rows = tiny_baseline("lstm"), 3
    lists = {
        name: pa.array([[step] * 4 for step in range(rows)], pa.list_(pa.int64()))
        for name in (
            "timestamps_ms",
            "tz_offsets_min",
            "action_type_ids",
            "block_ids",
            "inner_ids",
            "category_ids",
        )
    }
    places = {
        name: pa.array([[0.0] * 4] * rows, pa.list_(pa.float64()))
        for name in ("user_lons", "user_lats", "poi_lons", "poi_lats")
    }
    targets = np.array([0, 7, 11])

    ranks = rank_targets_by_baseline(model, pa.record_batch({**lists, **places}), targets, micro_batch=2)

    tokens = torch.tensor([[step * MAX_INNER + step] * 4 for step in range(rows)]) + 2
    states = model.encoder(model.poi(torch.cat([torch.zeros(rows, 1, dtype=torch.int64), tokens], dim=1)))
    logits = states[:, -1] @ model.poi.weight[2:].T
    expected = (logits > logits.gather(1, torch.from_numpy(targets)[:, None])).sum(dim=1)
    assert ranks.num_higher.tolist() == expected.tolist()
    assert ranks.num_equal.tolist() == [1, 1, 1]
