"""A small simulated city whose nights the gates are tried on: 30 clean nights, four of which are out of the ordinary.

Nights run as on the command line, in this process. What the city delivers passes through `Story`: from one night on a
tenth more users, one night that is a holiday, from one night on a city that was not there before, and one night whose
features are made by a model trained again. A fault of a delivery (`input_mutants`) is put in at the same place.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.settings import CitySettings, Settings, load_settings
from etl.city import source
from etl.columns.spacetime import event_date
from etl.spark.session import compute_once
from tests import small_city

FIRST = date(2026, 1, 1)
HISTORY_DAYS, NUM_NIGHTS = 29, 30
MORE_USERS, HOLIDAY, NEW_CITY, RETRAINED = 9, 14, 19, 24
"""Numbers of the nights out of the ordinary, counted from 1."""
FEATURES = {RETRAINED: "features-retrained", NUM_NIGHTS: "features"}
"""Nights whose features are kept aside before their audit, and under which name; one has vectors of all POIs."""
RECIPE = (
    "decoder.hidden_dim=32", "decoder.ffn_dim=64", "decoder.embedding_dim=32", "pretrain.epochs=6",
    "sft_embedding.max_steps=600", "sft_ranking.max_steps=400", "align_dpo.max_steps=10",
)  # fmt: skip
Change = Callable[[Mapping[str, DataFrame], date], Mapping[str, DataFrame]]


def day_of(night: int) -> date:
    """Returns the day of a night; 0 = the first delivery, of all history."""
    return FIRST + timedelta(days=HISTORY_DAYS + night)


@dataclass
class World:
    """A folder with everything of one run of the city.

    Attributes:
        folder: of tables, models and artifacts.
        layer: its settings file.
    """

    folder: Path
    layer: Path = field(init=False)

    def __post_init__(self) -> None:
        self.layer = self.folder / "settings.yaml"

    @property
    def settings(self) -> Settings:
        """Returns its settings."""
        return load_settings([self.layer])

    def copy(self, folder: Path) -> "World":
        """Copies tables and artifacts; models stay where they are, since nothing here changes them."""
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("warehouse", "artifacts"):
            shutil.copytree(self.folder / part, folder / part)
        content = yaml.safe_load(self.layer.read_text())
        content["storage"] = {"root": str(folder / "warehouse"), "artifacts": str(folder / "artifacts")}
        (folder / "settings.yaml").write_text(yaml.safe_dump(content))
        return World(folder)

    def run(self, program: str, *words: str, code: int = 0) -> dict[str, object]:
        """Runs a command."""
        return small_city.run(self.layer, program, *words, code=code)

    def deliver(self, night: int, change: Change | None = None) -> None:
        """Runs the ETL of a night."""
        with told(self.settings.city, change):
            self.run("etl", "night", "--source", "synthetic", "--day", str(day_of(night)))

    def audit(self, night: int) -> dict[str, object]:
        """Audits a night whatever comes of it; the record tells."""
        try:
            return self.run("udfs", "audit", "--day", str(day_of(night)))
        except RuntimeError as error:
            return {"message": str(error)}

    def train(self, night: int) -> dict[str, object]:
        """Trains and registers a model on what is known after a night."""
        day, recipe = str(day_of(night)), [word for key in RECIPE for word in ("--set-recipe", key)]
        self.run("etl", "samples", "--day", day)
        return self.run("models", "train", "--day", day, *recipe)


def make_world(folder: Path) -> World:
    """Writes the settings of the city."""
    small_city.write_settings(folder, num_users=300, num_pois=700)
    layer = folder / "settings.yaml"
    content = yaml.safe_load(layer.read_text())
    content["city"] |= {
        "num_days": HISTORY_DAYS + NUM_NIGHTS + 3, "num_actions": 24_000, "num_requests": 3_600,
        "first_day": str(FIRST),
    }  # fmt: skip
    content["samples"] = {"val_days": 4, "test_days": 4}
    content["mlflow"] |= {"model_name": "gates"}
    content["features"] = {"top_k": 20, "model": "models:/gates@champion"}
    layer.write_text(yaml.safe_dump(content))
    return World(folder)


@contextlib.contextmanager
def told(city: CitySettings, change: Change | None = None) -> Iterator[None]:
    """Has the synthetic source tell the story, and then a fault."""
    read = source.SyntheticCity.read

    def changed(
        self: source.SyntheticCity, spark: SparkSession, settings: Settings, *, day: date, **more: object
    ) -> Mapping[str, DataFrame]:
        tables = tell_story(read(self, spark, settings, day=day, **more), city, day)  # type: ignore[arg-type]
        return change(tables, day) if change is not None else tables

    source.SyntheticCity.read = changed  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        source.SyntheticCity.read = read  # type: ignore[method-assign]


def tell_story(tables: Mapping[str, DataFrame], city: CitySettings, day: date) -> dict[str, DataFrame]:
    """Withholds what is not there yet, and thins out the holiday."""
    changed = dict(tables)
    if day < day_of(MORE_USERS):
        for name in ("raw_actions", "raw_impressions", "raw_profiles"):
            changed[name] = changed[name].where(~F.coalesce(F.col("user_id").endswith("7"), F.lit(False)))
    if day < day_of(NEW_CITY):
        for name in ("raw_actions", "raw_pois"):
            changed[name] = changed[name].where(~in_new_city(city))
        shown = changed["raw_impressions"]
        # A request is answered from what is known: one that shows POIs of the new city is not made yet.
        hidden = compute_once(changed["raw_impressions"].where(~is_near_centre(city, "user_lon", "user_lat")))
        changed["raw_impressions"] = shown.join(
            hidden.select("request_id").distinct(), "request_id", "left_anti"
        )
    if day == day_of(HOLIDAY):
        hour = F.expr("pmod(floor((action_ts_ms + 60000L * coalesce(tz_offset_min, 0)) / 3600000), 24)")
        stays = (hour >= 9) & (F.pmod(F.xxhash64("action_id"), F.lit(10)) < 8)
        is_today = event_date(F.col("action_ts_ms")) == F.lit(day)
        changed["raw_actions"] = changed["raw_actions"].where(F.coalesce(~is_today | stays, F.lit(True)))
    return changed


def in_new_city(city: CitySettings) -> F.Column:
    """Is a POI in the city that comes later? The southern ones of those that are far from the main city."""
    is_far = ~is_near_centre(city, "poi_lon", "poi_lat")
    return F.coalesce(is_far & (F.col("poi_lat") < city.center_lat), F.lit(False))


def is_near_centre(city: CitySettings, lon: str, lat: str) -> F.Column:
    """Lies a place within about a degree of the main city's centre?"""
    return (F.abs(F.col(lon) - city.center_lon) < 1.0) & (F.abs(F.col(lat) - city.center_lat) < 1.0)


def live_through(world: World, say: Callable[[str], None]) -> list[dict[str, object]]:
    """Runs what is not done yet of first delivery, training and clean nights; returns what each night's gates said.

    The state lies in the folder, so that a run that was stopped goes on. Before its last night the world is kept aside
    (`eve`), and its features unaudited (`features`): faults start from there.
    """
    state_file = world.folder / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {"night": -1, "told": []}
    for night in range(state["night"] + 1, NUM_NIGHTS + 1):
        if night == NUM_NIGHTS:
            world.copy(world.folder / "eve")
        world.deliver(night)
        day, refused = str(day_of(night)), []
        if night in (0, RETRAINED):
            notes = world.train(night)["notes"]
            assert isinstance(notes, dict)
            if not notes["is_champion"]:
                refused = [f"the model: {reason}" for reason in notes["gate"]["reasons"]]
        world.run("udfs", "features", "--day", day)
        if night in FEATURES:
            world.copy(world.folder / FEATURES[night])
        audit = world.audit(night)
        record = json.loads((world.folder / "artifacts" / "audits" / f"{day}.json").read_text())
        if record["is_passed"]:
            world.run("udfs", "publish", "--day", day)
        refused += record["failures"]
        state["told"].append({
            "night": night, "refused": refused, "warnings": record["warnings"],
            "audit_seconds": audit.get("seconds"),
        })  # fmt: skip
        state["night"] = night
        state_file.write_text(json.dumps(state, indent=1))
        say(f"night {night} of {NUM_NIGHTS}: {refused or 'passed'}; warnings: {record['warnings']}")
    return list(state["told"])
