"""The record that an audit leaves for `publish`: which Delta versions it looked at, and whether they passed.

One JSON file per day, `{storage.artifacts}/audits/{day}.json`. It holds no clock time, so equal audits give
equal files.
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
        is_passed: may it be published.
        model_version: the model behind the day's rows; null if there is not exactly one.
        index_version: the index version behind them; null if there is not exactly one.
        is_simulated: are any of the rows.
        table_versions: Delta version of every table looked at.
        checks: what was counted across tables.
        failures: why it did not pass, in words; those of the gate included.
        docs: folder of the day's Data Docs.
        warnings: what the gates found that does not stop publication, in words.
        unjudged: what the gates could not judge, since too few days came before.
        skipped: feature tables that the day's model cannot make, and why.
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
    # Records written before these were kept have none.
    warnings: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def save_audit(audit: Audit, artifacts: str) -> Path:
    """Writes the record of a day in one step, over the one of an earlier audit."""
    path = audit_path(artifacts, audit.day)
    write_json(path, asdict(audit))
    LOGGER.info("audit of %s: %s, record %s", audit.day, "passed" if audit.is_passed else "failed", path)
    return path


def load_audit(artifacts: str, day: date) -> Audit | None:
    """Reads the record of a day; None if the day was never audited."""
    path = audit_path(artifacts, str(day))
    return Audit(**read_json(path, expected="the record of an audit")) if path.is_file() else None


def audit_path(artifacts: str, day: str) -> Path:
    """Returns where the record of a day lies."""
    return Path(artifacts) / "audits" / f"{day}.json"
