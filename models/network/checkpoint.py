"""Weights and training states on disk: safetensors and JSON, written whole or not at all, checked when read.

A finished stage is a folder `config.json`, `model.safetensors`, `checksums.json`. A training keeps folders
`step-N` beside each other with weights, optimiser, RNG and data position, and the best weights so far.
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
AVERAGE_FILE = "average.safetensors"
NUM_KEPT = 2
RENAMED_PARTS = {"memory": "history_copy", "others": "crowd_copy", "taste": "interest_match"}
"""Parts of the decoder by the names that they had in older checkpoints."""


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
        folder: what `save_stage` wrote.
        layout: the layout that the caller's ids are in; None = any.
        device: where the weights go.

    Raises:
        MissingInputError: there is no model.
        DamagedCheckpointError: a file is missing or differs from its checksum, or the code has changed since.
        FingerprintError: the model's token layout is another one.
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
    made_now = (layout or config.layout).fingerprint()
    if content["fingerprint"] != made_now:
        raise FingerprintError(path=path, expected=made_now, found=content["fingerprint"])
    model = SpacetimeDecoder(config)
    weights = rename_parts(load_file(path / MODEL_FILE))
    others = sorted(weights.keys() ^ model.state_dict().keys())
    if others:
        problem = f"its weights are those of another version of the model ({len(others)} names, first {others[0]!r})"
        raise DamagedCheckpointError(path=path, problem=problem)
    model.load_state_dict(weights)
    return model.to(device).eval()


def rename_parts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights by the names that they have now."""
    renamed = {}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        renamed[f"{RENAMED_PARTS.get(part, part)}.{rest}"] = value
    return renamed


def read_config(folder: Path) -> DecoderConfig:
    """Returns the shape of a trained model without its weights; `folder` is what `save_stage` wrote."""
    return DecoderConfig.model_validate(json.loads((folder / CONFIG_FILE).read_text())["decoder"])


@dataclass
class TrainState:
    """Everything that a training needs to go on as if it had never stopped.

    Attributes:
        step: optimiser steps done.
        epoch: pass over the data.
        position: batches of the epoch already used.
        best_value: lowest validation loss so far.
        best_step: step of it.
        bad_validations: validations since.
        is_finished: nothing is left to do.
        validations: metrics of every validation, with their step.
        seconds: spent in training so far.
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
    """A training state with its tensors; `average`, of the weights, is empty where none is kept."""

    state: TrainState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of one training: the last two, and the best weights that they refer to."""

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        """Opens the store.

        Args:
            folder: of the training; made if it is not there.
            fingerprint: says what must not change between start and resume (layout and recipe).
        """
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, snapshot: Snapshot) -> None:
        """Writes a checkpoint and drops all but the last two."""
        with FolderWriter(self.folder / f"step-{snapshot.state.step:09d}") as writer:
            writer.write_tensors(MODEL_FILE, snapshot.model)
            writer.write_tensors(OPTIMIZER_FILE, snapshot.optimizer)
            writer.write_tensors(RANDOM_FILE, snapshot.random)
            writer.write_tensors(AVERAGE_FILE, snapshot.average)
            writer.write_json(STATE_FILE, {"fingerprint": self.fingerprint, **asdict(snapshot.state)})
        kept = self._steps()[-NUM_KEPT:]
        # The older checkpoint may refer to other best weights, and is what is left if the newer is damaged.
        needed = {self._best_folder(self._read_state(path).best_step) for path in kept}
        for path in [*self._steps(), *self.folder.glob("best-*")]:
            if path not in kept and path not in needed:
                shutil.rmtree(path)

    def load_last(self) -> Snapshot | None:
        """Reads the newest checkpoint that is whole; None if there is none yet.

        Raises:
            DamagedCheckpointError: there are checkpoints, all of them damaged.
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
            tensors = [
                load_file(path / name) for name in (MODEL_FILE, OPTIMIZER_FILE, RANDOM_FILE, AVERAGE_FILE)
            ]
            return Snapshot(state, *tensors)
        if damage is not None:
            raise damage
        return None

    def save_best(self, step: int, model: Mapping[str, Tensor]) -> None:
        """Keeps the weights of the best validation so far."""
        with FolderWriter(self._best_folder(step)) as writer:
            writer.write_tensors(MODEL_FILE, model)

    def load_best(self, step: int) -> dict[str, Tensor]:
        """Reads the weights kept at `step`; DamagedCheckpointError if they are not whole."""
        check_folder(self._best_folder(step))
        return load_file(self._best_folder(step) / MODEL_FILE)

    def _read_state(self, path: Path) -> TrainState:
        content = json.loads((path / STATE_FILE).read_text())
        found = content.pop("fingerprint")
        if found != self.fingerprint:
            raise FingerprintError(path=path, expected=self.fingerprint, found=found)
        return TrainState(**content)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != FolderWriter.SUFFIX)

    def _best_folder(self, step: int) -> Path:
        return self.folder / f"best-{step:09d}"


class FolderWriter:
    """Writes files into a temporary folder; on leaving without error syncs, checksums and renames it."""

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
        # On disk before the rename: a crash must not leave the final name on files that are half written.
        for path in self.partial.iterdir():
            _sync(path)
        _sync(self.partial)
        if self.folder.exists():
            # With the partial suffix it does not count as a checkpoint if a crash leaves it behind.
            old = self.folder.with_name(self.folder.name + ".old" + self.SUFFIX)
            shutil.rmtree(old, ignore_errors=True)
            self.folder.rename(old)
            self.partial.rename(self.folder)
            shutil.rmtree(old)
        else:
            self.partial.rename(self.folder)
        _sync(self.folder.parent)


def check_folder(folder: Path) -> None:
    """Compares the files of a folder with its checksums; DamagedCheckpointError if one differs."""
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
