"""The record that an audit leaves for `publish`: which Delta versions it audited, and whether they passed.

The record is one JSON file per day, `{storage.artifacts}/audits/{day}.json`. It holds no clock time, so equal
audits give equal files.
"""

import logging
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

from conf.files import read_json, write_json

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """The record of an audit.

    Attributes:
        day: the day audited.
        run_id: the run that audited.
        is_passed: whether the day may be published.
        model_version: the model of the day's rows; null if there is not exactly one.
        index_version: the index version of the day's rows; null if there is not exactly one.
        is_simulated: whether any of the rows are simulated.
        table_versions: Delta version of every audited table.
        checks: counts of the checks across tables.
        failures: reasons for not passing, as text; those of the gates included.
        docs: folder of the day's Data Docs.
        warnings: findings of the gates that do not stop publication, as text.
        unjudged: gates and samples that could not be judged, for example with too few earlier days.
        skipped: feature tables that the day's model cannot compute, and why.
    """

    day: str
    run_id: str
    is_passed: bool
    model_version: str | None
    index_version: int | None
    is_simulated: bool
    table_versions: dict[str, int]
    checks: list[dict[str, object]]
    failures: list[str]
    docs: str
    # Older records lack these fields.
    warnings: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def save_audit(audit: Audit, artifacts: str) -> Path:
    """Writes the record of a day atomically; it replaces that of an earlier audit."""
    path = audit_path(artifacts, audit.day)
    write_json(path, asdict(audit))
    LOGGER.info("audit of %s: %s, record %s", audit.day, "passed" if audit.is_passed else "failed", path)
    return path


def load_audit(artifacts: str, day: date) -> Audit | None:
    """Reads the record of a day; None if the day was never audited."""
    path = audit_path(artifacts, str(day))
    return Audit(**read_json(path, expected="the record of an audit")) if path.is_file() else None


def audit_path(artifacts: str, day: str) -> Path:
    """Returns the path of a day's record."""
    return Path(artifacts) / "audits" / f"{day}.json"
