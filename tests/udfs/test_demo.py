"""The demo's folder, settings and refusals; `make bench-demo` and `make bench-own-data` run it whole."""

import argparse
import os
import shlex
import subprocess
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from conf.errors import SettingsError
from udfs import demo
from udfs.demo import build_parser, merge, open_work, work_folder, write_airflow_env


@pytest.fixture
def options(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPACETIME_CONF", "")  # set by the demo, restored after the test
    # New settings of Spark end the session that is open, which here belongs to other tests.
    monkeypatch.setattr(demo, "SparkSession", SimpleNamespace(getActiveSession=lambda: None))
    return lambda **given: argparse.Namespace(**{"source": "", "data": None, "work": None, **given})


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        ("/a/nyc", "nyc"),
        ("x.csv/", "x.csv"),
        ("/d/it's #1.csv", "it-s-1.csv-"),
        ("/d/übers Jahr", "bers-Jahr-"),
    ],
)
def test_the_folder_is_named_after_the_data_in_plain_letters(data, folder):
    found = str(work_folder(data))
    assert found.startswith(f".demo/{folder}")
    assert found.isascii()
    assert (found == f".demo/{folder}") == (not folder.endswith("-"))
    assert work_folder("/d/a b") != work_folder("/d/a-b")


def test_later_layers_win_and_leave_the_rest():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": {}}) == {
        "a": {"b": 9, "c": 2},
        "d": 3,
        "e": {},
    }


def test_the_settings_of_a_demo_lie_in_its_folder_and_serve_the_next_commands(options, tmp_path):
    data = tmp_path / "it's data.csv"
    data.write_text("x")
    settings = open_work(options(data=str(data)))
    settings.add({"spark": {"shuffle_partitions": 1}})

    content = yaml.safe_load(settings.path.read_text())
    assert content["source"] == {"path": str(data)}
    assert content["spark"]["shuffle_partitions"] == 1
    assert content["spark"]["quick_start"] is True
    assert os.environ["SPACETIME_CONF"] == str(settings.path)
    with pytest.raises(SettingsError, match="tables of other data"):
        open_work(options(source="synthetic", work=settings.path.parent))


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"data": "nowhere"}, "does not exist"), ({"source": "tsmc"}, "reads files"),
     ({"source": "synthetic", "work": Path("a:b")}, "colon")],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_is_written(options, tmp_path, given, reason):
    with pytest.raises(SettingsError, match=reason):
        open_work(options(**given))
    assert list(tmp_path.iterdir()) == []


def test_variables_are_the_defaults_of_the_options(monkeypatch):
    monkeypatch.setenv("DATA", "a b.csv")
    monkeypatch.setenv("NEXT_DAY", "2026-03-01")
    found = build_parser().parse_args(["--work", "x"])
    assert (found.data, str(found.next_day), found.work) == ("a b.csv", "2026-03-01", Path("x"))
    assert found.recipe == Path("conf/models/city.yaml")


def test_airflow_gets_the_settings_the_reader_and_the_day_after_the_last_release(options, tmp_path):
    settings = open_work(options(source="synthetic", work=tmp_path / "it's here"))

    write_airflow_env(settings, "synthetic", date(2026, 3, 2))

    file = shlex.quote(str(settings.path.with_name("airflow.env")))
    shown = f'. {file}; echo "$SPACETIME_CONF"; echo "$SPACETIME_DAY"'
    found = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True, env={})
    assert found.stdout.splitlines() == [str(settings.path), "2026-03-02"]


def test_the_demo_s_city_has_the_click_model_of_the_figures():
    root = Path(demo.__file__).parents[1]
    city = yaml.safe_load(demo.CITY_FILE.read_text())["city"]
    measured = yaml.safe_load((root / "conf" / "bench" / "posttraining.yaml").read_text())["settings"]["city"]

    assert city["clicks"] == measured["clicks"]
    assert city["attribute_tries"] == measured["attribute_tries"]
