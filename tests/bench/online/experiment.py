"""One city of the experiment: its configuration, its folder, and commands that run in it.

Commands run as on the command line, in this process. From the first day of the A/B test on, the impressions that the
city delivers are those that the arms showed, and its actions hold the visits that followed clicks.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import Settings, load_settings
from etl.city import source
from models.config import Recipe, load_recipe
from models.serving.bundle import ModelBundle, load_bundle
from models.training.pipeline import Training, open_training
from tests import small_city

CONFIG = Path("conf/bench/online.yaml")
LOGGER = logging.getLogger(__name__)
COMPILED, INTERPRETED = "FALLBACK", "NO_CODEGEN"
"""How Spark evaluates expressions: compiled for all history, interpreted for the few rows of one night."""


@dataclass(frozen=True)
class Experiment:
    """A city, and what is done in it.

    Attributes:
        folder: tables, models and figures.
        seed: of the city.
        content: the configuration as committed.
        config_hash: of its file, 12 hex digits.
    """

    folder: Path
    seed: int
    content: Mapping[str, Any]
    config_hash: str

    @property
    def trained(self) -> date:
        """Day of the training."""
        found: date = self.content["trained"]
        return found

    def ab_day(self, number: int) -> date:
        """Returns a day of the A/B test, from 1."""
        return self.trained + timedelta(days=number)

    @property
    def layer(self) -> Path:
        """Settings of all commands."""
        return self.folder / "settings.yaml"

    @property
    def settings(self) -> Settings:
        """Returns the settings of all commands."""
        return load_settings([self.layer])

    @property
    def recipe(self) -> Recipe:
        """Returns the recipe of the model."""
        return load_recipe(self.content["recipe"], self.content["recipe_keys"])

    @property
    def training(self) -> Training:
        """Opens the training."""
        return open_training(self.settings, str(self.trained), self.recipe)

    @property
    def bundle(self) -> ModelBundle:
        """Loads the trained model."""
        return load_bundle(self.training.bundle_folder)

    def log_file(self, day: date, what: str) -> Path:
        """Returns where the log of a day of the A/B test is: impressions or visits."""
        return self.folder / "log" / f"{day}-{what}.parquet"

    def run(self, program: str, *words: str) -> dict[str, object]:
        """Runs a command.

        Raises:
            RuntimeError: it ended with another exit code than 0.
        """
        LOGGER.info("seed %d: %s %s", self.seed, program, " ".join(words))
        return small_city.run(self.layer, program, *words)

    def set_evaluation(self, factory_mode: str) -> None:
        """Writes the settings with another way to evaluate expressions; ends a session that has the old one."""
        text = yaml.safe_dump(_layer(self, factory_mode), sort_keys=False)
        if not self.layer.exists() or self.layer.read_text() != text:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.layer.write_text(text)
            small_city.close_spark()

    def night(self, day: date) -> None:
        """Runs the ETL of a day, with what the arms showed if it is one of the A/B test."""
        with delivering(self):
            self.run("etl", "night", "--source", "synthetic", "--day", str(day))


def open_experiment(seed: int, work: Path, config: Path = CONFIG) -> Experiment:
    """Reads the configuration; the folder carries its hash and the seed."""
    text = config.read_bytes()
    config_hash = hashlib.sha256(text).hexdigest()[:12]
    return Experiment(work / f"{config_hash}-{seed}", seed, yaml.safe_load(text), config_hash)


def prepare(experiment: Experiment, threads: int) -> None:
    """Delivers all history and trains; does nothing if that is done."""
    done = experiment.folder / "prepared.json"
    if done.exists():
        experiment.set_evaluation(INTERPRETED)
        return
    experiment.set_evaluation(COMPILED)
    day = str(experiment.trained)
    experiment.night(experiment.trained)
    experiment.run("etl", "samples", "--day", day)
    experiment.run("udfs", "poi_vectors", "--day", day)
    if experiment.recipe.decoder.crowd.enabled:
        experiment.run("etl", "training_others", "--day", day)
    keys = [word for key in experiment.content["recipe_keys"] for word in ("--set-recipe", key)]
    recipe = ("--recipe", str(experiment.content["recipe"]), *keys)
    summary = experiment.run(
        "models", "train", "--day", day, *recipe, "--max-targets", "300", "--threads", str(threads)
    )
    experiment.set_evaluation(INTERPRETED)
    done.write_text(json.dumps({"config": experiment.config_hash, "training": summary["notes"]}, default=str))


@contextlib.contextmanager
def delivering(experiment: Experiment) -> Iterator[None]:
    """Has the synthetic source deliver the log of the A/B test."""
    read = source.SyntheticCity.read

    def changed(
        self: source.SyntheticCity, spark: SparkSession, settings: Settings, *, day: date, **more: object
    ) -> Mapping[str, DataFrame]:
        tables = dict(read(self, spark, settings, day=day, **more))  # type: ignore[arg-type]
        shown, visits = (experiment.log_file(day, what) for what in ("impressions", "visits"))
        if shown.exists():
            tables["raw_impressions"] = spark.read.parquet(str(shown.absolute()))
            followed = spark.read.parquet(str(visits.absolute()))
            more = {"corrupt_record": F.lit(None).cast("string"), "is_simulated": F.lit(True)}
            # The city's own rows also say what was planted in them.
            tables["raw_actions"] = tables["raw_actions"].unionByName(
                followed.withColumns(more), allowMissingColumns=True
            )
        return tables

    source.SyntheticCity.read = changed  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        source.SyntheticCity.read = read  # type: ignore[method-assign]


def _layer(experiment: Experiment, factory_mode: str) -> dict[str, object]:
    folder, settings = experiment.folder, experiment.content["settings"]
    return {
        "storage": {"root": str(folder / "warehouse"), "artifacts": str(folder / "artifacts")},
        "mlflow": {
            "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}", "artifact_root": str(folder / "mlruns"),
            "model_name": "online",
        },
        # The champion's gate is not what is tried here: the trained model is served whatever it says.
        "features": {"model": f"{folder}/artifacts/training/{experiment.trained}/bundle"},
        "spark": {
            "driver_memory": "3g", "shuffle_partitions": 1, "quick_start": True,
            "conf": {
                "spark.python.daemon.module": "udfs.worker_daemon",
                "spark.sql.codegen.factoryMode": factory_mode,
            },
        },
        "city": {**settings["city"], "seed": experiment.seed},
        "samples": settings["samples"],
    }  # fmt: skip


def clear_environment() -> None:
    """Forgets settings of another warehouse."""
    os.environ.pop("SPACETIME_CONF", None)
