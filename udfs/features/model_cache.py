"""The model in Spark: resolved and checked on the driver, loaded once per Python worker process.

The driver resolves a model URI to a folder of safetensors and JSON (`serve_model`), checks that the day's index
fits the model (`check_index`) and sends a small `ServedModel` with the tasks. A worker loads the folder when
its first batch arrives and keeps it for as long as the process lives (`load_model`), on the device that Spark
gave to its task.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pyspark import Accumulator, SparkFiles, TaskContext
from pyspark.sql import SparkSession

from conf.errors import CapacityError, FingerprintError, IndexVersionError
from conf.settings import Settings
from conf.tokens import TokenLayout
from models.serving.bundle import ModelBundle, Serving, digest_folder, load_bundle, resolve_model
from models.serving.probe import check_bundle

LOGGER = logging.getLogger(__name__)

_loaded: dict[tuple[str, str, Serving], ModelBundle] = {}


@dataclass(frozen=True)
class ServedModel:
    """The facts that a worker needs to load the model, and the lineage that every row records.

    Attributes:
        uri: the model URI as given; named in errors.
        folder: the bundle's folder on the driver, or its name among Spark's files if `is_shipped`.
        is_shipped: whether the folder was sent to the executors, because they do not see the driver's disk.
        model_version: goes into every row.
        layout: token layout that the weights were trained for.
        digest: over all files of the bundle; a retrained bundle in the same folder is another model.
        is_simulated: whether it was trained on simulated data.
        loads: counts how often a worker process loaded the weights.
        serving: how its forward passes are run.
        copies_from_crowd: whether its generator needs the co-visitation tables.
        action_type_id: the action type of requests that name none.
        missing_stages: stages that the bundle was trained without, and why.
    """

    uri: str
    folder: str
    is_shipped: bool
    model_version: str
    layout: TokenLayout
    digest: str
    is_simulated: bool
    loads: Accumulator[int]
    serving: Serving = field(default_factory=Serving)
    copies_from_crowd: bool = False
    action_type_id: int = 0
    missing_stages: Mapping[str, str] = field(default_factory=dict)

    @property
    def index_version(self) -> int:
        return self.layout.index_version


def serve_model(spark: SparkSession, uri: str, settings: Settings) -> ServedModel:
    """Resolves a model URI on the driver, checks the model once, and makes its folder reachable for the workers.

    Args:
        spark: session whose workers will load the model.
        uri: MLflow URI (`models:/name@alias`, `models:/name/3`) or the folder of a bundle.
        settings: where MLflow keeps models.

    Raises:
        MissingInputError: no such model or folder.
        FingerprintError: the bundle was written for another token layout than this code makes.
        DamagedModelError: a stage cannot be loaded, or is not what was registered.
    """
    path, model_version = resolve_model(uri, settings)
    bundle = load_bundle(path)
    expected, stored = bundle.layout.fingerprint(), str(bundle.content.get("fingerprint"))
    if stored != expected:
        raise FingerprintError(path=path, expected=expected, found=stored)
    check_bundle(bundle, uri=uri)
    folder, is_shipped = str(path.absolute()), False
    if not str(spark.sparkContext.master).startswith("local"):
        folder, is_shipped = ship_folder(spark, path), True
    return ServedModel(
        uri=uri,
        folder=folder,
        is_shipped=is_shipped,
        model_version=model_version,
        layout=bundle.layout,
        digest=digest_folder(path),
        is_simulated=bundle.is_simulated,
        loads=spark.sparkContext.accumulator(0),
        serving=Serving(settings.features.dtype, settings.features.max_actions),
        copies_from_crowd=bundle.copies_from_crowd,
        action_type_id=bundle.action_type_id,
        missing_stages=bundle.missing_stages,
    )


def ship_folder(spark: SparkSession, path: Path) -> str:
    """Sends a folder to the executors and returns its name among Spark's files.

    The folder is sent as an archive, which executors unpack: Spark accepts a local folder only if its master is
    local. The archive is named after its content, since Spark sends a file of one name only once.
    """
    name = digest_folder(path)
    # The archive lies with the files that this session shares, so it is removed with them.
    shared = Path(SparkFiles.getRootDirectory()) / "models" / name
    spark.sparkContext.addArchive(shutil.make_archive(str(shared), "zip", path))
    return f"{name}.zip"


def check_index(
    model: ServedModel, *, index_version: int, num_blocks: int, max_inner: int, num_categories: int
) -> None:
    """Checks that an index of this version and size can be read by the model.

    Raises:
        IndexVersionError: the ids were reassigned since the model was trained.
        CapacityError: the index has outgrown an embedding table.
    """
    layout = model.layout
    if index_version != layout.index_version:
        raise IndexVersionError(model_uri=model.uri, trained_on=layout.index_version, found=index_version)
    for what, capacity, size in (
        ("blocks", layout.num_blocks, num_blocks),
        ("inner ids", layout.max_inner, max_inner),
        ("categories", layout.num_categories, num_categories),
    ):
        if size > capacity:
            raise CapacityError(model_uri=model.uri, what=what, capacity=capacity, found=size)


def load_model(model: ServedModel) -> ModelBundle:
    """Returns the model of this worker process, loading it if this is its first task.

    Raises:
        FingerprintError: the folder on this worker is not the one that the driver checked.
    """
    key = (model.folder, model.digest, model.serving)
    if key not in _loaded:
        path = Path(SparkFiles.get(model.folder)) if model.is_shipped else Path(model.folder)
        # The folder may be overwritten by a training between the driver's check and this worker's first task.
        digest = digest_folder(path)
        if digest != model.digest:
            raise FingerprintError(path=path, expected=model.digest, found=digest)
        # One thread per task: Spark already runs a task per core, and two threads on busy cores are slower
        # than one.
        torch.set_num_threads(1)
        # The old weights are dropped first: a worker that outlives its model must not hold two models.
        _loaded.clear()
        _loaded[key] = load_bundle(path, serving=model.serving)
        model.loads.add(1)
        LOGGER.info("loaded model %s from %s", model.model_version, path)
    return _loaded[key]


def task_device() -> str:
    """Returns the GPU that Spark assigned to the running task, or the CPU if it assigned none.

    Spark does not set CUDA_VISIBLE_DEVICES, so the address itself names the device.
    """
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context is not None else None
    return f"cuda:{gpu.addresses[0]}" if gpu is not None and gpu.addresses else "cpu"
