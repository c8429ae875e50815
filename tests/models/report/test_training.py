"""Curves of the report, from a client that answers as MLflow's does."""

from types import SimpleNamespace

from models.report.training import draw_stage, load_stages


class RecordedClient:
    """Two starts of pre-training and one of ranking SFT below run `parent`."""

    def __init__(self):
        self.histories = {
            "first": {"train/loss": [(1, 9.0), (2, 8.0)]},
            "again": {"train/loss": [(2, 7.0), (3, 6.0)], "val/loss": [(3, 6.5)]},
            "ranking": {"val/auc": [(10, 0.6), (20, float("nan")), (30, 0.7)]},
        }
        self.stages = {"first": "pretrain", "again": "pretrain", "ranking": "sft_ranking"}

    def get_run(self, run_id):
        assert run_id == "parent"
        return SimpleNamespace(info=SimpleNamespace(experiment_id="1"))

    def search_runs(self, experiments, query, order_by):
        assert experiments == ["1"]
        assert "parent" in query
        return [
            SimpleNamespace(
                info=SimpleNamespace(run_id=run_id, run_name=run_id),
                data=SimpleNamespace(tags={"stage": self.stages[run_id]}, metrics=dict.fromkeys(history)),
            )
            for run_id, history in self.histories.items()
        ]

    def get_metric_history(self, run_id, name):
        return [SimpleNamespace(step=step, value=value) for step, value in self.histories[run_id][name]]


def test_a_resumed_stage_is_one_curve_and_later_values_win():
    pretrain, ranking = load_stages(RecordedClient(), "parent")

    steps, values = pretrain.metrics["train/loss"]
    assert (pretrain.stage, ranking.stage) == ("pretrain", "sft_ranking")
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == [9.0, 7.0, 6.0]  # step 2 was trained again


def test_values_that_are_not_finite_leave_a_gap():
    ranking = load_stages(RecordedClient(), "parent")[1]

    assert ranking.metrics["val/auc"][0].tolist() == [10, 30]
    assert ranking.last("val/auc") == 0.7
    assert ranking.last("val/loss") is None


def test_only_metrics_with_several_steps_are_drawn():
    pretrain, ranking = load_stages(RecordedClient(), "parent")

    (losses,) = draw_stage(pretrain)
    (metric,) = draw_stage(ranking)

    assert [name for name, _ in losses.legend] == ["train/loss"]  # the validation loss is one point
    assert [name for name, _ in metric.legend] == ["val/auc"]
