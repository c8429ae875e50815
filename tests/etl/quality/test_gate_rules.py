"""Rules from contract, gates and the days before: each passes on good figures and fails on planted bad ones."""

import random
from collections import Counter
from datetime import date, timedelta

import pytest

from conf.settings import GateSettings
from conf.tables import TABLES
from etl.quality.gate_rules import EPOCH, Figure, Figures, Rule, build_rules

DAY = date(2026, 1, 31)
SETTINGS = GateSettings()
"""Band 0.5 to 2 times the usual, almost nothing is below a quarter, shares move 0.15, nulls 0.1; 3 days are needed."""


class AllGood(dict[tuple[str, str], Figure]):
    """Figures of a table where nothing bad was counted, whatever is asked for."""

    def __missing__(self, key: tuple[str, str]) -> Figure:
        return Figure(0.0)


def figures(
    rows: float = 100,
    *,
    of_day: float | None = None,
    interest: float = 60,
    nulls: float = 10,
    again: float = 0,
    top: float = 5,
    **counted: dict[str, float],
) -> Figures:
    """Figures of cleaned_actions: 100 rows, 60 of interest, 10 without a user place, the newest of the day.

    Half of the rows are at noon and half at eight in the evening, a third each of three categories, all but a tenth in
    one region; nobody has more than five.
    """
    usual = {
        "local_hour": {"12": rows / 2, "20": rows / 2},
        "category_id": dict.fromkeys("123", rows / 3),
        "region": {"4.5 52": 0.9 * rows, "13 52.5": 0.1 * rows},
    }
    return AllGood(
        {
            ("", "rows"): Figure(rows),
            ("", "rows_of_the_day"): Figure(rows if of_day is None else of_day),
            ("is_interest", "true"): Figure(interest),
            ("user_lon", "nulls"): Figure(nulls),
            ("user_lat", "nulls"): Figure(nulls),
            ("event_date", "newest_day"): Figure((DAY - EPOCH).days),
            ("user_id, poi_id, action_ts_ms", "sent_again"): Figure(again),
            ("user_id", "most of one value"): Figure(top),
            **{
                (name, f"counted: {value}"): Figure(number)
                for name, values in {**usual, **counted}.items()
                for value, number in values.items()
            },
        }
    )


def before(*days: Figures) -> dict[date, Figures]:
    """The last days before DAY, the latest last."""
    return {DAY - timedelta(days=len(days) - number): found for number, found in enumerate(days)}


def judge(
    today: Figures, earlier: dict[date, Figures] | None = None, table: str = "cleaned_actions"
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns severity and text of the rules that do not hold, and what was not judged."""
    rules, unjudged = build_rules(table, today, earlier or {}, day=DAY, settings=SETTINGS)
    return [(rule.severity, rule.failure) for rule in rules if not holds(rule)], unjudged


def holds(rule: Rule) -> bool:
    return (rule.low is None or rule.found >= rule.low) and (rule.high is None or rule.found <= rule.high)


WEEK = before(*[figures()] * 7)


def test_an_ordinary_day_breaks_no_rule():
    assert judge(figures(), WEEK) == ([], [])


@pytest.mark.parametrize("table", TABLES)
def test_every_contract_makes_rules_that_hold_on_good_figures(table):
    today = AllGood({("", "rows"): Figure(5.0)})
    for name in ("event_date", "request_ts_ms"):
        today[name, "newest_day"] = Figure((DAY - EPOCH).days)

    rules, _ = build_rules(table, today, {}, day=DAY, settings=SETTINGS)

    assert rules
    assert all(holds(rule) for rule in rules)


@pytest.mark.parametrize(
    ("rows", "severities"),
    [
        (50, []),  # half of the usual 100: the edge of the band
        (49, ["warning"]),
        (200, []),
        (201, ["warning"]),
        (25, ["warning"]),  # a tenth: the edge of almost nothing
        (24, ["warning", "critical"]),
    ],
)
def test_volume_is_compared_with_the_days_before(rows, severities):
    found, _ = judge(figures(rows, interest=0.6 * rows, nulls=0.1 * rows), WEEK)

    assert [severity for severity, _ in found] == severities
    assert all(
        text.startswith(f"cleaned_actions: {rows} rows of the day itself, usual are 100") for _, text in found
    )


def test_a_first_delivery_of_all_history_is_no_yardstick():
    # 60 days came at once on the first night, 100 actions of which happened on that day.
    history = before(figures(6000, of_day=100, interest=3600, nulls=600), figures(), figures())

    assert judge(figures(), history) == ([], [])


def test_one_odd_day_does_not_move_the_usual():
    history = before(figures(), figures(100_000, interest=60_000, nulls=10_000), figures())

    assert judge(figures(), history) == ([], [])


def test_too_few_days_before_give_no_verdict_and_say_so():
    found, unjudged = judge(figures(1, interest=1, nulls=0), before(figures(), figures()))

    assert found == []
    assert unjudged[0] == (
        "cleaned_actions: number of rows of the day itself not judged, 2 of 3 days needed before it"
    )
    assert (
        len(unjudged) == 8
    )  # volume, share of interest, three histograms, top user, nulls of both coordinates


def test_days_out_of_sight_and_later_days_are_not_looked_at():
    old = {DAY - timedelta(days=8 + number): figures(1) for number in range(5)}
    later = {DAY + timedelta(days=number): figures(1) for number in range(5)}

    assert judge(figures(), WEEK | old | later) == ([], [])


def test_share_of_interest_warns_when_it_moves_and_stops_when_it_is_gone():
    (drifted,) = judge(figures(interest=40), WEEK)[0]  # 0.6 -> 0.4
    gone = judge(figures(interest=5), WEEK)[0]  # below a tenth of 0.6

    assert drifted == (
        "warning",
        "cleaned_actions: share of is_interest is 0.400, usual is 0.600, expected 0.600 +- 0.15",
    )
    assert [severity for severity, _ in gone] == ["warning", "critical"]


def test_null_rates_of_nullable_columns_warn_when_they_move():
    found, _ = judge(figures(nulls=30), WEEK)

    assert found == [
        (
            "warning",
            f"cleaned_actions: {name}: share of nulls is 0.300, usual is 0.100, expected 0.100 +- 0.1",
        )
        for name in ("user_lon", "user_lat")
    ]


def test_a_delivery_whose_newest_row_is_older_than_the_day_stops():
    today = dict(figures())
    today["event_date", "newest_day"] = Figure((DAY - EPOCH).days - 1)

    ((severity, text),) = judge(AllGood(today), WEEK)[0]

    assert severity == "critical"
    assert text == (
        "cleaned_actions: the newest event_date is of 2026-01-30, expected 2026-01-31 or later; was an old "
        "delivery sent again?"
    )


@pytest.mark.parametrize(
    ("column", "statistic", "text"),
    [
        ("user_id", "nulls", "2 of 100 rows break user_id (nulls): expected no nulls"),
        ("user_lon", "out_of_bounds", "(out of bounds): expected -180 to 180, for example 181.0"),
        (
            "action_id",
            "repeated",
            "2 of 100 rows break action_id (repeated): expected values that occur once",
        ),
    ],
)
def test_what_breaks_the_contract_is_critical(column, statistic, text):
    today = dict(figures())
    today[column, statistic] = Figure(2.0, "181.0" if statistic == "out_of_bounds" else None)

    ((severity, told),) = judge(AllGood(today), WEEK)[0]

    assert severity == "critical"
    assert text in told


def test_a_slot_that_two_pois_have_and_an_id_that_changed_are_critical():
    today = AllGood({("", "rows"): Figure(100.0)})
    today["index_version, block_id, inner_id", "repeated"] = Figure(2.0, '{"index_version":1}')
    today["block_id, inner_id", "changed"] = Figure(1.0, '{"poi_id":"p1"}')

    found, _ = judge(today, table="poi_index")

    assert [severity for severity, _ in found] == ["critical", "critical"]
    assert "1 of 100 rows break block_id, inner_id (changed)" in found[1][1]
    assert 'for example {"poi_id":"p1"}' in found[1][1]


def test_a_night_without_requests_stops_nothing_but_is_told_if_it_is_unusual():
    none, many = AllGood({("", "rows"): Figure(0.0)}), AllGood({("", "rows"): Figure(50.0)})

    assert judge(none, before(none, none, none), "ranking_requests")[0] == []
    found, _ = judge(none, before(many, many, many), "ranking_requests")
    assert {severity for severity, _ in found} == {"warning"}
    nothing = AllGood({("", "rows"): Figure(0.0), ("event_date", "newest_day"): Figure(None)})
    assert judge(nothing, table="cleaned_actions")[0] == [
        ("critical", "cleaned_actions: 0 rows, expected at least 1")
    ]


@pytest.mark.parametrize(
    ("hours", "severities"),
    [
        ({"12": 60, "20": 40}, []),  # a tenth of the rows lies elsewhere
        ({"12": 72, "20": 28}, ["warning"]),  # 0.22: above 0.15 and what chance explains (0.05)
        ({"3": 100}, ["warning", "critical"]),  # nine hours off
    ],
)
def test_hours_that_move_are_told_and_stop_the_night(hours, severities):
    failures, _ = judge(figures(local_hour=hours), WEEK)

    assert [severity for severity, _ in failures] == severities
    assert all("local_hour" in text for _, text in failures)


def test_where_the_days_before_differ_a_day_may_differ_as_much():
    days = before(*[figures(local_hour={"12": 100.0 * (n % 2), "20": 100.0 * (1 - n % 2)}) for n in range(7)])

    assert judge(figures(local_hour={"12": 100}), days) == ([], [])


def test_a_value_that_takes_over_among_many_stops_the_night():
    """Among a hundred values half of the rows of a small day lie elsewhere by chance."""
    chance = random.Random(1)
    days = [figures(category_id=Counter(str(chance.randrange(100)) for _ in range(90))) for _ in range(7)]
    today = Counter(str(chance.randrange(100)) for _ in range(27)) + Counter({"bakery": 63})

    failures, _ = judge(figures(category_id=today), before(*days))

    assert ("critical", True) in {(severity, "most at bakery: 0.700" in text) for severity, text in failures}
    assert (
        judge(figures(category_id=Counter(str(chance.randrange(100)) for _ in range(90))), before(*days))[0]
        == []
    )


def test_a_region_that_vanishes_stops_the_night_and_a_new_one_does_not():
    (gone,), _ = judge(figures(region={"13 52.5": 100}), WEEK)
    new, _ = judge(figures(region={"4.5 52": 60, "13 52.5": 7, "9.5 48": 33}), WEEK)

    assert gone[0] == "critical"
    assert "region 4.5 52 has 0.000 of the rows, usual are 0.900" in gone[1]
    assert new == []


def test_a_small_region_may_be_empty_by_chance():
    assert judge(figures(region={"4.5 52": 100}), WEEK)[0] == []  # of 10 rows, none today


def test_one_user_with_most_of_the_rows_stops_the_night():
    (failure,), _ = judge(figures(top=60), WEEK)

    assert failure[0] == "critical"
    assert "share of the most frequent user_id is 0.600, usual is 0.050" in failure[1]


def test_a_delivery_sent_again_with_its_dates_moved_stops_the_night_without_any_history():
    (failure,), _ = judge(figures(again=90))

    assert failure[0] == "critical"
    assert "0.900 of the rows are those of the day before, a day later" in failure[1]
