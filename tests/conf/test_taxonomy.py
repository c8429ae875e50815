"""The taxonomy decides every category, by the nearest level that it knows."""

import pytest

from conf.taxonomy import Verdict, load_taxonomy
from tests.checkin_data import DATA, needs_data


@pytest.mark.parametrize(
    ("category", "path", "is_interest"),
    [
        ("Thai Restaurant", "Food > Thai Restaurant", True),
        (
            "Gas Station / Garage",
            "Shop & Service > Gas Station / Garage",
            False,
        ),  # the leaf beats its top level
        ("Hotel", "Travel & Transport > Hotel", True),
        ("Bus Stop", "Travel & Transport > Bus Stop", False),
        ("Home (private)", "", False),
        ("Gym", "", True),
        ("French food", "food > French food", True),  # the paper's two levels
        ("Ramen /  Noodle House", "", True),  # by a word of the leaf
        ("Elementary Schools", "", False),  # plural of a word
    ],
)
def test_a_category_is_decided_by_its_nearest_known_level(category, path, is_interest):
    assert load_taxonomy().resolve(category, path) == Verdict(is_interest, True)


def test_an_unknown_category_gets_the_default_and_says_so():
    assert load_taxonomy().resolve("Xyzzy", "Plugh > Xyzzy") == Verdict(True, False)


@needs_data
def test_every_category_of_the_given_data_is_decided():
    pandas = pytest.importorskip("pandas")
    unknown = set()
    for file in DATA.glob("**/*.parquet"):
        frame = pandas.read_parquet(file)
        if {"category", "category_path"} <= set(frame.columns):
            for category, path in frame[["category", "category_path"]].fillna("").drop_duplicates().values:
                leaf = category or path.split(" > ")[-1]
                if leaf and not load_taxonomy().resolve(leaf, path).is_known:
                    unknown.add(f"{file.parent.name}: {leaf}")
    assert not unknown
