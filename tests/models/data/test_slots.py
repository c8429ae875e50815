"""Sets of slots against a dictionary."""

import pytest
import torch

from models.data.slots import AboutSlots, LiveSlots


def slots(about: AboutSlots | None = None) -> LiveSlots:
    blocks, inners = torch.tensor([3, 0, 3, 9]), torch.tensor([1, 0, 4, 0])
    return LiveSlots(blocks, inners, num_blocks=5, max_inner=6, about=about)


def test_slots_beyond_the_capacity_are_left_out():
    assert slots().count_inners().tolist() == [1, 0, 0, 2, 0]
    assert slots().mask_blocks().tolist() == [True, False, False, True, False]


def test_a_block_knows_its_inner_ids_up_to_the_largest():
    assert slots().mask_block(torch.tensor(3)).tolist() == [False, True, False, False, True]
    assert slots().mask_block(torch.tensor(1)).tolist() == []
    assert slots().mask_block(torch.tensor(9)).tolist() == []


def test_membership_is_elementwise():
    blocks, inners = torch.tensor([[3, 3], [0, 9]]), torch.tensor([[4, 2], [0, 0]])

    assert slots().contains(blocks, inners).tolist() == [[True, False], [True, False]]


def test_an_empty_set_contains_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    empty = LiveSlots(none, none, num_blocks=5, max_inner=6)

    assert empty.contains(torch.tensor([0]), torch.tensor([0])).tolist() == [False]
    assert empty.mask_block(torch.tensor(0)).tolist() == []


def test_order_and_repetition_do_not_matter():
    twice = LiveSlots(torch.tensor([3, 3, 0, 3]), torch.tensor([4, 1, 0, 4]), num_blocks=5, max_inner=6)

    assert torch.equal(twice.keys_N, slots().keys_N)


def test_what_is_known_of_slots_goes_with_them_whatever_their_order():
    places = torch.tensor([[3.1, 1.0], [0.0, 0.5], [3.4, 4.0], [9.0, 9.0]])
    found = slots(AboutSlots(torch.tensor([31, 1, 34, 90]), places)).to("cpu")

    of_three = found.about_block(torch.tensor(3))
    assert of_three.categories_N.tolist() == [0, 31, 0, 0, 34]  # inner ids 1 and 4
    assert of_three.lonlat_N2[[1, 4]].tolist() == places[[0, 2]].tolist()
    assert of_three.lonlat_N2[[0, 2, 3]].isnan().all()
    assert found.about_block(torch.tensor(1)).categories_N.tolist() == []
    assert found.about_block(torch.tensor(0)).lonlat_N2.tolist() == [[0.0, 0.5]]


def test_what_nobody_told_is_not_made_up():
    with pytest.raises(ValueError, match="category and place"):
        slots().about_block(torch.tensor(3))
