"""A warehouse of five users whose nights are made by hand, and the commands of its operators.

A night writes feature tables and the record of a passed audit, so that a command of the pipeline takes a second and not
a minute; publish, rollback, vacuum, erase and report are the pipeline's own, through its command line.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from conf.cli import Job, JobContext, JobSummary, main
from conf.errors import GateFailedError
from conf.releases import Release
from conf.releases import read_table as read_arrow
from conf.tables import FEATURE_TABLES, TABLES
from etl.delta.contracts import spark_schema
from etl.delta.erasure_plan import refuse_unfinished_erasure
from etl.delta.storage import merge_rows, replace_day, table_version
from etl.spark.session import local_frame, open_session
from models.__main__ import JOBS as MODEL_JOBS
from udfs.__main__ import JOBS as UDF_JOBS
from udfs.releases.audit_record import Audit, save_audit
from udfs.releases.reader import read_release
from udfs.releases.release_log import load_releases

USERS = tuple(f"user-{name}" for name in ("anna", "bela", "cleo", "dora", "emil"))
POIS = ("p1", "p2", "p3")
FIRST = date(2026, 3, 1)
DIM = 4
Row = dict[str, object]
Content = dict[str, dict[tuple[object, ...], float]]
"""What readers see of a release: by table and key, the mark that the night put into the row."""
KEYS = {
    "user_embeddings": ("user_id",), "poi_embeddings": ("poi_id",),
    "ranking_scores": ("request_id", "poi_id"), "poi_candidates": ("request_id", "rank"),
}  # fmt: skip
MARKS = {
    "user_embeddings": "embedding", "poi_embeddings": "embedding",
    "ranking_scores": "click_logit", "poi_candidates": "log_probability",
}  # fmt: skip
PERSONAL = ("user_embeddings", "ranking_scores", "poi_candidates")


def day_of(number: int) -> date:
    """Returns the day of a night."""
    return FIRST + timedelta(days=number)


def user_of(table: str, key: tuple[object, ...]) -> str | None:
    """Returns the user whom a row tells of; a request is named after its user."""
    if table == "user_embeddings":
        return str(key[0])
    return str(key[0]).partition("/")[0] if table in PERSONAL else None


@dataclass(frozen=True)
class Written:
    """What a night has written: its model, and by table the marks of its rows."""

    model: str
    rows: Content


def make_night(number: int, mark: float, model: str, users: Sequence[str], is_whole: bool) -> Written:
    """Returns the content of a night: all vectors if it `is_whole`, else those of some users.

    Marks of a night are all different, and so are those of two nights.
    """
    some = [user for place, user in enumerate(users) if is_whole or (place + number) % 2 == 0]
    day = day_of(number)
    requests = [f"{user}/{day}" for user in some]
    marks = iter(np.linspace(mark, mark + 0.5, 40).round(4).tolist())
    rows: Content = {
        "user_embeddings": {(user,): next(marks) for user in some},
        "poi_embeddings": {(poi,): next(marks) for poi in POIS if is_whole},
        "ranking_scores": {(request, poi): next(marks) for request in requests for poi in POIS[:2]},
        "poi_candidates": {(request, 1): -next(marks) for request in requests},
    }
    return Written(model, rows)


@dataclass
class Warehouse:
    """Tables and artefacts in one folder."""

    folder: Path

    @property
    def root(self) -> str:
        return str(self.folder / "warehouse")

    @property
    def layer(self) -> Path:
        return self.folder / "settings.yaml"

    def write_settings(self) -> None:
        """Writes the settings layer of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "storage": {"root": self.root, "artifacts": str(self.folder / "artifacts")},
            "mlflow": {
                "tracking_uri": f"sqlite:///{self.folder / 'mlflow.db'}", "artifact_root": str(self.folder / "mlruns"),
            },
            # Thousands of queries over a few rows: each is interpreted sooner than it is compiled.
            "spark": {
                "driver_memory": "1g", "shuffle_partitions": 1, "quick_start": False,
                "conf": {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"},
            },
        }  # fmt: skip
        self.layer.write_text(yaml.safe_dump(content))

    def copy(self, folder: Path) -> "Warehouse":
        """Copies tables and artefacts into another folder."""
        shutil.copytree(self.folder, folder)
        copied = Warehouse(folder)
        copied.write_settings()
        return copied

    def run(self, program: str, *words: str) -> tuple[int, dict[str, Any]]:
        """Runs a command; returns its exit code and its line for programs."""
        out = io.StringIO()
        jobs: Mapping[str, Mapping[str, Job]] = {"udfs": UDF_JOBS, "models": MODEL_JOBS}
        with contextlib.redirect_stdout(out):
            code = main(program, "", jobs[program], [words[0], "--conf", str(self.layer), *words[1:]])
        return code, json.loads(out.getvalue().splitlines()[-1])

    def night(self, number: int, night: Written, run_id: str) -> tuple[int, dict[str, Any]]:
        """Writes a night and the record of its audit, as a job among others."""

        def write(context: JobContext) -> JobSummary:
            refuse_unfinished_erasure(context.settings.storage.artifacts)
            write_night(context, number, night)
            return JobSummary()

        out = io.StringIO()
        words = ["features", "--conf", str(self.layer), "--day", str(day_of(number)), "--run-id", run_id]
        with contextlib.redirect_stdout(out):
            code = main("bench", "", {"features": Job("writes a night", write, access="shared")}, words)
        return code, json.loads(out.getvalue().splitlines()[-1])

    def releases(self) -> list[Release]:
        """Reads the log as readers do, without Spark."""
        return load_releases(None, self.root)

    def read(self, release: int) -> Content:
        """Reads what a release shows."""
        content: Content = {}
        for table in FEATURE_TABLES:
            rows = read_release(None, self.root, table, release=release).to_pylist()
            values = [mark_of(table, row) for row in rows]
            keys = [tuple(row[name] for name in KEYS[table]) for row in rows]
            assert len(set(keys)) == len(keys), f"{table} of release {release} has a key twice"
            content[table] = {key: round(value, 4) for key, value in zip(keys, values, strict=True)}
        return content


def write_night(context: JobContext, number: int, night: Written) -> None:
    """Writes the feature tables of a night and the record of a passed audit."""
    settings, day = context.settings, day_of(number)
    root = settings.storage.root
    spark = open_session(settings, "night")
    for table in FEATURE_TABLES:
        names = spark_schema(TABLES[table]).names
        rows = [to_row(table, key, mark, night.model, day) for key, mark in night.rows[table].items()]
        frame = local_frame(
            spark, [tuple(row.get(name) for name in names) for row in rows], spark_schema(TABLES[table])
        )
        replace_day(frame, table, root, day=day, run_id=context.run_id, job="features")
    refuse_other_rows(root, day, night)
    versions = {name: table_version(spark, root, name) for name in (*FEATURE_TABLES, "poi_index")}
    audit = Audit(
        day=str(day), run_id=context.run_id, is_passed=True, model_version=night.model, index_version=1,
        is_simulated=True, table_versions=versions,
        checks=[], failures=[], docs="",
    )  # fmt: skip
    save_audit(audit, settings.storage.artifacts)


def refuse_other_rows(root: str, day: date, night: Written) -> None:
    """Does what an audit does if another run has written rows of the day meanwhile.

    Raises:
        GateFailedError: the tables do not hold this night's rows.
    """
    for table in FEATURE_TABLES:
        rows = read_arrow(root, table).to_pylist()
        found = {tuple(row[name] for name in KEYS[table]) for row in rows if row["day"] == day}
        if found != night.rows[table].keys() or any(
            round(mark_of(table, row), 4) != night.rows[table][tuple(row[name] for name in KEYS[table])]
            for row in rows
            if row["day"] == day
        ):
            raise GateFailedError(
                table=table, day=str(day), failures=["the rows are of another run"], docs=Path(root)
            )


def mark_of(table: str, row: Row) -> float:
    """Returns the mark of a row."""
    mark: Any = row[MARKS[table]]
    return float(mark[0] if isinstance(mark, list) else mark)


def to_row(table: str, key: tuple[object, ...], mark: float, model: str, day: date) -> Row:
    """Returns a row of a feature table."""
    row: Row = dict(zip(KEYS[table], key, strict=True))
    row |= {"day": day, "model_version": model, "index_version": 1, "is_simulated": True, "run_id": ""}
    if table in ("user_embeddings", "poi_embeddings"):
        row |= {"embedding": [mark, *[0.0] * (DIM - 1)], "sequence_day": day, "changed_day": day}
    else:
        row |= {"user_id": user_of(table, key), "poi_id": row.get("poi_id", POIS[0]), MARKS[table]: mark}
        row |= {"score": 1 / (1 + np.exp(-mark))} if table == "ranking_scores" else {}
    return row


def make_template(folder: Path) -> tuple[Warehouse, dict[int, Written]]:
    """Makes a warehouse of two published nights."""
    warehouse = Warehouse(folder)
    warehouse.write_settings()

    def fill(context: JobContext) -> JobSummary:
        spark, day = open_session(context.settings, "template"), day_of(0)
        slots = [
            {
                "index_version": 1, "poi_id": poi, "block_id": 0, "inner_id": place, "poi_lon": 4.9, "poi_lat": 52.3,
                "category_id": 1, "valid_from": day, "indexed_day": day, "changed_day": day, "name": poi, "text": poi,
                "is_simulated": True,
            }
            for place, poi in enumerate(POIS)
        ]  # fmt: skip
        schema = spark_schema(TABLES["poi_index"])
        frame = local_frame(spark, [tuple(slot.get(name) for name in schema.names) for slot in slots], schema)
        merge_rows(
            frame, "poi_index", context.settings.storage.root, run_id="template", job="template", day=day
        )
        return JobSummary()

    words = ["template", "--conf", str(warehouse.layer), "--day", str(day_of(0))]
    with contextlib.redirect_stdout(io.StringIO()):
        if main("bench", "", {"template": Job("fills the index", fill)}, words) != 0:
            raise RuntimeError("the template could not be made")
    nights = {
        number: make_night(number, number + 1.0, "m/1", USERS, is_whole=number == 0) for number in (0, 1)
    }
    for number, night in nights.items():
        code, summary = warehouse.night(number, night, f"night-{number}")
        if code == 0:
            code, summary = warehouse.run(
                "udfs", "publish", "--day", str(day_of(number)), "--run-id", f"publish-{number}"
            )
        if code:
            raise RuntimeError(f"the template could not be made: {summary}")
    return warehouse, nights
