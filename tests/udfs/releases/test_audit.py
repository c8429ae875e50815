"""What the gates of an audit stop, what they only tell, and the figures they leave for the days to come."""

import json
import math
from datetime import timedelta

import pytest

from conf.errors import AuditMissingError, GateFailedError
from tests.udfs.feature_city import DAY_1, DAY_2, action, sequence, slot
from udfs.releases.audit import measure_day
from udfs.releases.audit_checks import AuditedDay
from udfs.releases.reader import read_release

pytestmark = pytest.mark.spark


def remember(city, usual, *, before, days=3):
    """Writes figures of cleaned_actions for the days before one: so many actions on each, all of interest."""
    for number in range(1, days + 1):
        figures = {
            ("", "rows"): usual,
            ("", "rows_of_the_day"): usual,
            ("is_interest", "true"): usual,
            ("user_lon", "nulls"): usual,
            ("user_lat", "nulls"): usual,
        }
        rows = [
            {
                "table_name": "cleaned_actions",
                "column_name": column,
                "statistic": statistic,
                "value": float(value),
            }
            for (column, statistic), value in figures.items()
        ]
        city.deliver(before - timedelta(days=number), table_statistics=rows)


def shown_users(city):
    return sorted(read_release(city.spark, city.root, "user_embeddings").collect())


def record_of(city, day):
    return json.loads((city.artifacts / "audits" / f"{day}.json").read_text())


def test_a_warning_is_told_and_kept_and_the_night_is_published(computed):
    remember(computed, 3, before=DAY_1)  # the day has 1 action: below half of 3, above a tenth

    summary = computed.run("audit", DAY_1)

    (warning,) = summary.notes["warnings"]
    assert warning == (
        "cleaned_actions: 1 rows of the day itself, usual are 3 (median of 3 days before), expected 2 to 6"
    )
    assert (record_of(computed, DAY_1)["warnings"], record_of(computed, DAY_1)["is_passed"]) == (
        [warning],
        True,
    )
    assert (
        "ranking_requests: number of rows not judged, 0 of 3 days needed before it"
        in summary.notes["unjudged"]
    )
    pages = (computed.artifacts / "data_docs" / str(DAY_1)).rglob("*.html")
    assert any("rows of the day itself: 2 to 6 (warning)" in page.read_text() for page in pages)
    assert computed.run("publish", DAY_1).notes == {"release_id": 1, "is_new": True, "day": str(DAY_1)}


def test_a_critical_failure_leaves_the_last_release_in_place(second_computed):
    remember(second_computed, 20, before=DAY_1)
    before = shown_users(second_computed)

    with pytest.raises(
        GateFailedError, match=r"1 rows of the day itself, usual are 20 .*, expected at least 5"
    ):
        second_computed.run("audit", DAY_2)

    with pytest.raises(AuditMissingError, match="the audit failed"):
        second_computed.run("publish", DAY_2)
    assert shown_users(second_computed) == before
    # Almost nothing must not become the usual: the figures of the failed day are not kept.
    assert DAY_2 not in {row["day"] for row in second_computed.read("table_statistics")}


def test_ids_that_change_overnight_stop_the_night(second_computed):
    second_computed.deliver(DAY_2, poi_index=[slot(2, inner_id=7, changed_day=DAY_2)])

    with pytest.raises(GateFailedError) as error:
        second_computed.run("audit", DAY_2)

    (failure,) = (text for text in error.value.failures if text.startswith("poi_index"))
    assert "1 of 9 rows break block_id, inner_id (changed)" in failure
    assert '"poi_id":"p2"' in failure
    assert '"was":{"block_id":0,"inner_id":2},"now":{"block_id":0,"inner_id":7}' in failure


def rewrite(city, table, change):
    """Writes the day's rows of a feature table once more, as something that is no feature job might."""
    rows = [dict(row) for row in city.read(table) if row["day"] == DAY_1]
    city.deliver(DAY_1, **{table: change(rows)})


def swap(name):
    """The first two rows get each other's value."""

    def change(rows):
        rows = sorted(rows, key=str)
        rows[0][name], rows[1][name] = rows[1][name], rows[0][name]
        return rows

    return change


def with_logits(rows):
    return [{**row, "click_logit": 2.0, "score": 1 / (1 + math.exp(-2.0))} for row in rows]


def as_percent(rows):
    return [{**row, "score": row["score"] / 100} for row in rows]


def in_other_units(rows):
    return [{**row, "log_probability": row["log_probability"] / math.log(10)} for row in rows]


WRONG_ROWS = [
    {
        "user_embeddings": (
            swap("embedding"),
            "2 of 3 sampled rows are not what the model makes of the inputs",
        ),
        "poi_embeddings": (swap("embedding"), "2 of 8 sampled rows are not what the model makes"),
        "ranking_scores": (with_logits, "5 of 5 sampled rows are not what the model makes"),
        "poi_candidates": (swap("poi_id"), "of 2 sampled rows are not what the model makes"),
    },
    {
        "ranking_scores": (as_percent, "5 scores that are not the probability of their click_logit"),
        "poi_candidates": (in_other_units, "2 of 2 sampled rows are not what the model makes"),
    },
]
"""By table, a change of its rows and what the audit says; an audit takes long, so each looks at several tables."""


@pytest.mark.parametrize("wrong", WRONG_ROWS, ids=["swapped", "other units"])
def test_rows_that_the_model_does_not_make_stop_the_night(computed, wrong):
    for table, (change, _) in wrong.items():
        rewrite(computed, table, change)

    with pytest.raises(GateFailedError) as error:
        computed.run("audit", DAY_1)

    for table, (_, told) in wrong.items():
        assert any(text.startswith(f"{table}: ") and told in text for text in error.value.failures), table


def test_without_the_model_at_hand_the_sample_is_not_judged_and_says_so(computed, other_bundle):
    summary = computed.run("audit", DAY_1, model=str(other_bundle))

    assert any("no row was made again: model folder-" in text for text in summary.notes["unjudged"])


@pytest.mark.operations("1")
def test_vectors_of_a_night_that_do_not_spread_stop_it(published):
    users = [sequence(f"v{number}", DAY_2, [number % 8]) for number in range(24)]
    published.deliver(
        DAY_2, action_sequences=users, ranking_requests=[], cleaned_actions=[action("a2", "u2", DAY_2, 4)],
        poi_index=[slot(number, inner_id=number % 4, changed_day=DAY_2) for number in range(8)],
    )  # fmt: skip
    published.run("features", DAY_2)
    tables = ("user_embeddings", "poi_embeddings")
    of_users, of_pois = (
        [dict(row) for row in published.read(name) if row["day"] == DAY_2] for name in tables
    )
    published.deliver(
        DAY_2,
        user_embeddings=[{**row, "embedding": of_users[0]["embedding"]} for row in of_users],
        poi_embeddings=[{**of_pois[0], "poi_id": f"p{number}"} for number in range(24)],
    )

    with pytest.raises(GateFailedError) as error:
        published.run("audit", DAY_2)

    for name in tables:
        assert f"{name}: 0.042 of 24 vectors differ from each other" in error.value.failures


def test_figures_of_a_day_are_written_once_however_often_it_is_audited(published):
    before = published.digest("table_statistics")

    published.run("audit", DAY_1, run_id="again")

    assert published.digest("table_statistics") == before
    figures = {
        (row["table_name"], row["column_name"], row["statistic"]): row["value"]
        for row in published.read("table_statistics")
    }
    assert figures["cleaned_actions", "", "rows_of_the_day"] == 1
    assert figures["poi_index", "", "rows"] == 8
    assert figures["poi_index", "block_id, inner_id", "changed"] == 0
    assert figures["ranking_requests", "user_lon", "nulls"] == 0


def test_all_figures_and_those_of_the_days_before_come_from_one_action(published):
    spark = published.spark
    audited = AuditedDay(spark, published.root, DAY_1)
    calls = []
    collect = type(audited.read("poi_index")).collect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(audited.read("poi_index")), "collect", lambda self: calls.append(1) or collect(self)
        )
        figures = measure_day(audited, history_days=7)

    assert len(calls) == 1
    assert {table for day, table in figures if day == DAY_1} == set(audited.versions)
