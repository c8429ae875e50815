"""Plays random sequences of publish, rollback, vacuum, erase, report, retry and kill by two operators.

    python -m tests.bench.sequences [--sequences 500] [--minutes N] [--work FOLDER] [--seed N]

Each sequence starts from a warehouse of two published nights. An operation is whole, or killed at a random step, or the
other operator does something in the middle of it; readers look in the middle, too. After each, `expected.py` says what
readers may see. Records `release-sequences-safe`: 1 if no sequence showed anything else and every operation that had to
succeed did. With `--minutes` it stops after that time and goes on from there with the same folder.
"""

import argparse
import importlib
import json
import logging
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

from conf.results import record
from tests.bench.sequences.expected import Expected, Operation, Shown, UnsafeError
from tests.bench.sequences.warehouse import USERS, Warehouse, Written, day_of, make_night, make_template

COMMAND, SEED = "make bench-sequences", 20261130
STEPS = {
    "night": ["tests.bench.sequences.warehouse.replace_day", "tests.bench.sequences.warehouse.save_audit"],
    "publish": [
        "udfs.releases.publish.load_releases",
        "udfs.releases.publish.refuse_skew",
        "udfs.releases.publish.refuse_step_back",
        "udfs.releases.publish.append_release", "udfs.releases.publish.append_log",
    ],
    "rollback": [
        "udfs.releases.publish.load_releases",
        "udfs.releases.publish.find_release",
        "udfs.releases.publish.refuse_damaged",
        "udfs.releases.publish.append_release", "udfs.releases.publish.append_log",
    ],
    "vacuum": ["udfs.upkeep.vacuum.load_releases", "udfs.upkeep.vacuum.withdraw", "udfs.upkeep.vacuum.vacuum_table"],
    "erase": [
        "udfs.upkeep.erase.save_plan",
        "udfs.upkeep.erase.keep_digests",
        "etl.delta.erasure.delete_users",
        "etl.delta.retention.show_version",
        "etl.delta.retention.restart_history",
        "etl.delta.retention.vacuum_table",
        "etl.delta.retention.forget_history",
        "udfs.upkeep.erase.append_release",
        "udfs.upkeep.erase.withdraw",
        "udfs.upkeep.erase.erase_files",
        "udfs.upkeep.erase.end_plan",
    ],
    "report": [
        "models.report.build.find_release",
        "models.report.build.build_report",
        "models.report.build.render_page",
    ],
}  # fmt: skip
MOST_STEPS = {"night": 5, "publish": 5, "rollback": 5, "vacuum": 9, "erase": 30, "report": 3}
"""Calls of these functions in one operation, about."""
WEIGHTS = {"night": 26, "publish": 20, "rollback": 18, "vacuum": 12, "report": 8, "erase": 4, "retry": 12}
Outcome = tuple[Operation, int | None]


class KilledError(BaseException):
    """Ends a job where it stands."""


@contextmanager
def at_step(kind: str, number: int, happens: Callable[[], None], *, is_before: bool) -> Iterator[None]:
    """Has something happen once, before or after the n-th call of a step of an operation."""
    calls = iter(range(number - 1))
    done = False

    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def step(*words: object, **named: object) -> object:
            nonlocal done
            is_due = not done and next(calls, None) is None
            done = done or is_due
            if is_due and is_before:
                happens()
            result = real(*words, **named)
            if is_due and not is_before:
                happens()
            return result

        return step

    with ExitStack() as stack:
        for path in STEPS[kind]:
            module, _, name = path.rpartition(".")
            stack.enter_context(mock.patch(path, wrap(getattr(importlib.import_module(module), name))))
        yield


class Sequence:
    """One sequence: draws operations, does them, and has the model check."""

    def __init__(
        self, template: Warehouse, nights: dict[int, Written], folder: Path, rng: random.Random
    ) -> None:
        self.warehouse, self.rng = template.copy(folder), rng
        self.expected = Expected(dict(nights), audited=dict.fromkeys(nights, 1), fresh=max(nights))
        for night in nights:
            content = self.expected.content_of(night)
            self.expected.shown[night + 1] = Shown(night, content, f"publish-{night}", None, 1)
        self.history: list[str] = []
        self.last: Operation | None = None
        self.runs, self.mark, self.is_taken = 0, 10.0, False
        self.drawn: dict[str, Written] = {}

    def play(self, length: int) -> None:
        """Does so many operations; raises UnsafeError."""
        for _ in range(length):
            operation = self.draw()
            mode = self.rng.choices(["whole", "killed", "other"], [50, 28, 22])[0]
            number, is_before = self.rng.randint(1, MOST_STEPS[operation.kind]), self.rng.random() < 0.5
            is_last_step = number == MOST_STEPS[operation.kind] and not is_before
            self.is_taken = False
            inner: list[Outcome] = []

            def happens(
                operation: Operation = operation,
                mode: str = mode,
                is_last_step: bool = is_last_step,
                inner: list[Outcome] = inner,
            ) -> None:
                self.expected.look(self.warehouse, {operation.user})
                if mode == "killed":
                    raise KilledError
                if mode == "other":
                    if operation.kind == "night" and is_last_step:
                        # All is written and audited: what the other operator does comes after this night.
                        self.expected.wrote(operation, self.drawn[operation.run_id], 0)
                        self.is_taken = True
                    other = self.draw()
                    inner.append((other, self.do(other)))
                    if other.kind == "night":
                        self.expected.wrote(other, self.drawn[other.run_id], inner[-1][1])

            must = mode == "whole" and self.must_succeed(operation)
            self.history.append(f"{mode} {number}{'<' if is_before else '>'} {operation}")
            with at_step(operation.kind, number, happens, is_before=is_before):
                code = self.do(operation)
            if operation.kind == "night" and not self.is_taken:
                self.expected.wrote(operation, self.drawn[operation.run_id], code)
            self.history.append(f"    ended with {code}{f'; meanwhile {inner}' if inner else ''}")
            self.expected.check(self.warehouse, [*inner, (operation, code)])
            if must:
                self.check_success(operation, code)
            self.last = operation

    def do(self, operation: Operation) -> int | None:
        """Does an operation; returns its exit code, None if it was killed."""
        self.expected.begin(operation)
        words: list[str] = ["--run-id", operation.run_id]
        day = ["--day", str(day_of(operation.night))]
        try:
            if operation.kind == "night":
                code, _ = self.warehouse.night(
                    operation.night, self.drawn[operation.run_id], operation.run_id
                )
            elif operation.kind == "publish":
                again = ["--replace"] if operation.replace else []
                code, _ = self.warehouse.run("udfs", "publish", *day, *words, *again)
            elif operation.kind == "rollback":
                to = ["--to", str(operation.to)] if operation.to else []
                code, _ = self.warehouse.run("udfs", "rollback", *words, *to)
            elif operation.kind == "vacuum":
                keep = ["--keep-releases", str(operation.keep)] if operation.keep else []
                code, _ = self.warehouse.run("udfs", "vacuum", "--hours", "0", *words, *keep)
            elif operation.kind == "erase":
                code, _ = self.warehouse.run("udfs", "erase", "--user", operation.user, *words)
            else:
                code = self.report(day, words)
        except KilledError:
            code = None  # type: ignore[assignment]
        return code

    def report(self, day: list[str], words: list[str]) -> int:
        """Writes a report; a page is whole at any time."""
        try:
            return self.warehouse.run("models", "report", *day, *words)[0]
        finally:
            for page in (self.warehouse.folder / "artifacts" / "reports").glob("*.html"):
                if not page.read_text().rstrip().endswith("</html>"):
                    raise UnsafeError(f"{page.name} is cut")

    def draw(self) -> Operation:
        """Draws what an operator does next."""
        expected, rng = self.expected, self.rng
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        self.runs += 1
        run_id = f"run-{self.runs}"
        if expected.leaving and rng.random() < 0.5:
            return Operation("erase", run_id, user=expected.leaving)
        if kind == "retry" and self.last is not None:
            return replace(self.last)
        if kind == "night":
            return self.draw_night(run_id)
        if kind == "publish":
            night = (
                expected.fresh
                if expected.fresh is not None and rng.random() < 0.8
                else rng.choice(list(expected.written))
            )
            return Operation("publish", run_id, night=night, replace=rng.random() < 0.15)
        if kind == "vacuum":
            return Operation("vacuum", run_id, keep=rng.choice([None, 1, 2, 3]))
        if kind == "report":
            return Operation("report", run_id, night=expected.shown[rng.choice(list(expected.shown))].day)
        if kind == "erase":
            return Operation("erase", run_id, user=rng.choice(USERS))
        return Operation("rollback", run_id, to=rng.choice([None, None, rng.choice(list(expected.shown))]))

    def draw_night(self, run_id: str) -> Operation:
        """Draws the next night, or the last one once more: with the same rows, or with others."""
        expected, rng = self.expected, self.rng
        last = max(expected.written)
        again = expected.torn is not None or rng.random() < 0.35
        night = expected.torn[0] if expected.torn else last if again else last + 1
        self.mark += 1.0
        if again and expected.torn is None and rng.random() < 0.4:
            self.drawn[run_id] = expected.written[night]
        else:
            before = expected.written[last].model
            model = f"m/{self.runs}" if rng.random() < 0.2 else before
            users = [user for user in USERS if user not in expected.erased | {expected.leaving}]
            is_whole = model != before or expected.torn is not None or night == 0
            self.drawn[run_id] = make_night(night, self.mark, model, users, is_whole=is_whole)
        return Operation("night", run_id, night=night)

    def must_succeed(self, operation: Operation) -> bool:
        """Must an operation that nobody disturbs end well? Otherwise a refusal is all right, too."""
        expected = self.expected
        if operation.kind == "erase":
            return expected.leaving in ("", operation.user)
        if operation.kind == "vacuum":
            return not expected.leaving
        if expected.leaving:
            return False
        if operation.kind == "publish":
            content = expected.content_of(operation.night)
            is_new_run = all(shown.run_id != operation.run_id for shown in expected.shown.values())
            is_step_back = (
                operation.night < expected.shown[expected.current].day
                or content in expected.taken_back()
                or expected.is_unknown_again(operation.night)
            )
            return (
                expected.fresh == operation.night and is_new_run and (operation.replace or not is_step_back)
            )
        if operation.kind == "rollback":
            target = operation.to or expected.previous()
            return target is not None and not expected.shown[target].is_withdrawn
        return operation.kind == "night" or (
            operation.kind == "report"
            and any(expected.shown[number].day == operation.night for number in expected.readable)
        )

    def check_success(self, operation: Operation, code: int | None) -> None:
        """Checks that an operation that had to succeed did what it is for."""
        expected = self.expected
        if code != 0:
            raise UnsafeError(f"{operation} ended with {code}, and nothing was in its way")
        current = expected.shown[expected.current]
        if operation.kind == "publish" and current.content != expected.content_of(operation.night):
            raise UnsafeError(f"{operation} ended well, and readers see something else")


def play(number: int, seed: int, template: Warehouse, nights: dict[int, Written], folder: Path) -> str:
    """Plays a sequence; returns what was unsafe, with all that was done, or an empty text."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = random.Random(f"{seed}-{number}")
    sequence = Sequence(template, nights, folder, rng)
    try:
        sequence.play(rng.randint(3, 7))
    except UnsafeError as error:
        return "\n".join([f"sequence {number} (seed {seed}): {error}", *sequence.history])
    return ""


def main() -> int:
    """Plays, records, and returns 0 if every sequence was safe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--only", type=int, help="play this one alone, and tell what was done")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--work", type=Path, default=Path(".demo/sequences"))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--results", default="results", metavar="FOLDER")
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    work = options.work.absolute()
    shutil.rmtree(work / "template", ignore_errors=True)
    template, nights = make_template(work / "template")
    if options.only is not None:
        print(play(options.only, options.seed, template, nights, work / "only") or "safe")
        return 0
    state_file, end = work / f"state-{options.seed}.json", time.monotonic() + 60 * options.minutes
    state = json.loads(state_file.read_text()) if state_file.is_file() else {"done": 0, "unsafe": []}
    while state["done"] < options.sequences and time.monotonic() < end:
        unsafe = play(state["done"], options.seed, template, nights, work / "sequence")
        if unsafe:
            print(unsafe, file=sys.stderr, flush=True)
            state["unsafe"].append(unsafe)
        state["done"] += 1
        state_file.write_text(json.dumps(state, indent=1))
        if state["done"] % 10 == 0:
            print(f"{state['done']} sequences, {len(state['unsafe'])} unsafe", file=sys.stderr, flush=True)
    if state["done"] < options.sequences:
        return 0
    notes = (
        f"{state['done']} sequences of 3 to 7 operations from seed {options.seed}: half whole, a quarter killed at a "
        f"random step, a fifth with another operator in the middle; unsafe: {len(state['unsafe'])}"
    )
    print(notes)
    figure = record(
        "release-sequences-safe", int(not state["unsafe"]), "", "== 1", COMMAND, notes, options.results
    )
    return 0 if figure.holds else 1


if __name__ == "__main__":
    sys.exit(main())
