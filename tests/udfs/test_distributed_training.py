"""`python -m udfs train`: Spark starts the processes, and they end with the model of one."""

import json
from argparse import ArgumentParser

import pytest

from conf.cli import main
from models.__main__ import JOBS as MODEL_JOBS
from tests.models.fixtures import city_root, city_settings, city_tables, tracking_settings  # noqa: F401
from tests.models.planted_city import RECIPE
from udfs.__main__ import JOBS


def test_two_barrier_tasks_train_as_one_process(spark, city_settings, tmp_path, capfd):  # noqa: F811
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("sft_embedding: {", "sft_embedding: {drop_request: 0.0, "))
    notes = {}
    for name, program, jobs, more in (
        ("one", "models", MODEL_JOBS, ["--threads", "1"]),
        ("two", "udfs", JOBS, ["--processes", "2"]),
    ):
        arguments = [
            "train", "--day", "2026-03-01", "--recipe", str(recipe), *more,
            f"--set=storage.root={city_settings.storage.root}", f"--set=storage.artifacts={tmp_path}/{name}",
            f"--set=mlflow.tracking_uri=sqlite:///{tmp_path}/{name}.db",
            f"--set=mlflow.artifact_root={tmp_path}/mlruns-{name}",
        ]  # fmt: skip
        code = main(program, "", jobs, arguments)
        printed = capfd.readouterr()
        summary = json.loads(printed.out.splitlines()[-1])
        assert code == 0, f"{summary['message']}\n{printed.out}"
        notes[name] = summary["notes"]

    losses = [
        {key: value for key, value in own.items() if key.endswith("val_loss")} for own in notes.values()
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # four digits are told
    assert len(losses[0]) == 4
    assert notes["two"]["is_champion"]


def test_every_option_of_one_machine_is_one_of_the_cluster():
    parsers = {"models": ArgumentParser(), "udfs": ArgumentParser()}
    MODEL_JOBS["train"].add_options(parsers["models"])
    JOBS["train"].add_options(parsers["udfs"])
    here, cluster = ({action.dest for action in parser._actions} for parser in parsers.values())
    assert cluster == here | {"processes"}
