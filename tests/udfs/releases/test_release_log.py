"""Which release is current and where a rollback goes; no Spark, no tables."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import date, datetime

import pytest

from conf.errors import AuditMissingError, NoReleaseError, ReleaseWithdrawnError, StaleReleaseError
from conf.releases import Release, find_previous, find_release, find_taken_back
from udfs.releases.list_releases import refuse_old


def release(release_id: int, version: int, rollback_of: int | None = None) -> Release:
    """Returns a release whose content is told by one Delta version."""
    return Release(
        release_id=release_id, day=date(2026, 3, version), published_ts_ms=release_id,
        table_versions={"user_embeddings": version}, model_version="m/1", index_version=1,
        rollback_of=rollback_of, run_id="run", is_simulated=False,
    )  # fmt: skip


def test_the_current_release_is_the_last_one():
    assert find_release([release(1, 1), release(2, 2)], "root").release_id == 2


def test_a_release_is_found_by_number():
    assert find_release([release(1, 1), release(2, 2)], "root", 1).release_id == 1


def test_a_missing_release_is_named_with_those_there_are():
    with pytest.raises(NoReleaseError, match=r"release 7 was not found.*Releases there: 1, 2"):
        find_release([release(1, 1), release(2, 2)], "root", 7)


def test_rollback_goes_one_release_back():
    assert find_previous([release(1, 1), release(2, 2)], "root").release_id == 1


def test_two_rollbacks_go_two_releases_back():
    log = [release(1, 1), release(2, 2), release(3, 3), release(4, 2, rollback_of=3)]

    assert find_previous(log, "root").release_id == 1


def test_rollback_passes_over_what_was_taken_back():
    log = [release(1, 1), release(2, 2), release(3, 1, rollback_of=2), release(4, 4)]

    assert find_previous(log, "root").release_id == 1  # 2 was bad


def test_there_is_nothing_before_the_first_release():
    with pytest.raises(NoReleaseError, match="a release before 1"):
        find_previous([release(1, 1)], "root")


def test_text_of_a_publish_without_an_audit():
    error = AuditMissingError(
        day="2026-03-01", record="artifacts/audits/2026-03-01.json", problem="never audited"
    )

    assert error.exit_code == 3
    assert str(error) == (
        "the feature tables of 2026-03-01 cannot be published: never audited "
        "(record artifacts/audits/2026-03-01.json). A release shows exactly what an audit has looked at, so "
        "nothing was published and readers still see the last release. Run python -m udfs audit --day "
        "2026-03-01, then publish again."
    )


@pytest.mark.parametrize(
    ("published", "is_old"), [("03-04 02", False), ("03-02 23", True), ("03-05 11", False)]
)
def test_a_release_is_old_by_the_clock_of_its_publication(published: str, is_old: bool) -> None:
    current = replace(release(3, 3), published_ts_ms=ms(published))
    now = ms("03-05 12")  # day 3 ended 36 hours ago

    with pytest.raises(StaleReleaseError, match="release 3") if is_old else nullcontext():
        refuse_old(current, max_age_hours=36, now_ms=now)


@pytest.mark.operations("13")
def test_old_data_published_now_raise_the_alarm_too() -> None:
    current = replace(release(3, 3), published_ts_ms=ms("03-05 12"))

    with pytest.raises(StaleReleaseError, match=r"its day 2026-03-03 ended 36\.0 hours ago"):
        refuse_old(current, max_age_hours=36, now_ms=ms("03-05 12") + 1)


def ms(text: str) -> int:
    """Returns an hour of 2026, written `MM-DD HH`, in epoch milliseconds."""
    return int(datetime.strptime(f"2026-{text} +0000", "%Y-%m-%d %H %z").timestamp() * 1000)


def test_what_was_taken_back_is_known_until_it_is_shown_again() -> None:
    log = [release(1, 1), release(2, 2), release(3, 1, rollback_of=2)]

    assert [found.release_id for found in find_taken_back(log)] == [2]
    assert find_taken_back([*log, release(4, 2, rollback_of=3)]) == [log[0]]


def test_a_withdrawn_release_is_neither_current_nor_gone_back_to() -> None:
    withdrawn = replace(release(2, 2), withdrawn="users were erased")
    releases = [release(1, 1), withdrawn, release(3, 3)]

    assert find_previous(releases, "root").release_id == 1
    assert find_release(releases[:2], "root").release_id == 1
    with pytest.raises(ReleaseWithdrawnError, match="users were erased"):
        find_release(releases, "root", 2)
