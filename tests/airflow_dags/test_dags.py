"""The DAG files parse quickly, without our libraries, and follow the house rules."""

import json
from pathlib import Path

import pytest

from tests.airflow_dags.airflow_env import INSPECT, airflow_variables, is_installed, run_airflow

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(not is_installed(), reason="no .venv-airflow; make test-airflow sets it up"),
]
TAGS = {"features", "training", "backfill"}
NIGHT = ["read_source", "poi_index", "clean_actions", "action_sequences"]
FEATURES = ["user_embeddings", "poi_embeddings", "ranking_scores", "poi_candidates"]


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    home: Path = tmp_path_factory.mktemp("airflow")
    done = run_airflow(airflow_variables(home), str(INSPECT))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_file_parses(parsed: dict) -> None:
    assert parsed["errors"] == {}
    assert sorted(parsed["dags"]) == [
        "backfill_day",
        "nightly_features",
        "release_freshness",
        "weekly_training",
    ]


def test_parsing_takes_less_than_two_seconds(parsed: dict) -> None:
    assert parsed["seconds"] < 2


def test_parsing_loads_neither_spark_nor_torch_nor_our_packages(parsed: dict) -> None:
    assert parsed["heavy"] == []


def test_every_dag_is_documented_and_carries_one_tag_of_the_closed_list(parsed: dict) -> None:
    for dag in parsed["dags"].values():
        assert len(dag["doc"]) > 100
        assert len(dag["tags"]) == 1
        assert set(dag["tags"]) <= TAGS


def test_every_task_has_an_owner_retries_and_is_one_command_line(parsed: dict) -> None:
    for dag in parsed["dags"].values():
        for task in dag["tasks"].values():
            assert task["owner"] == "spacetime-gr"
            assert task["retries"] == 2
            assert task["command"].count(" -m ") == 1
            assert " --day {{" in task["command"]


def test_a_night_runs_from_the_source_to_the_report(parsed: dict) -> None:
    tasks = parsed["dags"]["nightly_features"]["tasks"]

    assert [tasks[name]["upstream"] for name in NIGHT] == [
        [],
        ["read_source"],
        ["poi_index"],
        ["clean_actions"],
    ]
    assert all(tasks[name]["upstream"] == ["action_sequences"] for name in FEATURES)
    assert tasks["audit"]["upstream"] == sorted(FEATURES)
    assert tasks["publish"]["upstream"] == ["audit"]
    assert tasks["report"]["upstream"] == ["publish"]


def test_only_publish_updates_the_asset_that_ranking_dags_wait_for(parsed: dict) -> None:
    updating = {
        f"{name}.{task_id}": task["outlets"]
        for name, dag in parsed["dags"].items()
        for task_id, task in dag["tasks"].items()
        if task["outlets"]
    }

    assert updating == {"nightly_features.publish": ["spacetime://features/releases"]}


def test_backfill_publishes_nothing_and_leaves_the_index_alone(parsed: dict) -> None:
    tasks = set(parsed["dags"]["backfill_day"]["tasks"])

    assert not tasks & {"publish", "poi_index", "read_source"}
