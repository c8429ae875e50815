"""Which states have been corrected after vectors were made from them."""

from datetime import date

from udfs.features.user_embeddings import find_late

MONDAY, TUESDAY, WEDNESDAY = (date(2026, 3, day) for day in (2, 3, 4))


def test_nights_in_order_leave_no_state_late():
    # Monday's vectors were made before Tuesday's state, and not from it.
    assert find_late({MONDAY: 1, TUESDAY: 2}, {MONDAY: 1, TUESDAY: 2}) == {}


def test_a_state_committed_after_a_vector_was_made_from_it_is_late():
    # Monday was delivered again as version 3, after both nights had read versions 1 and 2.
    assert find_late({MONDAY: 3, TUESDAY: 2}, {MONDAY: 1, TUESDAY: 2}) == {MONDAY: 3}


def test_a_state_newer_than_every_vector_is_not_late():
    assert find_late({MONDAY: 1, WEDNESDAY: 3}, {MONDAY: 1, TUESDAY: 1}) == {}


def test_a_vector_of_an_older_day_was_not_made_from_a_later_state():
    # Tuesday's vectors were made after Tuesday's state, Monday's before it.
    assert find_late({MONDAY: 1, TUESDAY: 2}, {MONDAY: 1, TUESDAY: 2, WEDNESDAY: 2}) == {}
