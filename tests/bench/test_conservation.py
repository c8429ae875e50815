"""Every planted row of a small city gets exactly its reason, and no other row is refused."""

from collections import Counter

from conf.rules import RULES
from etl.city.dirt import NOT_PLANTED
from etl.spark.session import local_frame
from tests.bench.conservation import compare, measure, settings_for


def test_two_sets_are_compared_row_by_row_and_reason_by_reason(spark):
    schema = "id string, reason string"
    planted = local_frame(spark, [("a", "x"), ("a", "x"), ("b", "x"), (None, "y")], schema)
    found = local_frame(spark, [("a", "x"), ("b", "y"), (None, "y")], schema)

    compared = compare(planted, found)

    # One of the two rows a, and the row without id; b is found under another reason.
    assert compared["right"] == Counter(x=1, y=1)
    assert (compared["planted"], compared["found"]) == (Counter(x=3, y=1), Counter(x=1, y=2))


def test_every_planted_row_gets_its_reason_and_no_good_row_is_refused(spark, made):
    city = settings_for(4_000, made.storage.root)
    much = {"num_pois": 1_500, "dirty_share": 0.1, "kept_dirt_share": 0.1, "bot_share": 0.003}
    city = city.model_copy(
        update={
            "spark": made.spark,
            "city": city.city.model_copy(update=much),
            "clean": city.clean.model_copy(update={"max_actions_per_day": 30}),
        }
    )

    outcome = measure(spark, city)

    refusable = {
        rule.code for rule in RULES if rule.table in ("raw_actions", "raw_pois") and rule.severity == "refuse"
    }
    assert set(outcome.planted) == refusable - {*NOT_PLANTED}
    assert (outcome.difference, outcome.recall, outcome.precision) == (0, 1.0, 1.0)
    kept = {
        rule.code for rule in RULES if rule.table == "raw_actions" and rule.severity in ("repair", "flag")
    }
    assert set(outcome.planted_kept) == kept - {*NOT_PLANTED}
    # Where the user's place is unknown, speed is too; all else is noted on exactly the planted rows.
    planted, found = outcome.planted_kept.pop("impossible_speed"), outcome.kept.pop("impossible_speed")
    assert outcome.kept == outcome.planted_kept
    assert 0.7 * planted < found <= planted
