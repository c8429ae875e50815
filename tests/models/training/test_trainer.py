"""The loop: resume is bit-equal, micro-batches change nothing, the best weights win, NaN is caught."""

import math

import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from conf.errors import FingerprintError, LossNotFiniteError
from models.config import TrainConfig
from models.training.optimizer import group_parameters, scale_rate
from models.training.trainer import train
from tests.models.tiny import tiny_decoder
from tests.models.training.small_stage import CONFIG, NUM_BATCHES, TinyStage, ignore, make_model, weights


class PowerCutError(Exception):
    """Stops a training where it stands."""


@pytest.mark.parametrize("kill_at", [1, 4, NUM_BATCHES, 11, 18])
@pytest.mark.parametrize("checkpoint_every", [1, 4])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, kill_at, checkpoint_every):
    config = CONFIG.model_copy(update={"checkpoint_every": checkpoint_every, "val_every": 2})
    whole = make_model()
    expected = train(TinyStage(), whole, config, tmp_path / "whole", ignore)

    class Dying(TinyStage):
        steps = 0

        def loss(self, model, rows):
            self.steps += 1
            if self.steps == kill_at:
                raise PowerCutError
            return super().loss(model, rows)

    with pytest.raises(PowerCutError):
        train(Dying(), make_model(), config, tmp_path / "cut", ignore)
    resumed = make_model()
    with torch.no_grad():
        resumed[0].weight.zero_()  # what the model is at resume must not matter, once there is a checkpoint
    if kill_at <= checkpoint_every:
        resumed = make_model()
    torch.randn(7)
    found = train(TinyStage(), resumed, config, tmp_path / "cut", ignore)

    assert torch.equal(weights(resumed), weights(whole))
    assert found.validations == expected.validations
    assert (found.steps, found.best_step) == (expected.steps, expected.best_step)
    assert found.is_resumed == (kill_at > checkpoint_every)


def test_a_finished_training_is_not_trained_again(tmp_path):
    first, again = make_model(), make_model()
    expected = train(TinyStage(), first, CONFIG, tmp_path, ignore)

    class Untouchable(TinyStage):
        def loss(self, model, rows):
            raise AssertionError

    found = train(Untouchable(), again, CONFIG, tmp_path, ignore)

    assert torch.equal(weights(again), weights(first))
    assert (found.steps, found.best_value) == (expected.steps, expected.best_value)


def test_micro_batches_change_nothing_but_rounding(tmp_path):
    whole, split = make_model(dropout=0.0), make_model(dropout=0.0)
    train(TinyStage(), whole, CONFIG, tmp_path / "a", ignore)
    train(TinyStage(), split, CONFIG.model_copy(update={"micro_batch_size": 3}), tmp_path / "b", ignore)

    torch.testing.assert_close(weights(split), weights(whole), atol=1e-5, rtol=1e-4)


class SteepStage(TinyStage):
    """Its loss is finite, and its gradient is not: the root of a zero."""

    def loss(self, model, rows):
        loss, count, sums = super().loss(model, rows)
        weight = next(model.parameters())
        return loss + (weight - weight.detach()).sqrt().sum(), count, sums


def test_a_gradient_that_is_infinite_changes_nothing_either(tmp_path):
    model = make_model()
    before = weights(model).clone()

    with pytest.raises(LossNotFiniteError):
        train(SteepStage(), model, CONFIG, tmp_path, ignore)

    assert_close(weights(model), before)


def test_training_stops_after_patience_and_the_best_weights_are_restored(tmp_path):
    model, seen = make_model(), {}

    def remember(metrics: dict[str, float], step: int) -> None:
        if "val/loss" in metrics:
            seen[step] = weights(model).clone()

    stage = TinyStage(val_losses=[3.0, 1.0, 2.0, 2.0, 0.0])
    config = CONFIG.model_copy(update={"epochs": 9, "patience": 2, "val_every": 2})

    result = train(stage, model, config, tmp_path, remember)

    assert (result.steps, result.best_step, result.best_value) == (8, 4, 1.0)
    assert torch.equal(weights(model), seen[4])
    assert [validation["step"] for validation in result.validations] == [2, 4, 6, 8]


@pytest.mark.parametrize(("has_auc", "best_step", "best_value"), [(True, 4, 0.1), (False, 2, 1.0)])
def test_the_criterion_chooses_and_without_an_auc_the_loss(tmp_path, has_auc, best_step, best_value):
    class Ranked(TinyStage):
        misranked = iter([0.3, 0.1, 0.2, 0.2])

        def validate(self, model):
            found = super().validate(model)
            return found | ({"val/misranked": next(self.misranked)} if has_auc else {})

    changes = {"epochs": 9, "patience": 2, "val_every": 2, "criterion": "misranked"}
    stage = Ranked(val_losses=[1.0, 2.0, 3.0, 4.0])

    result = train(stage, make_model(), CONFIG.model_copy(update=changes), tmp_path, ignore)

    assert (result.best_step, result.best_value) == (best_step, best_value)


def test_the_start_is_kept_if_nothing_beats_it(tmp_path):
    model = make_model()
    start = weights(model).clone()
    config = CONFIG.model_copy(update={"validate_start": True})

    result = train(TinyStage(val_losses=[1.0, 2.0, 2.0, 2.0]), model, config, tmp_path, ignore)

    assert (result.best_step, result.best_value) == (0, 1.0)
    assert torch.equal(weights(model), start)


def test_a_batch_that_makes_nan_is_written_aside_and_changes_nothing(tmp_path):
    model = make_model()

    with pytest.raises(LossNotFiniteError) as caught:
        train(TinyStage(poison=3), model, CONFIG, tmp_path, ignore)

    assert caught.value.step == 3
    with pa.OSFile(caught.value.batch_file) as source:
        assert math.isnan(pa.ipc.open_file(source).read_all().column("x")[1].as_py())
    assert weights(model).isfinite().all()
    result = train(TinyStage(), make_model(), CONFIG, tmp_path, ignore)  # repaired data: goes on
    assert result.is_resumed
    assert result.steps == 3 * NUM_BATCHES


def test_a_resume_under_another_recipe_is_refused(tmp_path):
    train(TinyStage(), make_model(), CONFIG, tmp_path, ignore)

    with pytest.raises(FingerprintError):
        train(TinyStage(), make_model(), CONFIG.model_copy(update={"learning_rate": 0.1}), tmp_path, ignore)


def test_the_rate_warms_up_and_falls_along_a_cosine():
    config = TrainConfig(learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4)

    rates = [scale_rate(config, step, 104) for step in (0, 3, 4, 54, 104, 200)]

    assert rates == pytest.approx([0.25, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_pair_tables_learn_faster_and_only_matrices_decay():
    model = tiny_decoder()
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    groups = group_parameters(model, TrainConfig(weight_decay=0.05))

    found = {names[id(p)]: (g["scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == len(names)
    assert found["history_copy.small.weight"] == (10.0, 0.0)
    assert found["history_copy.large.weight"] == (2.0, 0.0)
    assert found["trunk.norm.weight"] == (1.0, 0.0)
    assert found["trunk.embedding.weights.time"] == (1.0, 0.0)
    assert found["trunk.embedding.blocks.weight"] == (1.0, 0.05)


def test_where_places_start_apart_all_waves_together_move_as_one_row_does():
    model = tiny_decoder(place_std=0.1)
    waves = model.trunk.embedding.geo.fourier.weight

    groups = group_parameters(model, TrainConfig(weight_decay=0.05))

    scale = next(g["scale"] for g in groups if any(p is waves for p in g["params"]))
    assert scale == pytest.approx((6 * 7 / 2) ** -0.5)  # 7 wave lengths, sine and cosine of 3 coordinates
    usual = group_parameters(tiny_decoder(), TrainConfig(weight_decay=0.05))
    assert {g["scale"] for g in usual} == {1.0, 2.0, 10.0}


@pytest.mark.parametrize("name", ["history_copy.smal", "history_copy.tables", "istory_copy"])
def test_a_rate_for_a_part_that_the_model_does_not_have_is_an_error(monkeypatch, name):
    model = tiny_decoder()
    monkeypatch.setattr(type(model), "rate_scales", {name: 3.0}, raising=False)

    with pytest.raises(ValueError, match=f"'{name}'.*does not have"):
        group_parameters(model, TrainConfig())


def test_metrics_are_means_over_targets(tmp_path):
    logged = []
    train(TinyStage(), make_model(), CONFIG, tmp_path, lambda metrics, step: logged.append((step, metrics)))

    step, metrics = next(entry for entry in logged if "train/loss" in entry[1])
    assert step == NUM_BATCHES  # at the end of an epoch, or every 20 steps
    assert metrics["train/error"] == pytest.approx(metrics["train/loss"], rel=1e-5)
    assert metrics["train/targets_per_step"] == 4
