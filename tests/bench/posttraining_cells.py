"""The trained models behind Tables 4, 8 and 9: one cell each, kept in the city's folder, made once."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import torch
from torch import Tensor, nn

from conf.tokens import TokenLayout
from models.config import Recipe
from models.data.dataset import read_table
from models.image_encoder import decode_image, load_image_encoder
from models.network.checkpoint import load_stage
from models.serving.bundle import ModelBundle, load_bundle, save_bundle
from models.text_encoder import load_encoder
from models.training.align_dpo import PAIR_COLUMNS, AlignStage, pair_log_probs, run_align_dpo
from models.training.multimodal import SlotVectors, join_vectors
from models.training.posttraining import SampleSource, SftRun, Splits, run_stage
from models.training.pretrain import PretrainTables, build_decoder, load_pretrained, run_pretrain
from models.training.sft_embedding import run_sft_embedding
from models.training.sft_ranking import run_sft_ranking
from models.training.stage import TrainResult
from tests.bench.posttraining_city import City

LOGGER = logging.getLogger(__name__)
MAX_PIXELS = 10_000
SFT_KINDS = ("scratch", "pretrained", "multimodal")
FUSED = {
    "multimodal": ("poi_vectors",),
    "pictures": ("poi_image_vectors",),
    "texts-and-pictures": ("poi_vectors", "poi_image_vectors"),
    "texts-and-shuffled": ("poi_vectors", "shuffled"),
}
"""What the SFT stages of a kind fuse: texts, pictures, or as a control pictures dealt to POIs at random."""
ALIGNMENTS = ("dpo", "s-dpo", "control")
ALIGN_UPDATES: Mapping[str, Mapping[str, object]] = {
    "s-dpo": {"loss": "s-dpo"},
    # Its pairs hold other times by being there both ways round, which only this loss takes seriously; telling the
    # hours apart takes more steps than liking places to eat at all of them.
    "meal-time": {
        "loss": "ipo",
        "beta": 0.5,
        "chosen_weight": 0.0,
        "learning_rate": 3e-3,
        "max_steps": 1000,
    },
}
"""What an alignment changes of the recipe."""


class ClickControl(AlignStage):
    """The control of alignment: the same rows and steps, cross-entropy on the clicked POI, no reference."""

    def loss(self, model: nn.Module, rows: pa.Table) -> tuple[Tensor, int, dict[str, float]]:
        """Returns the summed negative log probability of the clicked POIs."""
        model.eval()  # as in alignment
        device = next(model.parameters()).device
        chosen = pair_log_probs(model, rows, self.slots.to(device))[0].chosen_B  # type: ignore[arg-type]
        chosen = chosen[chosen.isfinite()]
        return -chosen.sum(), len(chosen), {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Returns the mean loss."""
        found = [self.loss(model, rows)[:2] for rows in self.splits.val.read()]
        return {"val/loss": sum(float(loss) for loss, _ in found) / max(sum(n for _, n in found), 1)}


class Cells:
    """Trains the cells of one city, each when it is first asked for."""

    def __init__(self, city: City, recipe: Recipe, *, pretrained: Path | None = None) -> None:
        """Opens the cells; `pretrained` is that of another city with the same actions."""
        self._pretrained = pretrained
        self.city, self.recipe = city, recipe
        self.folder = city.folder / f"cells-{recipe.name}"
        self.last_day, self.first_day = str(city.days.test), str(city.days.pretrain)
        self.tables = PretrainTables(
            *(city.table_then(name) for name in ("pretrain_samples", "poi_index", "blocks"))
        )

    @property
    def pretrained(self) -> Path:
        """Folder of the pre-trained model."""
        return self._pretrained or self._cell("pretrain", self._pretrain)

    def sft(self, stage: str, kind: str, num_requests: int = 0) -> Path:
        """Folder of a stage (sft_embedding or sft_ranking), from scratch, pre-trained, or with POI vectors too.

        `num_requests` 0 = all training requests.
        """
        run = {"sft_embedding": run_sft_embedding, "sft_ranking": run_sft_ranking}[stage]
        start = self.pretrained

        def train(folder: Path) -> TrainResult:
            return run(
                SftRun(
                    self.city.few_sft_samples(num_requests),
                    day=self.last_day,
                    recipe=self.recipe,
                    pretrained=start,
                    folder=folder,
                    log=_no_log,
                    vectors=self.slot_vectors(FUSED[kind]) if kind in FUSED else None,
                    from_scratch=kind == "scratch",
                )
            )

        return self._cell(f"{stage}-{name_cell(kind, num_requests)}", train)

    def aligned(self, kind: str) -> Path:
        """Folder of DPO or S-DPO on clicks, of their control, or of DPO by the meal-time rule."""
        start = self.pretrained
        pairs = self.city.sft_table("preference_pairs", "meal_time" if kind == "meal-time" else "clicks")
        config = self.recipe.align_dpo.model_copy(update=ALIGN_UPDATES.get(kind, {}))
        recipe = self.recipe.model_copy(update={"align_dpo": config})

        def train(folder: Path) -> TrainResult:
            if kind != "control":
                return run_align_dpo(
                    pairs,
                    self.tables,
                    day=self.last_day,
                    recipe=recipe,
                    pretrained=start,
                    folder=folder,
                    log=_no_log,
                )
            source = SampleSource(pairs, self.last_day, "pair_id", PAIR_COLUMNS)
            splits = Splits(source, config, folder / "scratch")
            torch.manual_seed(config.seed)
            model = load_pretrained(start)
            _, slots = build_decoder(recipe, self.tables.poi_index, self.tables.blocks, model.config.layout)
            stage = ClickControl(splits, config, load_pretrained(start), slots)
            return run_stage(stage, splits, model, config, folder=folder, log=_no_log, made_of=["control"])

        return self._cell(f"align-{kind}", train)

    def slot_vectors(self, tables: Sequence[str]) -> SlotVectors:
        """Vectors of the POIs that existed when SFT was trained, as the jobs of these tables would make them."""
        index = read_table(
            self.city.table("poi_index"), ("poi_id", "block_id", "inner_id", "text", "valid_from")
        )
        index = index.filter(pds.field("valid_from") <= self.city.days.sft).sort_by("poi_id")
        return join_vectors(self._vectors_of(name, index) for name in tables)

    def _vectors_of(self, table: str, index: pa.Table) -> SlotVectors:
        if table == "poi_vectors":
            vectors = load_encoder().encode(index["text"].to_pylist())
        else:
            images = read_table(self.city.table("raw_poi_images"), ("poi_id", "image"))
            content = dict(zip(images["poi_id"].to_pylist(), images["image"].to_pylist(), strict=True))
            index = index.filter(pds.field("poi_id").isin(sorted(content)))
            opened = [
                decode_image(content[poi_id], max_pixels=MAX_PIXELS) for poi_id in index["poi_id"].to_pylist()
            ]
            vectors = load_image_encoder().encode(opened)
            if table == "shuffled":
                vectors = vectors[np.random.default_rng(0).permutation(len(vectors))]
        ids = [torch.from_numpy(index[name].to_numpy().astype(np.int64)) for name in ("block_id", "inner_id")]
        return SlotVectors(ids[0], ids[1], torch.from_numpy(vectors))

    @cache  # noqa: B019 - cells live as long as the run
    def bundle(self, kind: str, num_requests: int = 0) -> ModelBundle:
        """Both SFT stages of a kind as a bundle, for the inference path of the feature jobs."""
        stages = {
            stage: self.sft(stage, kind, num_requests) / "model" for stage in ("sft_embedding", "sft_ranking")
        }
        name = name_cell(kind, num_requests)
        return self.gather(name, {"pretrain": self.pretrained / "model", **stages})

    def gather(self, name: str, stages: Mapping[str, Path]) -> ModelBundle:
        """Makes a bundle of stages; pre-training must be among them."""
        layout: TokenLayout = load_stage(stages["pretrain"]).config.layout
        content = {"embedding_dim": self.recipe.decoder.embedding_dim, "is_simulated": True}
        return load_bundle(
            save_bundle(self.folder / f"bundle-{name}", stages, layout=layout, content=content)
        )

    def _pretrain(self, folder: Path) -> TrainResult:
        return run_pretrain(
            self.tables, day=self.first_day, recipe=self.recipe, layout=None, folder=folder, log=_no_log
        )

    def _cell(self, name: str, train: Callable[[Path], TrainResult]) -> Path:
        folder = self.folder / name
        if not (folder / "result.json").is_file():
            LOGGER.info("%s: training %s", self.city.folder.name, name)
            result = train(folder)
            (folder / "result.json").write_text(json.dumps(asdict(result), indent=1))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            LOGGER.info(
                "%s: %s took %.0f s: %s", self.city.folder.name, name, result.seconds, result.validations[-1]
            )
        return folder


def name_cell(kind: str, num_requests: int) -> str:
    """Returns the name of what was trained on so many requests; 0 = all."""
    return f"{kind}-{num_requests}" if num_requests else kind


def _no_log(metrics: object, step: int) -> None:
    """Metrics of a cell are in its result."""
