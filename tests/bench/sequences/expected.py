"""What readers may see, as a small model: a list of releases with their content, who was erased, what was rolled back.

It knows nothing of Delta, files or versions. `Expected.check` compares it with the warehouse after every operation and
takes over what was allowed to change; anything else is an `UnsafeError`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from conf.errors import ReleaseWithdrawnError
from conf.releases import Release
from tests.bench.sequences.warehouse import Content, Warehouse, Written, day_of, user_of


class UnsafeError(Exception):
    """Readers see, or may no longer see, what they should not; the text says what."""


@dataclass(frozen=True)
class Operation:
    """Something that an operator does.

    Attributes:
        kind: `night`, `publish`, `rollback`, `vacuum`, `erase` or `report`.
        run_id: of the run; a retry has the same.
        night: number of the night of `night`, `publish` and `report`.
        to: release of `rollback`; the one before if None.
        keep: `--keep-releases` of `vacuum`.
        user: of `erase`.
        replace: was `--replace` given to `publish`.
    """

    kind: str
    run_id: str
    night: int = 0
    to: int | None = None
    keep: int | None = None
    user: str = ""
    replace: bool = False


@dataclass
class Shown:
    """A release as it must be read."""

    day: int
    content: Content
    run_id: str
    rollback_of: int | None
    audited: int
    """Which audit it was published by; a rollback has that of what it shows."""
    is_withdrawn: bool = False


@dataclass
class Expected:
    """The model.

    Attributes:
        written: what each night has written last.
        audited: by night, how often it was written and audited.
        torn: the night that was killed while it wrote, and what it had written before and would have written.
        fresh: the night that can be published, since no table has changed since its audit.
        shown: releases by number.
        erased: users who are gone for good.
        leaving: the user of an erasure that was begun and has not ended.
    """

    written: dict[int, Written]
    audited: dict[int, int] = field(default_factory=dict)
    torn: tuple[int, list[Written]] | None = None
    fresh: int | None = None
    shown: dict[int, Shown] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    leaving: str = ""
    _begun: dict[str, list[Content]] = field(default_factory=dict)

    @property
    def readable(self) -> list[int]:
        """Numbers of the releases that can be read, oldest first."""
        return [number for number, shown in sorted(self.shown.items()) if not shown.is_withdrawn]

    @property
    def current(self) -> int:
        return self.readable[-1]

    def without(self, content: Content, users: set[str]) -> Content:
        """Returns a content without the rows that tell of users."""
        return {
            table: {key: mark for key, mark in rows.items() if user_of(table, key) not in users}
            for table, rows in content.items()
        }

    def begin(self, operation: Operation) -> None:
        """Notes what a publication would show, since another operator may write the night again meanwhile."""
        if operation.kind == "publish":
            torn = (
                self.torn[1]
                if self.torn and self.torn[0] == operation.night
                else [self.written[operation.night]]
            )
            self._begun[operation.run_id] = [self.content_of(operation.night, written) for written in torn]

    def wrote(self, operation: Operation, written: Written, code: int | None) -> None:
        """Takes over what a night has written, or may have written if it was killed or disturbed."""
        night = operation.night
        if code in (None, 3):
            before = self.torn[1] if self.torn else [self.written[night]] if night in self.written else []
            self.torn, self.fresh = (night, [*before, written]), None
            self.written.setdefault(night, written)
        elif code == 0:
            self.written[night], self.torn, self.fresh = written, None, night
            self.audited[night] = self.audited.get(night, 0) + 1

    def content_of(self, night: int, own: Written | None = None) -> Content:
        """Returns what a release of a night shows: vectors of earlier nights by the same model complete its own."""
        own = own or self.written[night]
        model = own.model
        content: Content = {
            "user_embeddings": {},
            "poi_embeddings": {},
            "ranking_scores": {},
            "poi_candidates": {},
        }
        for number in sorted(self.written):
            if number < night and self.written[number].model == model:
                for table in ("user_embeddings", "poi_embeddings"):
                    content[table] |= self.written[number].rows[table]
        for table, rows in own.rows.items():
            content[table] |= rows
        return self.without(content, self.erased)

    def taken_back(self) -> list[Content]:
        """Returns the contents that a rollback took back and that nobody has published again since."""
        return [shown.content for shown in self._releases_taken_back()]

    def is_unknown_again(self, night: int) -> bool:
        """Tells whether a release of the night was taken back and is withdrawn.

        Its rows are gone, so nobody can say that they are not those of the night; publishing it takes `--replace`.
        """
        return any(shown.is_withdrawn and shown.day == night for shown in self._releases_taken_back())

    def _releases_taken_back(self) -> list[Shown]:
        taken: list[Shown] = []
        for number in sorted(self.shown):
            shown = self.shown[number]
            taken = [earlier for earlier in taken if earlier.content != shown.content]
            if shown.rollback_of is not None:
                taken.append(self.shown[shown.rollback_of])
        return taken

    def previous(self) -> int | None:
        """Returns what a rollback goes back to: the last release before the current content that was not taken back."""
        content = self.shown[self.current].content
        first = min(number for number in self.readable if self.shown[number].content == content)
        taken = self.taken_back()
        earlier = [
            number
            for number in self.readable
            if number < first
            and self.shown[number].rollback_of is None
            and self.shown[number].content not in taken
        ]
        return earlier[-1] if earlier else None

    # --- comparing ---------------------------------------------------------------------------------------------------

    def check(self, warehouse: Warehouse, operations: list[tuple[Operation, int | None]]) -> None:
        """Compares with the warehouse after operations that ran within each other.

        Args:
            warehouse: as readers find it.
            operations: each with its exit code; None for one that was killed.

        Raises:
            UnsafeError: readers see something else than they may.
        """
        for operation, code in operations:
            if code not in (None, 0, 2, 3, 4, 5):
                raise UnsafeError(f"{operation} ended with {code}: no named error")
        found = {release.release_id: release for release in warehouse.releases()}
        for number in sorted(self.shown.keys() - found.keys()):
            raise UnsafeError(f"release {number} is no longer in the log")
        self._take_erasures(operations)
        for number in sorted(found.keys() - self.shown.keys()):
            self._take_release(warehouse, number, found[number], [operation for operation, _ in operations])
        self._take_withdrawals(found, operations)
        for number, shown in self.shown.items():
            self._compare(warehouse, number, shown)
        if not self.readable:
            raise UnsafeError("no release can be read any more")
        for operation, code in operations:
            if code == 0:
                self._check_done(operation)

    def _take_erasures(self, operations: list[tuple[Operation, int | None]]) -> None:
        for operation, code in operations:
            if operation.kind == "erase" and code in (None, 0):
                self.leaving = "" if code == 0 else operation.user
                self.fresh = None
                if code == 0:
                    self.erased.add(operation.user)
                    for night, written in self.written.items():
                        self.written[night] = Written(written.model, self.without(written.rows, self.erased))
                    for shown in self.shown.values():
                        shown.content = self.without(shown.content, self.erased)

    def _take_release(
        self, warehouse: Warehouse, number: int, found: Release, operations: list[Operation]
    ) -> None:
        """Takes over a release that is new, if one of the operations explains it."""
        makers: Mapping[str, Callable[[Warehouse, Operation, Release], Shown | None]] = {
            "publish": self._published, "rollback": self._rolled_back, "erase": self._carried,
        }  # fmt: skip
        for operation in operations:
            is_own = (
                operation.run_id == found.run_id or operation.kind == "erase"
            )  # one that is retried keeps its first id
            if operation.kind in makers and is_own:
                shown = makers[operation.kind](warehouse, operation, found)
                if shown is not None:
                    self.shown[number] = shown
                    return
        raise UnsafeError(
            f"release {number} of {found.day} by run {found.run_id} is explained by none of {operations}"
        )

    def _published(self, warehouse: Warehouse, operation: Operation, found: Release) -> Shown | None:
        if found.day != day_of(operation.night):
            return None
        audit, current = self.audited.get(operation.night, 0), self.shown[self.current]
        read = warehouse.read(found.release_id)
        content = next((known for known in self._begun[operation.run_id] if known == read), None)
        if content is None:
            raise UnsafeError(
                f"{operation} shows half a night: {read}, and not one of {self._begun[operation.run_id]}"
            )
        again = [
            shown
            for shown in self.shown.values()
            if shown.rollback_of is None and (shown.run_id, shown.audited) == (operation.run_id, audit)
        ]
        if again:
            raise UnsafeError(f"{operation} was repeated and published twice")
        if not operation.replace and operation.night < current.day:
            raise UnsafeError(f"{operation} set readers back from day {current.day}")
        if not operation.replace and content in self.taken_back():
            raise UnsafeError(f"{operation} published again what was rolled back")
        return Shown(operation.night, content, operation.run_id, None, audit)

    def _rolled_back(self, warehouse: Warehouse, operation: Operation, found: Release) -> Shown | None:
        if any(
            shown.run_id == operation.run_id and shown.rollback_of is not None
            for shown in self.shown.values()
        ):
            raise UnsafeError(f"{operation} was repeated and rolled back twice")
        target = operation.to if operation.to is not None else self.previous()
        if target is None or self.shown[target].is_withdrawn:
            raise UnsafeError(f"{operation} went back to what cannot be read")
        if found.rollback_of != self.current:
            raise UnsafeError(
                f"{operation} says that it takes back {found.rollback_of}, and not {self.current}"
            )
        shown = self.shown[target]
        return Shown(shown.day, shown.content, operation.run_id, self.current, shown.audited)

    def _carried(self, warehouse: Warehouse, operation: Operation, found: Release) -> Shown | None:
        """An erasure publishes again, under new numbers, the release before the current one and the current one."""
        read, gone = warehouse.read(found.release_id), {operation.user}
        for number in reversed(self.readable):
            shown = self.shown[number]
            if day_of(shown.day) == found.day and self.without(shown.content, gone) == self.without(
                read, gone
            ):
                return Shown(shown.day, shown.content, found.run_id, None, shown.audited)
        return None

    def _take_withdrawals(
        self, found: Mapping[int, Release], operations: list[tuple[Operation, int | None]]
    ) -> None:
        keeps = [
            operation.keep for operation, _ in operations if operation.kind == "vacuum" and operation.keep
        ]
        may_withdraw = {number for keep in keeps for number in self.readable[:-keep]}
        if any(operation.kind == "erase" for operation, _ in operations):
            may_withdraw |= {number for number in self.readable if number != max(self.shown)}
        for number, release in found.items():
            if release.withdrawn and not self.shown[number].is_withdrawn:
                if number not in may_withdraw:
                    raise UnsafeError(f"release {number} is withdrawn: {release.withdrawn}; {operations}")
                self.shown[number].is_withdrawn = True
            elif self.shown[number].is_withdrawn and not release.withdrawn:
                raise UnsafeError(f"release {number} is no longer withdrawn")

    def _compare(self, warehouse: Warehouse, number: int, shown: Shown) -> None:
        if shown.is_withdrawn:
            try:
                warehouse.read(number)
            except ReleaseWithdrawnError:
                return
            raise UnsafeError(f"release {number} is withdrawn and can be read")
        try:
            found = warehouse.read(number)
        except Exception as error:
            raise UnsafeError(f"release {number} cannot be read: {type(error).__name__}: {error}") from error
        expected = shown.content
        # While an erasure is half done its user may be there and may not be.
        leaving = {self.leaving} - {""}
        if self.without(found, leaving) != self.without(expected, leaving):
            wrong = {
                table: (found[table], expected[table]) for table in found if found[table] != expected[table]
            }
            raise UnsafeError(f"release {number} shows other rows (found, expected): {wrong}")

    def look(self, warehouse: Warehouse, users: set[str]) -> None:
        """Reads what is current while operations are under way; `users` are just being erased."""
        current = [release.release_id for release in warehouse.releases() if not release.withdrawn][-1]
        found = warehouse.read(current)
        gone = {self.leaving, *users}
        if current in self.shown and self.without(found, gone) != self.without(
            self.shown[current].content, gone
        ):
            raise UnsafeError(f"in the middle of an operation release {current} shows other rows")

    def _check_done(self, operation: Operation) -> None:
        """Checks that a command that ended well did what it is for."""
        current = self.shown[self.current]
        if operation.kind == "erase" and self.erased & {
            user for table, rows in current.content.items() for key in rows if (user := user_of(table, key))
        }:
            raise UnsafeError(f"{operation} ended well, and readers see the user")
