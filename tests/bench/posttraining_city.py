"""Makes the cities of the post-training benches, simulated ones or of check-ins, by the jobs of a night and a training.

Two deliveries: all up to the last pre-training day, then the rest. So pre-training knows neither an action nor a POI of
later days; the requests after it are dealt by time to SFT and DPO, ranker and test. A step that is done is not done
again.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from deltalake import DeltaTable, write_deltalake

from conf.settings import Settings, load_model
from models.data.catalogue import day_ms
from models.data.dataset import TableAt, read_table

LOGGER = logging.getLogger(__name__)
CONFIG = Path("conf/bench/posttraining.yaml")
MS_PER_DAY = 86_400_000
VERSIONS_FILE = "versions.json"
SAMPLE_TABLES = ("ranking_samples", "preference_pairs")
NULL_CLICK_RATE = 0.15
NUM_FEW_VAL = 1_000
"""Validation requests, at most, where only a part of the training requests is used."""
STRETCHES = ("sft", "ranker", "test")
DEVELOPMENT_SEED = 5
SYNTHETIC = "synthetic"
FIRST_NIGHT = {SYNTHETIC: "city.num_requests=0", "checkins": "impressions.since_days=1"}
"""Setting that spares the first night requests that nobody reads, by source."""


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
        folder: where samples, cells and figures are.
        home: where tables and settings are; the same, but for a null city.
        content: the configuration as committed, seed filled in.
        days: how its life is cut.
        config_hash: of the configuration file, 12 hex digits.
    """

    folder: Path
    home: Path
    content: dict[str, dict[str, object]]
    days: Days
    config_hash: str

    @property
    def root(self) -> Path:
        """Folder of the tables."""
        return self.home / "warehouse"

    @property
    def source(self) -> str:
        """Source of the city's nights."""
        return str(self.content.get("source", SYNTHETIC))

    @property
    def settings_file(self) -> Path:
        """Settings of the city's jobs."""
        return self.home / "settings.yaml"

    def settings(self) -> Settings:
        """Settings of the city's jobs."""
        return load_model(Settings, [self.settings_file])

    def table(self, name: str) -> TableAt:
        """A table of the city, newest version."""
        return TableAt(str(self.root / name))

    def sft_table(self, name: str, rule: str = "") -> TableAt:
        """Samples of the SFT days with the splits train and val; preference pairs are those of one rule."""
        return TableAt(str(self.folder / f"sft_{name}{'_' if rule else ''}{rule}"))

    def few_sft_samples(self, num_requests: int) -> TableAt:
        """Ranking samples of the SFT days with so many training requests, 0 = all; written once.

        The requests of a smaller number are among those of a larger one; so are those of validation.
        """
        whole = self.sft_table("ranking_samples")
        if not num_requests:
            return whole
        few = TableAt(f"{whole.location}_{num_requests}")
        _once(self, f"sft-{num_requests}", lambda: _write_few(whole, few, num_requests))
        return few

    def table_then(self, name: str) -> TableAt:
        """A table of the city as it stood on the last pre-training day."""
        versions = json.loads((self.home / VERSIONS_FILE).read_text())
        return TableAt(str(self.root / name), versions[name])


def open_city(seed: int, work: Path, config: Path = CONFIG, *, data: Path | None = None) -> City:
    """Reads the configuration; of check-ins the seed only names the folder, and `data` is where they are."""
    text = config.read_bytes()
    content = yaml.safe_load(text)
    if data is None:
        content["settings"]["city"]["seed"] = seed
    else:
        content["settings"]["source"] = {"path": str(data.absolute())}
    config_hash = hashlib.sha256(text).hexdigest()[:12]
    folder = work / f"{config_hash}-{seed}"
    return City(folder, folder, content, Days(**content["days"]), config_hash)


def make_null_city(city: City) -> City:
    """Returns the city with clicks that depend on nothing.

    Nobody's actions depend on clicks, so only the labels differ from the city that it is made of.
    """
    null = replace(city, folder=city.home / "null")
    null.folder.mkdir(exist_ok=True)
    _once(
        null,
        "oracle",
        lambda: shutil.copytree(
            city.folder / "oracle.parquet", null.folder / "oracle.parquet", dirs_exist_ok=True
        ),
    )
    _once(null, "split", lambda: _split(null, names=("ranking_samples",), is_null=True))
    return null


def make_city(city: City) -> None:
    """Runs what is not done yet."""
    city.folder.mkdir(parents=True, exist_ok=True)
    root, artifacts = str(city.root), str(city.folder / "artifacts")
    settings = {**city.content["settings"], "storage": {"root": root, "artifacts": artifacts}}
    city.settings_file.write_text(yaml.safe_dump(settings))
    first, last = str(city.days.pretrain), str(city.days.test)
    source = ("--source", city.source)
    _run(city, "night", *source, "--day", first, "--set", FIRST_NIGHT[city.source])
    _run(city, "pretrain_samples", "--day", first)
    _once(city, "versions", lambda: _save_versions(city))
    # The second delivery holds two months: without the option the job would refuse the gap.
    _run(city, "night", *source, "--day", last, "--any-day", "--set", f"source.since={first}")
    _run(city, "ranking_samples", "--day", last)
    _run(city, "preference_pairs", "--day", last)
    if city.source == SYNTHETIC:
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


def _split(city: City, *, names: Sequence[str] = SAMPLE_TABLES, is_null: bool = False) -> None:
    """Writes the samples again, dealt by time; SFT and DPO tables in the form that the stages read."""
    for name in names:
        table = city.table(name)
        columns = [c for c in _columns(table) if c not in ("split", "is_travels", "is_interests")]
        rows = read_table(table, columns)
        stretch = stretch_of(city.days, rows["request_ts_ms"].to_numpy())
        rows = rows.append_column("stretch", pa.array(stretch))
        if is_null:
            rows = rows.set_column(
                rows.schema.get_field_index("labels"), "labels", _draw_labels(rows["labels"])
            )
        if name == "ranking_samples":
            pq.write_table(rows, city.folder / f"{name}.parquet", row_group_size=2_000)
        sft = rows.filter(pc.is_in(rows["stretch"], pa.array(["sft", "sft-val"])))
        split = pc.if_else(pc.equal(sft["stretch"], "sft"), "train", "val")
        sft = sft.drop_columns("stretch").append_column("split", split)
        for rule in _rules(sft):
            of_rule = sft.filter(pc.equal(sft["rule"], rule)) if rule else sft
            write_deltalake(str(city.sft_table(name, rule).location), of_rule, mode="overwrite")


def _write_few(whole: TableAt, few: TableAt, num_requests: int) -> None:
    rows = DeltaTable(whole.location).to_pyarrow_table()
    kept = []
    for split, most in (("train", num_requests), ("val", NUM_FEW_VAL)):
        own = rows.filter(pc.equal(rows["split"], split))
        digests = [hashlib.sha256(name.encode()).digest() for name in own["request_id"].to_pylist()]
        kept.append(own.take(pa.array(sorted(range(len(digests)), key=digests.__getitem__)[:most])))
    write_deltalake(str(few.location), pa.concat_tables(kept), mode="overwrite")


def _rules(rows: pa.Table) -> list[str]:
    return sorted(rows["rule"].unique().to_pylist()) if "rule" in rows.column_names else [""]


def _draw_labels(labels: pa.ChunkedArray) -> pa.ListArray:
    """Returns clicks drawn by chance, in lists of the same lengths."""
    lists = pa.concat_arrays(labels.chunks)
    drawn = np.random.default_rng(0).random(len(lists.flatten())) < NULL_CLICK_RATE
    lengths = np.diff(lists.offsets.to_numpy(), prepend=0)
    lengths[0] = 0
    return pa.ListArray.from_arrays(np.cumsum(lengths, dtype=np.int32), pa.array(drawn.astype(np.int32)))


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
