"""Makes the simulated cities of the post-training benches, by the jobs that a night and a training run.

Two deliveries: all up to the last pre-training day, then the rest. So pre-training knows neither an action nor a POI of
later days; the requests after it are dealt by time to SFT and DPO, ranker and test. A step that is done is not done
again.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from deltalake import DeltaTable, write_deltalake

from conf.settings import Settings, load_model
from models.catalogue import day_ms
from models.dataset import TableAt, read_table

LOGGER = logging.getLogger(__name__)
CONFIG = Path("conf/bench/posttraining.yaml")
MS_PER_DAY = 86_400_000
VERSIONS_FILE = "versions.json"
STRETCHES = ("sft", "ranker", "test")
DEVELOPMENT_SEED = 5


@dataclass(frozen=True)
class Days:
    """Last day of each stretch; the last `val_days` of a stretch select."""

    pretrain: date
    sft: date
    ranker: date
    test: date
    val_days: int


@dataclass(frozen=True)
class City:
    """One city: a configuration and a seed.

    Attributes:
        folder: where its tables are.
        content: the configuration as committed, seed filled in.
        days: how its life is cut.
        config_hash: of the configuration file, 12 hex digits.
    """

    folder: Path
    content: dict[str, dict[str, object]]
    days: Days
    config_hash: str

    @property
    def root(self) -> Path:
        """Folder of the tables."""
        return self.folder / "warehouse"

    @property
    def settings_file(self) -> Path:
        """Settings of the city's jobs."""
        return self.folder / "settings.yaml"

    def settings(self) -> Settings:
        """Settings of the city's jobs."""
        return load_model(Settings, [self.settings_file])

    def table(self, name: str) -> TableAt:
        """A table of the city, newest version."""
        return TableAt(str(self.root / name))

    def table_then(self, name: str) -> TableAt:
        """A table of the city as it stood on the last pre-training day."""
        versions = json.loads((self.folder / VERSIONS_FILE).read_text())
        return TableAt(str(self.root / name), versions[name])


def open_city(seed: int, work: Path, config: Path = CONFIG, *, null: bool = False) -> City:
    """Reads the configuration; with `null` clicks depend on nothing."""
    text = config.read_bytes()
    content = yaml.safe_load(text)
    city = content["settings"]["city"]
    city["seed"] = seed
    if null:
        city["clicks"] = {**dict.fromkeys(city["clicks"], 0.0), "bias": -1.5}
    config_hash = hashlib.sha256(text).hexdigest()[:12]
    folder = work / f"{config_hash}-{'null-' if null else ''}{seed}"
    return City(folder, content, Days(**content["days"]), config_hash)


def make_city(city: City) -> None:
    """Runs what is not done yet."""
    city.folder.mkdir(parents=True, exist_ok=True)
    root, artifacts = str(city.root), str(city.folder / "artifacts")
    settings = {**city.content["settings"], "storage": {"root": root, "artifacts": artifacts}}
    settings |= {"spark": {"quick_start": True}}
    city.settings_file.write_text(yaml.safe_dump(settings))
    first, last = str(city.days.pretrain), str(city.days.test)
    source = ("--source", "synthetic")
    _run(city, "night", *source, "--day", first, "--set", "city.num_requests=0")
    _run(city, "pretrain_samples", "--day", first)
    _once(city, "versions", lambda: _save_versions(city))
    _run(city, "night", *source, "--day", last, "--set", f"source.since={first}")
    _run(city, "ranking_samples", "--day", last)
    _run(city, "preference_pairs", "--day", last)
    _once(city, "oracle", lambda: _save_oracle(city))
    _once(city, "split", lambda: _split(city))


def stretch_of(days: Days, times_ms: np.ndarray) -> np.ndarray:
    """Returns the stretch of each time: sft, ranker, test, and `-val` for the last days of the first two."""
    found = np.full(len(times_ms), "", dtype="<U10")
    start = days.pretrain
    for name in STRETCHES:
        end = getattr(days, name)
        inside = (times_ms >= day_ms(start + timedelta(days=1))) & (
            times_ms < day_ms(end + timedelta(days=1))
        )
        found[inside] = name
        late = times_ms >= day_ms(end + timedelta(days=1 - days.val_days))
        if name != "test":
            found[inside & late] = f"{name}-val"
        start = end
    return found


def read_requests(city: City, *stretches: str) -> pa.Table:
    """Reads the ranking samples of some stretches, in the order of their ids."""
    samples = pq.read_table(city.folder / "ranking_samples.parquet", filters=[("stretch", "in", stretches)])
    return samples.sort_by("request_id")


def _split(city: City) -> None:
    """Writes the samples again, dealt by time; SFT and DPO tables in the form that the stages read."""
    for name in ("ranking_samples", "preference_pairs"):
        table = city.table(name)
        columns = [c for c in _columns(table) if c not in ("split", "is_travels", "is_interests")]
        rows = read_table(table, columns)
        stretch = stretch_of(city.days, rows["request_ts_ms"].to_numpy())
        rows = rows.append_column("stretch", pa.array(stretch))
        if name == "ranking_samples":
            pq.write_table(rows, city.folder / f"{name}.parquet", row_group_size=2_000)
        sft = rows.filter(pc.is_in(rows["stretch"], pa.array(["sft", "sft-val"])))
        split = pc.if_else(pc.equal(sft["stretch"], "sft"), "train", "val")
        sft = sft.drop_columns("stretch").append_column("split", split)
        write_deltalake(str(city.folder / f"sft_{name}"), sft, mode="overwrite")


def _save_versions(city: City) -> None:
    names = ("pretrain_samples", "poi_index", "blocks")
    versions = {name: DeltaTable(city.table(name).location).version() for name in names}
    (city.folder / VERSIONS_FILE).write_text(json.dumps(versions))


def _columns(table: TableAt) -> list[str]:
    return [field.name for field in DeltaTable(table.location).schema().fields]


def _save_oracle(city: City) -> None:
    command = [sys.executable, "-m", "tests.bench.posttraining_oracle", str(city.folder)]
    subprocess.run([*command, str(city.days.pretrain), str(city.days.test)], check=True)


def _run(city: City, job: str, *options: str) -> None:
    name = "-".join([job, *(word.strip("-").replace("=", "-") for word in options)])
    environment = {**os.environ, "SPACETIME_CONF": str(city.settings_file)}
    command = [sys.executable, "-m", "etl", job, *options]
    _once(city, name, lambda: subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL))


def _once(city: City, name: str, work: Callable[[], object]) -> None:
    done = city.folder / "done" / name
    if done.exists():
        return
    LOGGER.info("%s: %s", city.folder.name, name)
    work()
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps({"config": city.config_hash}))
