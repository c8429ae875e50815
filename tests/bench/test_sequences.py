"""Whether the model of what readers may see finds what they may not: it is shown a log that nobody made."""

from dataclasses import replace
from typing import Any

import pytest

from conf.errors import ReleaseWithdrawnError
from conf.releases import Release
from tests.bench.sequences.expected import Expected, Operation, Shown, UnsafeError
from tests.bench.sequences.warehouse import USERS, Content, day_of, make_night

NIGHTS = {
    number: make_night(number, number + 1.0, "m/1", USERS, is_whole=number == 0) for number in (0, 1, 2)
}


class Readers:
    """Stands for the warehouse: what readers are told, release by release."""

    def __init__(self) -> None:
        self.log: list[Release] = []
        self.content: dict[int, Content] = {}

    def publish(self, night: int, content: Content, run_id: str, rollback_of: int | None = None) -> None:
        number = len(self.log) + 1
        self.log.append(Release(number, day_of(night), 0, {}, "m/1", 1, rollback_of, run_id, True))
        self.content[number] = content

    def withdraw(self, number: int) -> None:
        self.log[number - 1] = replace(self.log[number - 1], withdrawn="gone")

    def releases(self) -> list[Release]:
        return self.log

    def read(self, number: int) -> Content:
        if self.log[number - 1].withdrawn:
            raise ReleaseWithdrawnError(root="", release_id=number, reason="gone")
        return self.content[number]


@pytest.fixture
def expected() -> Expected:
    found = Expected(dict(NIGHTS), audited=dict.fromkeys(NIGHTS, 1), fresh=2)
    for night in (0, 1):
        found.shown[night + 1] = Shown(night, found.content_of(night), f"publish-{night}", None, 1)
    return found


@pytest.fixture
def readers(expected: Expected) -> Readers:
    found = Readers()
    for night in (0, 1):
        found.publish(night, expected.content_of(night), f"publish-{night}")
    return found


def check(expected: Expected, readers: Readers, operation: Operation, code: int | None = 0) -> None:
    warehouse: Any = readers
    expected.check(warehouse, [(operation, code)])


PUBLISH, ROLLBACK = Operation("publish", "run", night=2), Operation("rollback", "run")


def test_what_is_right_is_taken_over(expected, readers):
    expected.begin(PUBLISH)
    readers.publish(2, expected.content_of(2), "run")
    check(expected, readers, PUBLISH)
    readers.publish(1, expected.shown[2].content, "run", rollback_of=3)
    check(expected, readers, ROLLBACK)
    readers.withdraw(1)
    check(expected, readers, Operation("vacuum", "run", keep=3))

    assert (expected.current, expected.readable) == (4, [2, 3, 4])


def test_half_a_night_is_found(expected, readers):
    expected.begin(PUBLISH)
    content = expected.content_of(2)
    readers.publish(2, {**content, "poi_candidates": {}}, "run")
    with pytest.raises(UnsafeError, match="half a night"):
        check(expected, readers, PUBLISH)


def test_rows_that_changed_under_a_release_are_found(expected, readers):
    del readers.content[1]["user_embeddings"][(USERS[0],)]
    with pytest.raises(UnsafeError, match="release 1 shows other rows"):
        check(expected, readers, Operation("report", "run"))


def test_a_retry_that_publishes_twice_is_found(expected, readers):
    for _ in range(2):
        readers.publish(2, expected.content_of(2), "run")
    expected.begin(PUBLISH)
    with pytest.raises(UnsafeError, match="published twice"):
        check(expected, readers, PUBLISH)


def test_a_step_back_without_the_switch_is_found(expected, readers):
    older = replace(PUBLISH, night=0)
    expected.begin(older)
    readers.publish(0, expected.content_of(0), "run")
    with pytest.raises(UnsafeError, match="set readers back"):
        check(expected, readers, older)


def test_what_was_rolled_back_and_is_published_again_is_found(expected, readers):
    readers.publish(0, expected.shown[1].content, "run", rollback_of=2)
    check(expected, readers, ROLLBACK)
    again = replace(PUBLISH, night=1, run_id="again")
    expected.begin(again)
    readers.publish(1, expected.content_of(1), "again")
    with pytest.raises(UnsafeError, match="what was rolled back"):
        check(expected, readers, again)


def test_a_vacuum_that_withdraws_too_much_is_found(expected, readers):
    readers.withdraw(1)
    with pytest.raises(UnsafeError, match="release 1 is withdrawn"):
        check(expected, readers, Operation("vacuum", "run", keep=2))


def test_an_erased_user_who_is_still_read_is_found(expected, readers):
    with pytest.raises(UnsafeError, match="shows other rows"):
        check(expected, readers, Operation("erase", "run", user=USERS[0]))


def test_an_end_without_a_named_error_is_found(expected, readers):
    with pytest.raises(UnsafeError, match="no named error"):
        check(expected, readers, PUBLISH, code=1)
