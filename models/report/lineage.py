"""Lineage of a release: versions, runs, audit. The last section of the report.

In: the tables of a release, the audit record under `{storage.artifacts}/audits`. Out: one section.
"""

import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from conf.releases import Release
from conf.tables import FEATURE_TABLES
from models.report.data import NothingToShowError, ReleaseTables, known_tables
from models.report.page import Section, TableView, Tile, Topic, format_count

LINEAGE = Topic(
    "lineage",
    "Lineage and audit",
    sees=(
        "The exact version of every table behind this release, the run that wrote it, and what the audit "
        "counted."
    ),
    alarm=(
        "A failed check, a feature table that is not pinned, or more than one run behind one table of a day."
    ),
)


def build_lineage(tables: ReleaseTables, *, artifacts: Path, page: Path) -> Section:
    """Builds the section.

    Args:
        tables: the release.
        artifacts: folder of audits and Data Docs.
        page: path of the report; links are relative to its folder.
    """
    audit = load_audit(artifacts, tables.day)
    checks = audit.get("checks", [])
    notes = [f"The audit failed: {failure}" for failure in audit.get("failures", [])]
    if not audit:
        notes.append(f"There is no audit record for {tables.day} under {artifacts.name}/audits.")
    versions = _version_table(tables)
    rows = tuple((check["table"], check["name"], format_count(check["found"])) for check in checks)
    header = ("table", "what must not be", "found")
    check_tables = (TableView("Checks across tables, 0 allowed", header, rows, (0, 1)),) if rows else ()
    return Section(
        LINEAGE,
        tiles=_tiles(tables.release, audit, num_tables=len(versions.rows)),
        tables=(versions, *check_tables),
        notes=tuple(notes),
        links=tuple(_find_docs(audit, artifacts, page)),
    )


def _tiles(release: Release, audit: dict[str, Any], *, num_tables: int) -> tuple[Tile, ...]:
    checks = audit.get("checks", [])
    is_good = bool(audit) and audit["is_passed"] and not any(check["found"] for check in checks)
    verdict, tone = ("passed", "good") if is_good else ("failed", "bad") if audit else ("unknown", "warn")
    return (
        Tile("run", release.run_id, "published the release"),
        Tile("data day", str(release.day), f"published {release.published:%Y-%m-%d %H:%M} UTC"),
        Tile("audit", verdict, f"{len(checks)} checks across tables", tone),
        Tile("pinned tables", str(len(release.table_versions)), f"of {num_tables} that exist"),
    )


def load_audit(artifacts: Path, day: date) -> dict[str, Any]:
    """Reads the audit record of a day; empty if there is none."""
    path = artifacts / "audits" / f"{day}.json"
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise NothingToShowError(f"The audit record {path.name} is not JSON: {error}") from error


def _version_table(tables: ReleaseTables) -> TableView:
    rows: list[tuple[str, ...]] = []
    strong: list[int] = []
    for name in known_tables():
        if not tables.exists(name):
            continue
        commit = tables.commit(name)
        runs = commit.run_id
        if name in FEATURE_TABLES:
            strong.append(len(rows))
            run_ids = pc.unique(tables.scan(name, ["run_id"], tables.today)["run_id"]).to_pylist()
            runs = ", ".join(sorted(run_ids)) or commit.run_id
        version = str(commit.version) if commit.is_pinned else f"{commit.version} (latest)"
        rows.append((name, version, commit.job, commit.day, runs or "-"))
    header = ("table", "Delta version", "written by", "for day", "run")
    return TableView(
        (
            "Tables as read for this report; only the versions that are not marked latest are pinned by the"
            " release"
        ),
        header,
        tuple(rows),
        (0, 2, 3, 4),
        tuple(strong),
    )


def _find_docs(audit: dict[str, Any], artifacts: Path, page: Path) -> list[tuple[str, str]]:
    """Returns links to the Data Docs relative to the page, so that the artifacts can be moved as a whole."""
    folder = Path(str(audit.get("docs", artifacts / "data_docs")))
    folder = folder if folder.is_dir() else artifacts / "data_docs"
    pages = [folder / "index.html", *sorted(folder.glob("*/index.html"))]
    return [
        ("Data Docs of the audit", os.path.relpath(path, page.parent)) for path in pages if path.is_file()
    ][:1]
