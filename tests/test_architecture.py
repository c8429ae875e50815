"""Rules about the code itself: who may import whom, what commands exist, what must not be used."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conf.cli import Job, build_parser

ROOT = Path(__file__).parents[1]
PACKAGES = ("conf", "etl", "models", "udfs")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
DAG_FILES = sorted((ROOT / "airflow_dags").glob("*.py"))
every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
every_dag_file = pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.name)

PICKLE_MODULES = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
PICKLE_CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"}
PLAIN_CONTRACTS = ("tables", "gates", "tokens", "errors", "rules", "results")
"""Files of conf/ that everything imports, so they use the standard library only."""

MAX_FILE_LINES = 500
LISTS = ("tables.py", "errors.py", "rules.py", "settings.py")
"""Long because they list: one entry per table, error, rule, setting."""
MAX_FUNCTION_LINES = 60
"""40 of code, and room for the signature and a docstring that explains."""


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


def calls(path: Path) -> Iterator[str]:
    """Every call with a plain dotted name, as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func)


def job_table(program: str) -> Mapping[str, Job]:
    """The job table of one of our programs."""
    return importlib.import_module(f"{program}.__main__").JOBS


def dag_commands(path: Path) -> Iterator[list[str]]:
    """The words (program, job, options) of every `run_job(...)` of a DAG file; a name stands for itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_job":
            yield [
                str(word.value) if isinstance(word, ast.Constant) else ast.unparse(word) for word in node.args
            ]


def test_import_contracts_of_pyproject_hold() -> None:
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert linted.returncode == 0, linted.stdout[-4000:]


@pytest.mark.parametrize("name", PLAIN_CONTRACTS)
def test_contracts_use_the_standard_library_only(name: str) -> None:
    foreign = {module.split(".")[0] for module in imported_modules(ROOT / "conf" / f"{name}.py")}

    assert foreign <= {*sys.stdlib_module_names, "conf"}


@every_dag_file
def test_dag_files_import_airflow_and_the_standard_library_only(path: Path) -> None:
    foreign = {module.split(".")[0] for module in imported_modules(path)}

    assert foreign <= {*sys.stdlib_module_names, "airflow", "commands"}


@every_source
def test_nothing_is_pickled(path: Path) -> None:
    assert not PICKLE_MODULES & {module.split(".")[0] for module in imported_modules(path)}
    assert not PICKLE_CALLS & set(calls(path))


@every_source
def test_only_settings_read_the_environment(path: Path) -> None:
    if path.name == "settings.py":
        return
    # Spark, its workers, Java and torchrun are steered by variables of theirs; those may be set and asked for.
    reads = re.findall(
        r'os\.(?:environ\.get|getenv)\(\s*"([A-Z_]+)"|os\.environ\["([A-Z_]+)"\](?! *=)', path.read_text()
    )
    names = {name for pair in reads for name in pair if name}

    assert names <= {"JAVA_HOME", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"}


@every_source
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text()
    num_lines = len(text.splitlines())
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    }

    assert num_lines <= MAX_FILE_LINES or path.name in LISTS
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("program", ["etl", "models", "udfs"])
def test_every_job_says_what_it_does_and_its_help_can_be_printed(program: str) -> None:
    jobs = job_table(program)
    parser = build_parser(program, "", jobs)

    assert all(len(job.help) > 10 for job in jobs.values())
    assert all(name in parser.format_help() for name in jobs)


@pytest.mark.parametrize("program", ["etl", "models", "udfs"])
def test_help_needs_neither_spark_nor_torch(program: str) -> None:
    code = (
        f"import sys; sys.argv = ['{program}', '--help']\n"
        f"import {program}.__main__ as program\n"
        "assert not {'pyspark', 'torch', 'mlflow'} & set(sys.modules), 'heavy import'"
    )

    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )

    assert asked.returncode == 0, asked.stderr[-2000:]


@every_dag_file
def test_every_command_of_a_dag_is_a_job_with_these_options(path: Path) -> None:
    for program, job, *options in dag_commands(path):
        # The reader of raw tables, the recipe and the age are named by the machine that runs the DAG.
        named = {"SOURCE": "synthetic", "RECIPE": "conf/models/city.yaml", "MAX_AGE_H": "36"}
        words = [named.get(job, job), "--day", "2026-01-31", "--run-id", "night"]
        words += [named.get(option, option if option.startswith("--") else "a.b=1") for option in options]

        parsed = build_parser(program, "", job_table(program)).parse_args(words)

        assert parsed.job in job_table(program)


def test_table_pages_are_those_of_the_contracts() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "etl", "docs", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stderr[-2000:]
    assert '"changed": true' not in checked.stdout.lower(), "run make docs"
