"""Lock between jobs that must not run at the same time: jobs that delete old versions, and jobs that write.

Every such job locks `{storage.artifacts}/jobs.lock` while it runs. Jobs that write share the lock; jobs that delete
(vacuum, erase) hold it exclusively. Without the lock a rollback could publish versions that a vacuum is about to
delete, and a run that has read a user's rows could write them again after an erasure has searched everywhere. The
operating system frees the lock of a killed job. On a file system without locks, the job logs that and runs.
"""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from conf.errors import TablesInUseError

LOGGER = logging.getLogger(__name__)
LOCK = "jobs.lock"
Access = Literal["none", "shared", "alone"]
"""How a job uses the tables: not at all or at pinned versions; together with other jobs; exclusively."""


@contextlib.contextmanager
def hold_tables(artifacts: str, access: Access, *, job: str, run_id: str) -> Iterator[None]:
    """Holds the lock while a job runs.

    Args:
        artifacts: folder of artefacts.
        access: what the job needs.
        job: name of the job, for the message to other jobs.
        run_id: id of the run, for the same message.

    Raises:
        TablesInUseError: another job is in the way.
    """
    if access == "none":
        yield
        return
    path = Path(artifacts) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _lock(file.fileno(), path, access, job)
        if access == "alone":
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            _tell(
                file.fileno(),
                f"{job} (run {run_id}, process {os.getpid()} on {socket.gethostname()}, since {since})",
            )
        try:
            yield
        finally:
            if access == "alone":
                _tell(file.fileno(), "")


def _lock(number: int, path: Path, access: Access, job: str) -> None:
    kind = fcntl.LOCK_EX if access == "alone" else fcntl.LOCK_SH
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = path.read_text().strip() if access == "shared" else ""
        raise TablesInUseError(
            job=job, holder=holder or "at least one job that writes them", lock=path
        ) from error
    except OSError as error:
        LOGGER.warning(
            "%s cannot be locked (%s); make sure that no vacuum or erasure overlaps with other jobs",
            path,
            error,
        )


def _tell(number: int, text: str) -> None:
    os.ftruncate(number, 0)
    os.write(number, text.encode())
