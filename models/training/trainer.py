"""The one training loop of all stages: step, accumulate, clip, schedule, validate, checkpoint, resume.

A stage defines batches and loss; the loop does everything else. A training that is interrupted at any step and started
again reaches the same weights, bit by bit on a CPU: weights, optimiser, random state and data position come from the
last checkpoint, and the order of the data depends on seed and epoch alone. Several processes share every batch
(`models.data.parallel`).
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa
import torch
from torch import Tensor, nn

from conf.errors import LossNotFiniteError
from conf.files import digest_json
from models.config import TrainConfig
from models.data.parallel import (
    num_processes,
    own_rows,
    own_share,
    process_rank,
    sum_gradients,
    sum_over_processes,
    wait_for_all,
)
from models.network.checkpoint import CheckpointStore, Snapshot, TrainState
from models.training.optimizer import build_optimizer, load_optimizer, read_optimizer, scale_rate
from models.training.progress import StepProgress
from models.training.stage import ComparingStage, Log, Stage, TrainResult

LOGGER = logging.getLogger(__name__)
LOG_EVERY_STEPS = 20
Trained = TypeVar("Trained", bound=nn.Module)


def train(
    stage: Stage[Trained],
    model: Trained,
    config: TrainConfig,
    folder: str | Path,
    log: Log,
    *,
    fingerprint: str = "",
) -> TrainResult:
    """Trains a model in place and leaves it with the weights of the best validation.

    Args:
        stage: data and loss.
        model: model on any device; moved to the configured one.
        config: configuration of the stage.
        folder: folder for checkpoints; a training in it is resumed.
        log: function that logs metrics at a step.
        fingerprint: further inputs that must be equal for a resume (token layout, data versions).

    Raises:
        LossNotFiniteError: loss or gradient is not finite; the batch is saved in the folder.
        DamagedCheckpointError, FingerprintError: the training in the folder cannot be continued.
    """
    return _Training(stage, model, config, Path(folder), log, fingerprint).run()


def pick_device(config: TrainConfig) -> torch.device:
    """Returns the configured device; `auto` is CUDA if it is available."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


class _Training(Generic[Trained]):
    """One run of a training, from start or resume to end."""

    def __init__(
        self,
        stage: Stage[Trained],
        model: Trained,
        config: TrainConfig,
        folder: Path,
        log: Log,
        fingerprint: str,
    ) -> None:
        self.stage, self.config, self.folder, self.log = stage, config, folder, log
        self.device = pick_device(config)
        self.model: Trained = model.to(self.device)
        self.optimizer = build_optimizer(model, config)
        self.store = CheckpointStore(folder / "checkpoints", _fingerprint_training(config, fingerprint))
        self.state = TrainState()
        self.num_batches = stage.num_batches()
        self.num_steps = config.max_steps or config.epochs * self.num_batches
        self.sums: dict[str, float] = {}

    def run(self) -> TrainResult:
        is_resumed = self._start()
        started = time.perf_counter() - self.state.seconds
        with StepProgress(self.stage.name, self.num_steps) as advance:
            if self.config.validate_start and self.state.step == 0 and self.state.best_value is None:
                self._validate()
            while not self.state.is_finished and self.state.step < self.num_steps:
                for rows in self.stage.train_batches(self.state.epoch, self.state.position):
                    self._step(rows)
                    self.state.seconds = time.perf_counter() - started
                    advance(self.state.step, self.state.best_value)
                    if self.state.is_finished or self.state.step >= self.num_steps:
                        break
                else:
                    assert self.state.position == 0, "the stage yields fewer batches than it says"
        return self._finish(is_resumed)

    def _start(self) -> bool:
        """Seeds, and resumes from the last checkpoint if there is one; returns whether it resumed."""
        # Processes draw different dropout masks; the order of the batches depends on the recipe's seed alone.
        torch.manual_seed(self.config.seed + process_rank())
        snapshot = self.store.load_last()
        wait_for_all()  # no process writes before all have read
        if snapshot is None:
            return False
        self.state = snapshot.state
        self.model.load_state_dict(snapshot.model)
        load_optimizer(self.optimizer, snapshot.optimizer)
        _restore_random(snapshot.random)
        LOGGER.info("%s goes on at step %d of %d", self.stage.name, self.state.step, self.num_steps)
        return True

    def _step(self, rows: pa.Table) -> None:
        """Runs one optimiser step, and validation, logging and checkpoint if they are due."""
        rate = scale_rate(self.config, self.state.step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.model.train()
        loss, num_targets = self._accumulate(rows)
        norm = float(self._normalise_gradients(num_targets))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse_batch(rows)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state = self.state
        state.step, state.position = state.step + 1, state.position + 1
        if state.position == self.num_batches:
            state.epoch, state.position = state.epoch + 1, 0
        self._log_training(loss, num_targets, norm, rate)
        every = self.config.val_every
        is_due = state.step % every == 0 if every else state.position == 0
        # Validation comes before the checkpoint, since the checkpoint refers to the best weights on disk.
        if is_due or state.step == self.num_steps:
            self._validate()
        if state.step % self.config.checkpoint_every == 0:
            self._save()

    def _accumulate(self, rows: pa.Table) -> tuple[float, int]:
        """Accumulates gradients of the summed loss, independent of micro-batches; returns loss and target count."""
        share = own_share(rows)
        size = self.config.micro_batch_size or max(share.num_rows, 1)
        total, num_targets, extra_sums = 0.0, 0, Counter[str]()
        for first in range(0, share.num_rows, size):
            with self._autocast():
                loss, count, sums = self._loss(rows, share.slice(first, size))
            if loss.requires_grad:
                loss.backward()
            total, num_targets = total + float(loss.detach()), num_targets + count
            extra_sums.update(sums)
        total, all_targets = sum_over_processes(total, num_targets)
        for name, value in extra_sums.items():  # further sums are those of this process's share, scaled up
            self.sums[name] = self.sums.get(name, 0.0) + value * (all_targets / max(num_targets, 1))
        return total, int(all_targets)

    def _loss(self, batch: pa.Table, part: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the stage's loss of a part; a comparing stage sees the whole batch unless it has micro-batches."""
        span = own_rows(batch.num_rows)
        is_share = num_processes() > 1 and part.num_rows == span.stop - span.start
        if is_share and isinstance(self.stage, ComparingStage):
            return self.stage.loss_of_share(self.model, batch, span)
        return self.stage.loss(self.model, part)

    def _normalise_gradients(self, num_targets: int) -> Tensor:
        """Converts gradients of the sum to those of the mean, clips them, and returns their norm before clipping."""
        sum_gradients([parameter for parameter in self.model.parameters() if parameter.requires_grad])
        # Listed after the sum, which adds gradients for parameters that this process's rows did not use.
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.div_(max(num_targets, 1))
        return nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)

    def _autocast(self) -> torch.autocast:
        wants = self.config.dtype == "bfloat16"
        can = self.device.type == "cpu" or torch.cuda.is_bf16_supported()
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wants and can)

    def _refuse_batch(self, rows: pa.Table) -> None:
        path = self.folder / f"not-finite-step-{self.state.step}.arrow"
        if process_rank() == 0:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
                writer.write_table(rows)
        raise LossNotFiniteError(stage=self.stage.name, step=self.state.step, batch_file=path)

    def _log_training(self, loss: float, num_targets: int, norm: float, rate: float) -> None:
        for name, value in (("train/loss", loss), ("targets", num_targets), ("steps", 1)):
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.state.step % LOG_EVERY_STEPS and self.state.position:
            return
        targets = max(self.sums.pop("targets"), 1.0)
        steps = self.sums.pop("steps")
        means = {name: value / targets for name, value in self.sums.items()}
        means["train/grad_norm"], means["train/learning_rate"] = norm, rate
        means["train/targets_per_step"] = targets / steps
        self.log(means, self.state.step)
        self.sums = {}

    def _validate(self) -> None:
        state = self.state
        self.model.eval()
        with torch.no_grad():
            metrics = self.stage.validate(self.model)
        if not metrics:  # without validation rows the weights of the last step are kept
            state.best_step = state.step
            self._save_best()
            return
        state.validations.append({"step": float(state.step), **metrics})
        self.log(metrics, state.step)
        # Validation rows with labels of one kind have no AUC, at no step.
        value = metrics.get(f"val/{self.config.criterion}", metrics["val/loss"])
        if state.best_value is None or value < state.best_value:
            state.best_value, state.best_step, state.bad_validations = value, state.step, 0
            self._save_best()
        else:
            state.bad_validations += 1
            state.is_finished = state.bad_validations >= self.config.patience
        LOGGER.info("%s step %d: %s", self.stage.name, state.step, _format(metrics))

    def _save_best(self) -> None:
        if process_rank() == 0:
            self.store.save_best(self.state.step, self.model.state_dict())
        wait_for_all()

    def _save(self) -> None:
        if process_rank() == 0:
            optimizer = read_optimizer(self.optimizer)
            self.store.save(Snapshot(self.state, self.model.state_dict(), optimizer, _read_random()))
        wait_for_all()

    def _finish(self, is_resumed: bool) -> TrainResult:
        state = self.state
        if not state.is_finished or state.step % self.config.checkpoint_every:
            state.is_finished = True
            self._save()
        self.model.load_state_dict(self.store.load_best(state.best_step))
        self.model.eval()
        return TrainResult(
            state.step, state.best_value, state.best_step, list(state.validations), state.seconds, is_resumed
        )


def _fingerprint_training(config: TrainConfig, fingerprint: str) -> str:
    """Returns a digest of what must be equal for a resume; device and checkpoint interval may change."""
    free = {"device", "checkpoint_every", "in_memory_rows"}
    content = {key: value for key, value in config.describe().items() if key not in free}
    return digest_json([content, fingerprint])


def _read_random() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _restore_random(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda0" in states:
        torch.cuda.set_rng_state_all([states[f"cuda{number}"] for number in range(len(states) - 1)])


def _format(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
