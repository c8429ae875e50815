"""MLflow runs: a training keeps its run, failures show, unknown models are named."""

import pytest

from conf.errors import MissingInputError
from models.tracking import flatten_params, open_stage_run, open_training_run, resolve_model_uri


def test_a_training_goes_on_in_the_run_it_began(tracking_settings, tmp_path):
    with open_training_run(tracking_settings, tmp_path, name="first") as log:
        log.log_params({"decoder": {"hidden_dim": 16}})
    with open_training_run(tracking_settings, tmp_path, name="second") as again:
        again.log_params({"decoder": {"hidden_dim": 32, "num_layers": 1}})  # what was logged stays
    assert again.run_id == log.run_id
    run = again.client.get_run(again.run_id)
    assert run.data.params == {"decoder.hidden_dim": "16", "decoder.num_layers": "1"}
    assert run.info.status == "FINISHED"


def _fail_in_a_stage(settings, parent):
    with open_stage_run(settings, parent, stage="pretrain") as stage:
        stage.log_metrics({"train/loss": 1.5}, 3)
        raise ValueError(stage.run_id)


def test_a_stage_run_is_nested_and_ends_failed_if_its_stage_does(tracking_settings, tmp_path):
    with open_training_run(tracking_settings, tmp_path, name="training") as parent:
        with pytest.raises(ValueError, match=r"\w+") as raised:
            _fail_in_a_stage(tracking_settings, parent)
        stage_run_id = str(raised.value)
        run = parent.client.get_run(stage_run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    metric = parent.client.get_metric_history(stage_run_id, "train/loss")[0]
    assert (metric.step, metric.value) == (3, 1.5)  # buffered values are not lost


@pytest.mark.parametrize("uri", ["models:/nothing@champion", "models:/nothing/7"])
def test_an_unknown_model_says_how_to_get_one(tracking_settings, uri):
    with pytest.raises(MissingInputError, match="python -m models train"):
        resolve_model_uri(uri, tracking_settings)


def test_a_folder_is_no_registered_model(tracking_settings):
    assert resolve_model_uri("some/folder", tracking_settings) is None


def test_nested_parameters_get_dotted_names():
    assert flatten_params({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}
