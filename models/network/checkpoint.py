"""Weights and training states on disk: safetensors and JSON, written atomically, checked when read.

A finished stage is a folder with `config.json`, `model.safetensors` and `checksums.json`. A training keeps one folder
`step-N` per checkpoint with weights, optimiser, RNG and data position, and a folder `best-N` with the best weights.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from conf.errors import DamagedCheckpointError, FingerprintError, MissingInputError
from conf.tokens import TokenLayout
from models.config import DecoderConfig
from models.network.decoder import SpacetimeDecoder

LOGGER = logging.getLogger(__name__)
CONFIG_FILE, MODEL_FILE, CHECKSUM_FILE = "config.json", "model.safetensors", "checksums.json"
STATE_FILE, OPTIMIZER_FILE, RANDOM_FILE = "state.json", "optimizer.safetensors", "random.safetensors"
NUM_KEPT = 2
RENAMED_PARTS = {"memory": "history_copy", "others": "crowd_copy", "taste": "interest_match"}
"""Names of the decoder's parts in older checkpoints -> their names now."""


def save_stage(
    folder: str | Path, model: SpacetimeDecoder, notes: Mapping[str, object] | None = None
) -> Path:
    """Writes a trained model; replaces what is at `folder` in one step. Returns the folder."""
    content = {
        "decoder": model.config.model_dump(mode="json"),
        "fingerprint": model.config.layout.fingerprint(),
        "notes": dict(notes or {}),
    }
    with FolderWriter(Path(folder)) as writer:
        writer.write_tensors(MODEL_FILE, model.state_dict())
        writer.write_json(CONFIG_FILE, content)
    return Path(folder)


def load_stage(
    folder: str | Path, *, layout: TokenLayout | None = None, device: str = "cpu"
) -> SpacetimeDecoder:
    """Reads a trained model, in evaluation mode.

    Args:
        folder: the folder that `save_stage` wrote.
        layout: token layout of the caller's ids; None = any.
        device: device of the weights.

    Raises:
        MissingInputError: there is no model.
        DamagedCheckpointError: a file is missing or differs from its checksum, or the code has changed since.
        FingerprintError: the model has another token layout.
    """
    path = Path(folder)
    if not path.is_dir():
        raise MissingInputError(
            what="the trained model",
            where=str(path),
            needed_by="The model stage or feature job",
            remedy="Train it with: python -m models train --day DAY.",
        )
    check_folder(path)
    content = json.loads((path / CONFIG_FILE).read_text())
    config = DecoderConfig.model_validate(content["decoder"])
    expected = (layout or config.layout).fingerprint()
    if content["fingerprint"] != expected:
        raise FingerprintError(path=path, expected=expected, found=content["fingerprint"])
    model = SpacetimeDecoder(config)
    weights = rename_parts(load_file(path / MODEL_FILE))
    names = sorted(weights.keys() ^ model.state_dict().keys())
    if names:
        problem = (
            f"its weights are those of another version of the model ({len(names)} names, first {names[0]!r})"
        )
        raise DamagedCheckpointError(path=path, problem=problem)
    model.load_state_dict(weights)
    return model.to(device).eval()


def rename_parts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights under their current names."""
    renamed = {}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        renamed[f"{RENAMED_PARTS.get(part, part)}.{rest}"] = value
    return renamed


def read_config(folder: Path) -> DecoderConfig:
    """Returns the configuration of a trained model without its weights; `folder` was written by `save_stage`."""
    return DecoderConfig.model_validate(json.loads((folder / CONFIG_FILE).read_text())["decoder"])


@dataclass
class TrainState:
    """The state that a training needs to resume exactly.

    Attributes:
        step: optimiser steps done.
        epoch: current pass over the data, from 0.
        position: batches of the epoch already used.
        best_value: lowest validation loss so far.
        best_step: step of the lowest validation loss.
        bad_validations: validations since the best one.
        is_finished: the training is complete.
        validations: metrics of every validation, with their step.
        seconds: training time so far.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best_value: float | None = None
    best_step: int = 0
    bad_validations: int = 0
    is_finished: bool = False
    validations: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """A training state with its tensors."""

    state: TrainState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]


class CheckpointStore:
    """The checkpoints of one training: the last two, and the best weights they refer to."""

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        """Opens the store.

        Args:
            folder: folder of the training; created if it does not exist.
            fingerprint: identifies what must not change between start and resume (layout and recipe).
        """
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint and drops all but the last two."""
        with FolderWriter(self.folder / f"step-{snapshot.state.step:09d}") as writer:
            writer.write_tensors(MODEL_FILE, snapshot.model)
            writer.write_tensors(OPTIMIZER_FILE, snapshot.optimizer)
            writer.write_tensors(RANDOM_FILE, snapshot.random)
            writer.write_json(STATE_FILE, {"fingerprint": self.fingerprint, **asdict(snapshot.state)})
        kept = self._steps()[-NUM_KEPT:]
        # The older checkpoint is the fallback if the newer is damaged, and may refer to other best weights.
        needed = {self._best_folder(self._read_state(path).best_step) for path in kept}
        for path in [*self._steps(), *self.folder.glob("best-*")]:
            if path not in kept and path not in needed:
                shutil.rmtree(path)

    def load_last(self) -> Snapshot | None:
        """Reads the newest intact checkpoint; None if there is none yet.

        Raises:
            DamagedCheckpointError: all checkpoints are damaged.
            FingerprintError: they belong to another layout or recipe.
        """
        damage = None
        for path in reversed(self._steps()):
            try:
                check_folder(path)
                state = self._read_state(path)
                if state.best_value is not None:
                    check_folder(self._best_folder(state.best_step))
            except DamagedCheckpointError as error:
                LOGGER.warning("%s", error)
                damage = error
                continue
            tensors = [load_file(path / name) for name in (MODEL_FILE, OPTIMIZER_FILE, RANDOM_FILE)]
            return Snapshot(state, *tensors)
        if damage is not None:
            raise damage
        return None

    def save_best(self, step: int, model: Mapping[str, Tensor]) -> None:
        """Saves the weights of the best validation so far."""
        with FolderWriter(self._best_folder(step)) as writer:
            writer.write_tensors(MODEL_FILE, model)

    def load_best(self, step: int) -> dict[str, Tensor]:
        """Reads the weights saved at `step`; raises DamagedCheckpointError if they are damaged."""
        check_folder(self._best_folder(step))
        return load_file(self._best_folder(step) / MODEL_FILE)

    def _read_state(self, path: Path) -> TrainState:
        content = json.loads((path / STATE_FILE).read_text())
        fingerprint = content.pop("fingerprint")
        if fingerprint != self.fingerprint:
            raise FingerprintError(path=path, expected=self.fingerprint, found=fingerprint)
        return TrainState(**content)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != FolderWriter.SUFFIX)

    def _best_folder(self, step: int) -> Path:
        return self.folder / f"best-{step:09d}"


class FolderWriter:
    """Writes files into a temporary folder; a clean exit computes checksums, syncs and renames the folder."""

    SUFFIX = ".partial"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.partial = folder.with_name(folder.name + self.SUFFIX)

    def __enter__(self) -> "FolderWriter":
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes a safetensors file."""
        ready = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(ready, self.partial / name)

    def write_json(self, name: str, content: Mapping[str, object]) -> None:
        """Writes a JSON file."""
        (self.partial / name).write_text(json.dumps(content, indent=1, sort_keys=True))

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        digests = {path.name: digest_file(path) for path in sorted(self.partial.iterdir())}
        self.write_json(CHECKSUM_FILE, digests)
        # Files are synced before the rename: a crash must not leave half-written files under the final name.
        for path in self.partial.iterdir():
            _sync(path)
        _sync(self.partial)
        if self.folder.exists():
            # The partial suffix keeps it from counting as a checkpoint if a crash leaves it there.
            old = self.folder.with_name(self.folder.name + ".old" + self.SUFFIX)
            shutil.rmtree(old, ignore_errors=True)
            self.folder.rename(old)
            self.partial.rename(self.folder)
            shutil.rmtree(old)
        else:
            self.partial.rename(self.folder)
        _sync(self.folder.parent)


def check_folder(folder: Path) -> None:
    """Compares the files of a folder with its checksums; raises DamagedCheckpointError if one differs."""
    try:
        expected: dict[str, str] = json.loads((folder / CHECKSUM_FILE).read_text())
    except (OSError, ValueError) as error:
        problem = f"{CHECKSUM_FILE} cannot be read ({error})"
        raise DamagedCheckpointError(path=folder, problem=problem) from error
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(path=folder, problem=f"{name} is missing")
        if digest_file(path) != digest:
            raise DamagedCheckpointError(path=folder, problem=f"{name} differs from its checksum")


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
