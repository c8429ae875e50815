"""Damaged deliveries: the second parser counts what was planted, and the truth follows the order of the rules."""

import random
from pathlib import Path

import pytest

from tests.bench.delivered import second_parser
from tests.bench.delivered.planted import DAMAGES, Planted, Poi, make_pois
from tests.bench.delivered.ways import WAYS, Way, Writer


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_the_second_parser_counts_what_was_planted(way: Way, tmp_path: Path) -> None:
    rng = random.Random(3)

    planted = way.write(Writer(tmp_path, make_pois(30, rng), rng, 2))

    assert way.count(tmp_path) == len(planted)


def test_there_are_at_least_25_kinds_of_damage() -> None:
    assert len({damage.name for damage in DAMAGES}) >= 25


def test_a_record_with_two_damages_is_refused_for_the_first_rule_in_order() -> None:
    record = Planted(
        "t1", Poi("p1", 4.9, 52.4, 60, "Cafe"), {}, {}, refused={"poi_place_zero", "missing_user"}
    )

    assert record.reason == "missing_user"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('{"a": 1}{"a": 2}\n{"a": 3}\n', 3),  # fused
        ('{"a": 1} garbage\n{"a": 2}\n', 2),  # a line that is no JSON is a record
        ('[{"a": 1},\n {"a": 2}]', 2),  # an array over two lines
        ('[{"a": 1}, {"a": 2}]\n{"a": 3},\n\n5\n', 4),  # an array, a comma, a blank line, a number
    ],
)
def test_records_of_json_are_what_a_person_would_count(text: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)

    assert second_parser.count_json(tmp_path) == number
