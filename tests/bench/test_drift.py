"""What counts as a figure that moved."""

import math

from tests.bench.drift import difference, flatten


def test_every_leaf_of_nested_figures_has_a_path():
    figures = {"rows": 3, "methods": {"a": {"mrr": 0.5, "interval": [0.1, None]}}, "digest": "ab"}

    found = dict(flatten(figures))

    assert found == {
        "rows": 3.0,
        "methods/a/mrr": 0.5,
        "methods/a/interval/0": 0.1,
        "methods/a/interval/1": None,
        "digest": "ab",
    }


def test_numbers_differ_by_their_distance_and_anything_else_by_one():
    assert difference(0.25, 0.5) == 0.25
    assert difference(math.nan, math.nan) == 0
    assert difference("ab", "ab") == difference(None, None) == 0
    assert difference(math.nan, 0.5) == difference("ab", "ac") == difference(None, 0.0) == 1
