"""The plan and the progress of an erasure, so that the next attempt can finish one that was killed.

`{storage.artifacts}/erasures/unfinished.json` is written before anything is deleted, and after every step; it names
users by their digests only. While it exists, nothing is published and no features are computed: a table may show an
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
        run_id: run id of the first attempt; releases and withdrawals carry it.
        attempts: number of runs of the command for this erasure.
        before: counts by table, as the first attempt found them.
        files: files outside the tables that named the users at that time.
        found: digests of the users that were found anywhere.
        tables: tables that named the users.
        carried: releases to carry over, as rows of `releases`, the current one last.
        latest: by table, the version that was the latest before anything was deleted.
        starts: by table, the version at which its history starts; a table is done once it is listed here.
        versions: by table, old version -> version that takes its place.
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
        run_id: run id of this attempt.

    Raises:
        ErasureUnfinishedError: an erasure of other users has begun and not ended.
    """
    path = plan_path(artifacts)
    if not path.is_file():
        return Plan(sorted(users), run_id)
    plan = Plan(**read_json(path, expected="the plan of an erasure"))
    if plan.users != sorted(users):
        raise ErasureUnfinishedError(run_id=plan.run_id, num_users=len(plan.users), plan=path)
    return plan


def save_plan(artifacts: str, plan: Plan) -> None:
    """Writes the progress of the erasure atomically."""
    write_json(plan_path(artifacts), asdict(plan))


def end_plan(artifacts: str) -> None:
    """Removes the plan of an erasure that is done."""
    plan_path(artifacts).unlink()


def refuse_unfinished_erasure(artifacts: str) -> None:
    """Raises ErasureUnfinishedError if an erasure has begun and not ended."""
    path = plan_path(artifacts)
    if path.is_file():
        plan = Plan(**read_json(path, expected="the plan of an erasure"))
        raise ErasureUnfinishedError(run_id=plan.run_id, num_users=len(plan.users), plan=path)


def plan_path(artifacts: str) -> Path:
    """Returns the path of the plan of an unfinished erasure."""
    return Path(artifacts) / "erasures" / UNFINISHED
