"""The demo: from raw data to two published releases, as the commands that one would type, in one process.

    python -m udfs.demo [--data PATH] [--source NAME] [--day D] [--next-day D] [--work FOLDER] [--recipe FILE]

`make demo` sets up the environment and calls this; each option can also be given as a variable (DATA, SOURCE, DAY,
NEXT_DAY, WORK, RECIPE). Night one delivers all history up to DAY, trains, makes features and publishes release 1. Night
two delivers the next day only, makes features for what changed with the same model, and publishes release 2. Every
command is printed before it runs, so the output is a tutorial. Typed one by one they give the same tables; run here
they share one Java and one set of imports. Running the demo again gives the same tables, too.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql import SparkSession

from conf.cli import calendar_day
from conf.cli import main as run_program
from conf.errors import SettingsError, SpacetimeError
from conf.files import read_json
from etl.__main__ import JOBS as ETL_JOBS
from etl.__main__ import SOURCES
from models.__main__ import JOBS as MODEL_JOBS
from models.config import load_recipe
from models.lift.show import LIFT_FILE, describe_lift
from udfs.__main__ import JOBS as UDF_JOBS

PROGRAMS = {"etl": ETL_JOBS, "models": MODEL_JOBS, "udfs": UDF_JOBS}
SYNTHETIC, SYNTHETIC_DAYS = "synthetic", ("2026-02-28", "2026-03-01")
CITY_FILE = Path(__file__).parents[1] / "conf" / "demo.yaml"
COMPILED = {"spark.sql.codegen.factoryMode": "FALLBACK"}
INTERPRETED = {"spark.sql.codegen.factoryMode": "NO_CODEGEN"}
"""One night's rows are few again."""
MAX_TARGETS = "600"
"""Targets of the next POI that the demo's evaluation ranks."""
FEW_ROWS = 20_000
"""Data with fewer rows need no parallel tasks; with more, expressions are worth compiling."""
Summary = Mapping[str, Any]


class CommandFailedError(Exception):
    """A command of the demo ended with another exit code than 0; it has told why."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(str(code))


def run_command(program: str, *words: str) -> Summary:
    """Runs one command in this process as `python -m PROGRAM` does, and returns its summary.

    Raises:
        CommandFailedError: it ended with another exit code than 0.
    """
    print(f"$ python -m {shlex.join([program, *words])}", file=sys.stderr, flush=True)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run_program(program, "", PROGRAMS[program], words)
    print(out.getvalue(), end="", flush=True)
    if code:
        raise CommandFailedError(code)
    summary: Summary = json.loads(out.getvalue().splitlines()[-1])
    return summary


def say(text: str) -> None:
    """Prints a heading."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"\n{bold}== {text}{plain}", file=sys.stderr, flush=True)


class Settings:
    """The settings layer of a demo, a YAML file that later commands read."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, dict[str, Any]()

    def add(self, layer: Mapping[str, Any]) -> None:
        """Merges a layer over the earlier ones and writes the file."""
        before = self.content.get("spark")
        self.content = merge(self.content, layer)
        text = yaml.safe_dump(self.content, allow_unicode=True, sort_keys=False)
        self.path.write_text(text, encoding="utf-8")
        session = SparkSession.getActiveSession()
        if session is not None and self.content.get("spark") != before:
            session.stop()  # the next command starts one with the new settings


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested mappings; values of `other` win."""
    shared = {
        key: merge(one[key], other[key])
        for key in one.keys() & other.keys()
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping)
    }
    return {**one, **other, **shared}


def work_folder(data: str) -> Path:
    """Returns the folder for a path's demo: its name in plain letters, with a digest where names would look alike."""
    name = os.path.basename(os.path.abspath(data))
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:6]
    return Path(".demo") / (plain if plain == name else f"{plain}-{digest}")


def open_work(options: argparse.Namespace) -> Settings:
    """Checks the options, takes the work folder and writes the first settings.

    Raises:
        SettingsError: the data do not exist, or the folder belongs to other data.
    """
    data = ""
    if options.source != SYNTHETIC:
        if not options.data or not Path(options.data).exists():
            problem = (
                "does not exist" if options.data else f"is empty, and the source {options.source} reads files"
            )
            raise SettingsError(where="the command line", key="DATA", problem=f"{options.data!r} {problem}")
        data = os.path.abspath(options.data)
    work = options.work or (Path(".demo/synthetic") if options.source == SYNTHETIC else work_folder(data))
    if ":" in str(work):
        problem = f"{str(work)!r} holds a colon, which separates the files that SPACETIME_CONF names"
        raise SettingsError(where="the command line", key="WORK", problem=problem)
    work.mkdir(parents=True, exist_ok=True)
    owner = work / "data.txt"
    if owner.exists() and owner.read_text(encoding="utf-8").rstrip("\n") != data:
        problem = (
            f"{work} holds the tables of other data: {owner.read_text(encoding='utf-8').strip()}. Name another folder "
            "with WORK=FOLDER, or remove it"
        )
        raise SettingsError(where="the command line", key="WORK", problem=problem)
    owner.write_text(f"{data}\n", encoding="utf-8")
    settings = Settings(work / "settings.yaml")
    settings.add(
        {
            "storage": {"root": f"{work}/warehouse", "artifacts": f"{work}/artifacts"},
            # Workers of all commands come from a process that has imported torch, since they share one session.
            "spark": {"quick_start": True, "conf": {"spark.python.daemon.module": "udfs.worker_daemon"}},
            "source": {"path": data},
            "mlflow": {"tracking_uri": f"sqlite:///{work}/mlflow.db", "artifact_root": f"{work}/mlruns"},
        }
    )
    os.environ["SPACETIME_CONF"] = str(settings.path)
    return settings


def outline(options: argparse.Namespace, settings: Settings) -> tuple[str, str, str]:
    """Derives source, day and next day from the data, and settings that fit them; the next day may be empty."""
    say("What the data are, and which days and splits fit them")
    layer = settings.path.with_name("outline.yaml")
    given = {"--source": options.source, "--day": options.day, "--next-day": options.next_day}
    words = [word for flag, value in given.items() if value for word in (flag, str(value))]
    notes = run_command("etl", "outline", "--out", str(layer), *words)["notes"]
    few = {"shuffle_partitions": 1}
    many = {"conf": COMPILED}
    derived = yaml.safe_load(layer.read_text(encoding="utf-8")) or {}
    settings.add(merge(derived, {"spark": few if notes["rows"] < FEW_ROWS else many}))
    return notes["source"], notes["day"], notes.get("next_day") or ""


def make_samples(settings: Settings, day: str, *, may_relax: bool) -> None:
    """Makes the samples; relaxes the rules of a large city one by one where no user has enough to learn from."""
    found = run_command("etl", "samples", "--day", day)
    for key, value in (("min_richness", 0), ("interest_only", False)):
        if not may_relax or found["notes"]["pretrain_samples"].get("targets", {}).get("train") is not None:
            return
        say(
            f"No user has enough to learn from by the rules of a large city; once more with samples.{key}: {value}"
        )
        settings.add({"samples": {key: value}})
        found = run_command("etl", "samples", "--day", day)


def run_demo(options: argparse.Namespace) -> None:
    """Runs the two nights.

    Raises:
        SettingsError: the options are wrong.
        CommandFailedError: a command failed.
    """
    options.source = options.source or ("" if options.data else SYNTHETIC)
    is_synthetic = options.source == SYNTHETIC
    settings = open_work(options)
    if is_synthetic:
        source = SYNTHETIC
        settings.add(yaml.safe_load(CITY_FILE.read_text(encoding="utf-8")))
        settings.add({"spark": {"conf": COMPILED}})
        day, next_day = (str(given or usual) for given, usual in zip(
            (options.day, options.next_day), SYNTHETIC_DAYS, strict=True))  # fmt: skip
    else:
        source, day, next_day = outline(options, settings)
    say(f"Night one, {day}: raw actions to sequences, all history so far")
    run_command("etl", "night", "--source", source, "--day", day)
    say(
        "Training: samples, POI texts, pre-training, embedding and ranking SFT, DPO, evaluation, lift, registration"
    )
    make_samples(settings, day, may_relax=not is_synthetic)
    recipe = load_recipe(options.recipe)
    if recipe.fuse_poi_vectors:
        run_command("udfs", "poi_vectors", "--day", day)
    if recipe.fuse_poi_images:
        run_command("udfs", "poi_image_vectors", "--day", day)
    if recipe.decoder.crowd.enabled:
        run_command("etl", "training_others", "--day", day)
    more = () if is_synthetic else ("--allow-unvalidated",)
    trained = run_command(
        "models", "train", "--day", day, "--recipe", str(options.recipe), "--max-targets", MAX_TARGETS, *more
    )
    if not trained["notes"].get("is_champion") and not is_synthetic:
        say(
            "The gate promoted no champion: the releases below are made with the challenger, to be looked at only"
        )
        settings.add({"features": {"model": "models:/spacetime-gr@challenger"}})
    say("Features of every user, POI and request; audit; release 1; its report")
    settings.add({"spark": {"conf": INTERPRETED}})
    # A demo that is run once more in its folder begins again with the first day.
    run_command("udfs", "release", "--day", day, "--replace")
    reports = [run_command("models", "report", "--day", day)["notes"]["report"]]
    if not next_day:
        say(f"Night two is left out: there is no day with data after {day}")
    else:
        say(f"Night two, {next_day}: only what is new, release 2")
        # The last two days with data may lie months apart.
        run_command("etl", "night", "--source", source, "--day", next_day, "--any-day")
        run_command("udfs", "release", "--day", next_day)
        reports.append(run_command("models", "report", "--day", next_day)["notes"]["report"])
    say("Releases")
    run_command("udfs", "releases")
    last = date.fromisoformat(next_day or day)
    write_airflow_env(settings, source, last + timedelta(days=1))
    print_result(settings, day, reports)


def write_airflow_env(settings: Settings, source: str, day: date) -> None:
    """Writes the variables with which Airflow makes the next release of this warehouse (`make airflow`)."""
    variables = {
        "SPACETIME_CONF": os.path.abspath(settings.path),
        "SPACETIME_SOURCE": source,
        "SPACETIME_DAY": str(day),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    settings.path.with_name("airflow.env").write_text("\n".join([*lines, ""]), encoding="utf-8")


def print_result(settings: Settings, day: str, reports: Sequence[str]) -> None:
    """Prints what was made, what it is worth, and where to look."""
    work = settings.path.parent
    figures = read_json(work / "artifacts" / "training" / day / LIFT_FILE, expected="the lift of a training")
    worth = describe_lift(figures) if figures.get("sets") else f"not measured: {figures.get('missing')}"
    say("Done")
    lines = (
        f"made      {len(reports)} releases in {work}/warehouse, by one model",
        f"worth     {worth}",
        f"reports   {', '.join(reports)}",
        "schedule  make airflow"
        + ("" if str(work) == ".demo/synthetic" else f" WORK={shlex.quote(str(work))}")
        + ": one click on nightly_features makes the next release",
        f"go on     export SPACETIME_CONF={settings.path}; python -m udfs --help",
    )
    print("\n".join(lines), file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser; variables of the environment are the defaults."""
    parser = argparse.ArgumentParser(prog="python -m udfs.demo", description=str(__doc__).splitlines()[0])

    def add(flag: str, help_text: str, kind: type | Any = str, metavar: str = "", usual: str = "") -> None:
        value = os.environ.get(flag.strip("-").replace("-", "_").upper()) or usual
        parser.add_argument(
            flag, type=kind, default=kind(value) if value else None, metavar=metavar, help=help_text
        )

    add(
        "--data",
        "file or folder of data, in any shape that a reader knows; without it a synthetic city",
        str,
        "PATH",
    )
    add("--source", f"reader: {', '.join(SOURCES)}; without it the shape of the data decides", str, "NAME")
    add("--day", "day of the first release; without it derived from the data", calendar_day, "D")
    add("--next-day", "day of the second release; without it derived from the data", calendar_day, "D")
    add("--work", "folder of tables, models and reports; without it .demo/NAME-OF-DATA", Path, "FOLDER")
    add("--recipe", "shape of the model and how it is trained", Path, "FILE", "conf/models/city.yaml")
    return parser


def main() -> int:
    """Runs the demo and returns its exit code."""
    try:
        run_demo(build_parser().parse_args())
    except CommandFailedError as error:
        return error.code
    except SpacetimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
