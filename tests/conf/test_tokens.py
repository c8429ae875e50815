"""The token contract: its fingerprint moves when, and only when, ids would be read differently."""

from dataclasses import replace

import pytest

from conf.tokens import ACTION_TYPES, NUM_SPECIAL, PAD, TOKENS_PER_ACTION, Slot, TokenLayout, action_type_id

LAYOUT = TokenLayout(index_version=1, num_blocks=512, max_inner=4096, num_categories=256)


def test_an_action_is_spacetime_action_block_inner_in_this_order() -> None:
    assert [slot.name for slot in Slot] == ["SPACETIME", "ACTION", "BLOCK", "INNER"]
    assert TOKENS_PER_ACTION == 4


def test_padding_is_zero_and_special_ids_come_first() -> None:
    assert PAD == 0
    assert NUM_SPECIAL == 4


def test_action_types_keep_the_ids_that_checkpoints_hold() -> None:
    assert ACTION_TYPES[:8] == (
        "click",
        "navigate",
        "search",
        "order",
        "favorite",
        "share",
        "call",
        "checkin",
    )
    assert action_type_id("checkin") == 7


def test_unknown_action_type_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown action type 'visit'; known: click, navigate"):
        action_type_id("visit")


def test_fingerprint_of_a_layout_does_not_move() -> None:
    assert LAYOUT.fingerprint() == "2a65dd8eb6c2eab6"  # changing it makes every checkpoint unreadable


@pytest.mark.parametrize("field", ["index_version", "num_blocks", "max_inner", "num_categories"])
def test_fingerprint_changes_with_every_capacity_and_the_index_version(field: str) -> None:
    assert replace(LAYOUT, **{field: getattr(LAYOUT, field) + 1}).fingerprint() != LAYOUT.fingerprint()


def test_a_layout_holds_an_index_up_to_its_capacities() -> None:
    assert LAYOUT.holds(num_blocks=512, max_inner=4096, num_categories=256)
    assert not LAYOUT.holds(num_blocks=513, max_inner=1, num_categories=1)
    assert not LAYOUT.holds(num_blocks=1, max_inner=4097, num_categories=1)
    assert not LAYOUT.holds(num_blocks=1, max_inner=1, num_categories=257)
