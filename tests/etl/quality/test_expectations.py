"""Great Expectations judges the figures: severities, texts, pages."""

from datetime import date

import pytest

from conf.gates import Severity
from etl.quality.expectations import Judgement, build_expectation, judge
from etl.quality.gate_rules import Rule

DAY = date(2026, 1, 31)


def rule(table: str, found: float, severity: Severity = "critical", low: float | None = None) -> Rule:
    """Nothing may be found; with `low`, at least so much must be."""
    return Rule(
        table,
        "rows",
        found,
        low,
        None if low else 0,
        severity,
        f"{table} is as it should be",
        f"{table} broke",
    )


def test_criticals_and_warnings_are_told_apart_and_every_table_has_a_page(tmp_path):
    rules = {
        "good": [rule("good", 0)],
        "odd": [rule("odd", 3, "warning"), rule("odd", 3, low=1)],  # the same figure, two rules
        "bad": [rule("bad", 3)],
        "empty": [],
    }

    assert judge(rules, tmp_path, day=DAY) == Judgement(failures=["bad broke"], warnings=["odd broke"])

    index = (tmp_path / "index.html").read_text()
    assert all(f"validations/{table}/{DAY}/" in index for table in ("good", "odd", "bad"))
    (page,) = (tmp_path / "validations" / "odd" / str(DAY)).rglob("*.html")
    assert (
        "odd is as it should be (warning)" in page.read_text()
    )  # the Data Docs say what was expected, and how bad


def test_severity_is_that_of_great_expectations():
    assert build_expectation(rule("odd", 3, "warning")).severity.value == "warning"


def test_without_rules_nothing_is_judged(tmp_path):
    assert judge({}, tmp_path / "docs", day=DAY) == Judgement()
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(("found", "is_good"), [(0.0, False), (1.0, True), (1e9, True)])
def test_an_open_bound_lets_everything_beyond_pass(tmp_path, found, is_good):
    judgement = judge({"odd": [rule("odd", found, low=1)]}, tmp_path, day=DAY)

    assert (judgement.failures == []) is is_good
