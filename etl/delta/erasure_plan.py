"""What an erasure has set out to do and how far it got, so that one that was killed is ended by the next.

`{storage.artifacts}/erasures/unfinished.json` is written before anything is deleted, and after every step; it names
users by their digests only. While it is there, nothing is published and no features are made: a table may show an
older version for a moment.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import ErasureUnfinishedError
from conf.files import read_json, write_json

UNFINISHED = "unfinished.json"


@dataclass
class Plan:
    """One erasure.

    Attributes:
        users: digests of the users, sorted.
        run_id: of the first attempt; releases and withdrawals carry it.
        attempts: how often the command was run for it.
        before: counts by table, as the first attempt found them.
        files: files outside the tables that named the users then.
        found: digests of the users that were found anywhere.
        tables: tables that named them.
        carried: the releases to be carried over, as rows of `releases`, the current one last.
        latest: by table, the version that was the latest before anything was deleted.
        starts: by table, the version at which its history starts; a table is done once it is here.
        versions: by table, the version that now shows what an old one showed, by old version.
        releases: the carried releases as they are published, as rows of `releases`.
        withdrawn: numbers of the releases that are withdrawn.
    """

    users: list[str]
    run_id: str
    attempts: int = 0
    before: dict[str, dict[str, int]] = field(default_factory=dict)
    files: int = 0
    found: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    carried: list[dict[str, Any]] = field(default_factory=list)
    latest: dict[str, int] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    versions: dict[str, dict[str, int]] = field(default_factory=dict)
    releases: list[dict[str, Any]] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)


def load_plan(artifacts: str, users: Sequence[str], *, run_id: str) -> Plan:
    """Returns the unfinished erasure of these users, else a new one.

    Args:
        artifacts: folder of artefacts.
        users: digests.
        run_id: of this attempt.

    Raises:
        ErasureUnfinishedError: an erasure of others was begun and has not ended.
    """
    path = plan_path(artifacts)
    if not path.is_file():
        return Plan(sorted(users), run_id)
    plan = Plan(**read_json(path, expected="the plan of an erasure"))
    if plan.users != sorted(users):
        raise ErasureUnfinishedError(run_id=plan.run_id, num_users=len(plan.users), plan=path)
    return plan


def save_plan(artifacts: str, plan: Plan) -> None:
    """Writes how far the erasure got, in one step."""
    write_json(plan_path(artifacts), asdict(plan))


def end_plan(artifacts: str) -> None:
    """Removes the plan of an erasure that is done."""
    plan_path(artifacts).unlink()


def refuse_unfinished_erasure(artifacts: str) -> None:
    """Raises ErasureUnfinishedError if an erasure was begun and has not ended."""
    path = plan_path(artifacts)
    if path.is_file():
        plan = Plan(**read_json(path, expected="the plan of an erasure"))
        raise ErasureUnfinishedError(run_id=plan.run_id, num_users=len(plan.users), plan=path)


def plan_path(artifacts: str) -> Path:
    """Returns where the plan of an unfinished erasure lies."""
    return Path(artifacts) / "erasures" / UNFINISHED
