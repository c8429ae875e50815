"""A model bundle: one folder with everything inference needs and nothing that can run code.

    bundle.json         content and origin of the bundle
    pretrained/         config, safetensors and checksums of a stage
    sft_embedding/ sft_ranking/ dpo/        the same; may be missing

A bundle is named by `models:/NAME@ALIAS`, `models:/NAME/VERSION` or its folder. Its fingerprint (token layout) must
agree with the index of its inputs.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from conf.errors import CorruptInputError, MissingInputError
from conf.files import write_json
from conf.settings import Settings
from conf.tokens import TokenLayout
from models.network.checkpoint import CHECKSUM_FILE, CONFIG_FILE, MODEL_FILE, load_stage, read_config
from models.network.decoder import SpacetimeDecoder
from models.serving.new_places import LogitMap

BUNDLE_FILE = "bundle.json"
FORMAT = 1
STAGE_FOLDERS = {
    "pretrain": "pretrained",
    "sft_embedding": "sft_embedding",
    "sft_ranking": "sft_ranking",
    "align_dpo": "dpo",
}
"""Folder of each training stage inside a bundle."""
GENERATING_STAGES = ("pretrain", "align_dpo")
"""Stages that learn P(POI)."""


@dataclass(frozen=True)
class Serving:
    """Settings of forward passes; they change results by rounding only.

    Attributes:
        dtype: preferred type of the forward pass; weights and results stay float32.
        max_actions: limit on the past actions of a pass, padding included, which bounds its memory; a single row may
            exceed it.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    max_actions: int = 4096


@dataclass(frozen=True)
class ModelBundle:
    """An opened bundle; stages are loaded at first use.

    Attributes:
        folder: folder of the bundle.
        layout: token layout and capacities of its models.
        stage_names: stages of the bundle, in order of training.
        embedding_dim: length of user and POI vectors.
        is_simulated: True = trained on simulated rows.
        content: content of `bundle.json`.
        serving: settings of its forward passes.
    """

    folder: Path
    layout: TokenLayout
    stage_names: tuple[str, ...]
    embedding_dim: int
    is_simulated: bool
    content: Mapping[str, object]
    _loaded: dict[tuple[str, str], SpacetimeDecoder] = field(default_factory=dict, repr=False)
    serving: Serving = field(default_factory=Serving)

    @property
    def generator_stage(self) -> str:
        """The stage that generates POIs, chosen on validation rows by `models.evaluation.generator_choice`."""
        return str(self.content.get("generator_stage", "pretrain"))

    @property
    def p_new_calibration(self) -> "LogitMap":
        """How P(new) of the generating stage becomes a calibrated probability; the identity if it was never fitted."""
        found = self.content.get("p_new_calibration")
        return LogitMap(**found) if isinstance(found, Mapping) else LogitMap()

    @property
    def missing_stages(self) -> dict[str, str]:
        """Stages that the training skipped -> reason; this bundle cannot compute their features."""
        skipped = self.content.get("skipped")
        reasons = skipped if isinstance(skipped, Mapping) else {}
        return {
            stage: str(reasons.get(stage, "the stage was not trained"))
            for stage in STAGE_FOLDERS
            if stage not in self.stage_names
        }

    @property
    def copies_from_crowd(self) -> bool:
        """Whether a generating stage needs the statistics of the crowd (`models.copying.crowd_tables`)."""
        folders = [
            self.folder / STAGE_FOLDERS[stage] for stage in GENERATING_STAGES if stage in self.stage_names
        ]
        return any(read_config(folder).crowd.enabled for folder in folders)

    @property
    def action_type_id(self) -> int:
        """The most common action type of training targets; the default action type of requests."""
        return int(str(self.content.get("action_type_id", 0)))

    def model(self, stage: str, device: str | torch.device = "cpu") -> SpacetimeDecoder:
        """Returns the model of a stage in evaluation mode on a device; loaded once.

        Raises:
            MissingInputError: the bundle was trained without this stage.
        """
        key = (stage, str(device))
        if key not in self._loaded:
            if stage not in self.stage_names:
                raise MissingInputError(
                    what=f"stage {stage}",
                    where=str(self.folder),
                    needed_by="The feature job",
                    remedy=f"The bundle holds {', '.join(self.stage_names)}. Train it and register again.",
                )
            model = load_stage(self.folder / STAGE_FOLDERS[stage])
            self._loaded[key] = model.eval().requires_grad_(False).to(device)
        return self._loaded[key]

    def computes_bfloat16(self, device: str | torch.device) -> bool:
        """Tells whether forward passes run in bfloat16: wanted, and the device has units; a CPU is slower with it."""
        is_gpu = torch.device(device).type == "cuda"
        return self.serving.dtype == "bfloat16" and is_gpu and torch.cuda.is_bf16_supported()

    def autocast(self, device: str | torch.device) -> torch.autocast:
        """Returns the context that forward passes run in."""
        kind = torch.device(device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.computes_bfloat16(device))

    @property
    def stages(self) -> dict[str, SpacetimeDecoder]:
        """All stages on the CPU, by name."""
        return {stage: self.model(stage) for stage in self.stage_names}


def load_bundle(path: Path, *, serving: Serving = Serving()) -> ModelBundle:
    """Opens a bundle folder, or a folder that holds one as `bundle/` or `data/bundle/`.

    Raises:
        MissingInputError: there is no bundle.
        CorruptInputError: `bundle.json` cannot be read.
    """
    folder = _find_bundle(Path(path))
    try:
        content = json.loads((folder / BUNDLE_FILE).read_text())
        return ModelBundle(
            folder=folder,
            layout=TokenLayout(**content["layout"]),
            stage_names=tuple(content["stages"]),
            embedding_dim=int(content["embedding_dim"]),
            is_simulated=bool(content["is_simulated"]),
            content=content,
            serving=serving,
        )
    except (ValueError, KeyError, TypeError) as error:  # not JSON, or not a bundle's JSON
        path_text = str(folder / BUNDLE_FILE)
        raise CorruptInputError(
            path=path_text, expected="the description of a model bundle", cause=repr(error)
        ) from error


def save_bundle(
    folder: Path, stage_folders: Mapping[str, Path], *, layout: TokenLayout, content: Mapping[str, object]
) -> Path:
    """Gathers finished stages into a bundle; an older bundle there is replaced as a whole.

    Args:
        folder: where the bundle goes.
        stage_folders: by stage, the folder that `checkpoint.save_stage` wrote.
        layout: token layout of all stages.
        content: further content of `bundle.json`: `embedding_dim`, `is_simulated`, `recipe`, `data`, `skipped` ...
    """
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    for stage, source in stage_folders.items():
        target = fresh / STAGE_FOLDERS[stage]
        target.mkdir(parents=True)
        for name in (CONFIG_FILE, MODEL_FILE, CHECKSUM_FILE):
            shutil.copyfile(source / name, target / name)
    described = {
        "format": FORMAT,
        "stages": list(stage_folders),
        "layout": vars(layout),
        "fingerprint": layout.fingerprint(),
        **content,
    }
    (fresh / BUNDLE_FILE).write_text(json.dumps(described, indent=2, sort_keys=True, default=str) + "\n")
    # A kill between these two lines leaves no bundle, never half of one; the stages can be collected again.
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return folder


def describe_bundle(bundle: ModelBundle, content: Mapping[str, object]) -> None:
    """Adds content to `bundle.json` of a bundle that is not registered yet."""
    described = {**bundle.content, **content}
    write_json(bundle.folder / BUNDLE_FILE, described)


def resolve_model(uri: str, settings: Settings) -> tuple[Path, str]:
    """Resolves a model URI to (local bundle folder, model version).

    Args:
        uri: `models:/name@alias`, `models:/name/3`, or a folder; the version of a folder is a digest of its
            files.
        settings: settings with the tracking store.

    Raises:
        MissingInputError: there is no such model, or it holds no bundle.
    """
    # MLflow takes seconds to import, and a worker that only loads a folder does not need it.
    from models.tracking import resolve_model_uri

    registered = resolve_model_uri(uri, settings.mlflow)
    if registered is not None:
        folder, version = registered
        return _find_bundle(folder), version
    folder = _find_bundle(Path(uri))
    return folder, f"folder-{digest_folder(folder)}"


def digest_folder(folder: Path) -> str:
    """Returns 16 hex digits over names and contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _find_bundle(path: Path) -> Path:
    for folder in (path, path / "bundle", path / "data" / "bundle"):
        if (folder / BUNDLE_FILE).is_file():
            return folder
    raise MissingInputError(
        what="a model bundle (bundle.json)",
        where=str(path),
        needed_by="The job",
        remedy="Train one with: python -m models train --day DAY, or give another --model.",
    )
