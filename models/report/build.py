"""The report of a release: one self-contained HTML page on its data, model and features.

In: tables at the versions of the release, the training's metrics and evaluation, the audit record. Out:
`{storage.artifacts}/reports/release-{id}.html`, which loads no other file. A missing or unreadable input leaves a
note in its section. Only a missing or withdrawn release is an error; an existing page then stays. Equal inputs give
equal bytes. Run it with `python -m models report --day D` (the last
release of the day) or with `--release ID`.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake.exceptions import DeltaError

from conf.cli import JobContext, JobSummary
from conf.files import write_whole
from conf.releases import Release, find_before, find_release, find_release_of_day, load_releases
from conf.settings import Settings
from models.report.accuracy import ACCURACY, build_accuracy
from models.report.data import NothingToShowError, ReleaseTables
from models.report.drift import DRIFT, build_drift
from models.report.features import CALIBRATION, EMBEDDINGS, build_calibration, build_projection
from models.report.funnel import FUNNEL, build_funnel
from models.report.lift import LIFT, build_lift
from models.report.lineage import LINEAGE, build_lineage
from models.report.page import Headline, Section, Topic, render_page
from models.report.sequences import MAP, SEQUENCES, build_map, build_sequences
from models.report.training import TRAINING, build_curves

LOGGER = logging.getLogger(__name__)
UNREADABLE = (OSError, DeltaError, pa.ArrowException)
"""Errors of a table with a missing or truncated file or log entry."""


@dataclass
class BuiltReport:
    """The finished page, and the main facts about its build."""

    html: str
    empty_sections: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run_report(context: JobContext) -> JobSummary:
    """Writes the report of the day's last release, or of the requested one.

    Raises:
        NoReleaseError: there is no such release.
        ReleaseWithdrawnError: it can no longer be read; its page, if there is one, stays as it is.
    """
    settings = context.settings
    wanted = getattr(context.options, "release", None)
    root, releases = settings.storage.root, load_releases(settings.storage.root)
    if wanted is None:
        release = find_release_of_day(releases, root, context.day)
    else:
        release = find_release(releases, root, wanted)
    before = find_before(releases, release)
    path = Path(settings.storage.artifacts) / "reports" / f"release-{release.release_id}.html"
    report = build_report(settings, release, before, path)
    if not context.dry_run:
        write_whole(path, report.html)
        LOGGER.info("report of release %d: %s, %.1f MB", release.release_id, path, len(report.html) / 1e6)
    notes = {
        "report": str(path),
        "release_id": release.release_id,
        "bytes": len(report.html.encode()),
        "empty_sections": report.empty_sections,
    }
    return JobSummary(notes=notes, steps=report.seconds)


def build_report(settings: Settings, release: Release, before: Release | None, path: Path) -> BuiltReport:
    """Builds the page of a release.

    Args:
        settings: settings with the locations of tables and artifacts.
        release: the reported release.
        before: the release that it is compared with.
        path: path of the page; links are relative to its folder.
    """
    tables = ReleaseTables(settings.storage.root, release)
    report = BuiltReport("")
    sections = []
    for topic, build in plan_sections(tables, before, settings, path):
        started = time.perf_counter()
        try:
            sections.append(build())
        except NothingToShowError as missing:
            sections.append(Section(topic, notes=(str(missing),)))
            report.empty_sections.append(topic.key)
        except UNREADABLE as error:
            LOGGER.warning("section %s is empty: %s", topic.key, error)
            sections.append(Section(topic, notes=(f"What it shows can no longer be read: {error}",)))
            report.empty_sections.append(topic.key)
        report.seconds[topic.key] = time.perf_counter() - started
    report.html = render_page(build_headline(tables), sections)
    return report


def plan_sections(
    tables: ReleaseTables, before: Release | None, settings: Settings, path: Path
) -> list[tuple[Topic, Callable[[], Section]]]:
    """Returns topics and their build functions, in the order of the page."""
    release, artifacts = tables.release, Path(settings.storage.artifacts)
    return [
        (LIFT, lambda: build_lift(settings, release)),
        (FUNNEL, lambda: build_funnel(tables)),
        (MAP, lambda: build_map(tables, settings)),
        (SEQUENCES, lambda: build_sequences(tables, settings)),
        (TRAINING, lambda: build_curves(settings, release)),
        (ACCURACY, lambda: build_accuracy(settings, release)),
        (CALIBRATION, lambda: build_calibration(tables)),
        (EMBEDDINGS, lambda: build_projection(tables)),
        (DRIFT, lambda: build_drift(tables, before)),
        (LINEAGE, lambda: build_lineage(tables, artifacts=artifacts, page=path)),
    ]


def build_headline(tables: ReleaseTables) -> Headline:
    """Builds the top band."""
    release = tables.release
    facts = (
        ("day", str(release.day)),
        ("model", release.model_version),
        ("index version", str(release.index_version)),
        ("published", f"{release.published:%Y-%m-%d %H:%M} UTC"),
        ("run", release.run_id),
    )
    back = "" if release.rollback_of is None else f"This release takes back release {release.rollback_of}."
    return Headline(f"Release {release.release_id}", facts, _find_simulation(tables), back)


def _find_simulation(tables: ReleaseTables) -> str:
    """Returns a text on the simulated parts of the release; empty if there are none."""
    simulated = tables.until & ds.field("is_simulated")
    try:
        actions, impressions = (tables.count(name, simulated) for name in ("raw_actions", "raw_impressions"))
    except (NothingToShowError, *UNREADABLE):
        return "What of this release is simulated is not known: the raw tables can no longer be read."
    if actions:
        return "Actions and impressions of this release are simulated, and so is whatever was made from them."
    if impressions:
        return (
            "Actions are real. Impressions are simulated, and so are all figures about clicks; vectors, scores and "
            "the aligned generator have learned from them."
        )
    if tables.release.is_simulated:
        return "The model of this release has learned from simulated data."
    return ""
