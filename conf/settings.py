"""Settings of the ETL and feature jobs: frozen models, layered YAML, `--set a.b=value`; unknown keys are refused.

`python -m conf.settings` prints every key with its default and meaning.

Layers, later ones win: `conf/base.yaml` < every `--conf PATH` in order < every `--set`. Only this file reads the
environment: `SPACETIME_CONF` may name further layers, separated by `:`, between base and `--conf`.

`--set` takes text literally, not as YAML reads it: a path may hold ` #` or `*`, or be called `no` or `2012`.
Numbers, switches and days are written as such; lists and mappings as YAML.
"""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import reduce
from pathlib import Path
from types import UnionType
from typing import Annotated, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from conf.errors import MissingInputError, SettingsError

CONF_DIR = Path(__file__).parent
M = TypeVar("M", bound=BaseModel)
NULL_WORDS = ("", "~", "null", "Null", "NULL")
"""How YAML spells "no value", where a setting may have none."""
CATALOG_PREFIX = "catalog:"
"""What a table root begins with that is the name of a metastore's schema."""


def _require_day(value: object) -> object:
    """Takes a day or its ISO text; pydantic alone would also take a number, as seconds since 1970."""
    if isinstance(value, str):
        return date.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise ValueError(f"{value!r} is no day; write it as YYYY-MM-DD")


Day = Annotated[date, BeforeValidator(_require_day)]


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice in one mapping: PyYAML silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def rename_keys(model: type[BaseModel], content: Mapping[str, object]) -> dict[str, object]:
    """Replaces old names of keys by their present names, at every level, so that layers can be merged."""
    old_names: Mapping[str, str] = getattr(model, "renamed", {})
    removed: Mapping[str, object] = getattr(model, "removed", {})
    renamed: dict[str, object] = {}
    for name, value in content.items():
        if name in removed and (tuple(value) if isinstance(value, list) else value) == removed[name]:
            continue  # another value is an unknown key
        current_name = old_names.get(name, name)
        field = model.model_fields.get(current_name)
        kind = field.annotation if field is not None else None
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
            value = rename_keys(kind, value)
        renamed[current_name] = value
    return renamed


class Section(BaseModel):
    """A frozen group of settings; a misspelt key is an error.

    Attributes:
        renamed: old name of a key -> present name. Files and options may use either.
        removed: key that no longer exists -> its only value now. Files that give this value still load.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    renamed: ClassVar[Mapping[str, str]] = {}
    removed: ClassVar[Mapping[str, object]] = {}

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, content: object) -> object:
        return rename_keys(cls, content) if isinstance(content, Mapping) else content


class StorageSettings(Section):
    root: str = Field(
        "warehouse", description="folder or URI of the Delta tables, or catalog:NAME for a metastore"
    )
    artifacts: str = Field("artifacts", description="folder for reports, Data Docs and checkpoints")

    @field_validator("root")
    @classmethod
    def _spelt_alike(cls, root: str) -> str:
        """Refuses a root that Spark, deltalake and pyarrow would not all read as the same folder.

        They decode differently: Spark takes a path literally, the others read `%20` as a blank and a backslash as a
        slash. In a URI the part after `#` or `?` is no path. Delta's SQL ends at a backtick.
        """
        scheme, separator, _ = root.partition("://")
        if scheme == "file" or root.startswith("file:/"):
            root = "/" + root.removeprefix("file:").lstrip("/")
            separator = ""
        if separator:
            odd = re.search(r"[#?%`\\\s]", root)
        elif root.startswith(CATALOG_PREFIX):
            odd = None
        else:
            odd = re.search(r"%[0-9A-Fa-f]{2}|[`\\]", str(Path(root).absolute()))
        if odd:
            raise ValueError(
                f"the path {root!r} holds {odd[0]!r}, which some readers of Delta read as something else, so "
                "they would look into another folder; choose a folder without it"
            )
        return root


class SparkSettings(Section):
    master: str = Field("local[2]", description="Spark master; local[N], spark://..., yarn, k8s://...")
    driver_memory: str = Field("2g", description="heap of the driver (in local mode of everything)")
    shuffle_partitions: int = Field(4, ge=1, description="partitions of a shuffle; about 2 to 3 per core")
    ivy_dir: str = Field(".ivy", description="folder that keeps Delta's jars, resolved on first use")
    quick_start: bool = Field(
        False,
        description="for small data: compile little and plan once; queries start sooner, rows pass slower",
    )
    jvm_options: str = Field("", description="further options of the driver's JVM; the last of a kind wins")
    conf: dict[str, str] = Field(default_factory=dict, description="further Spark properties, as they are")


class SourceSettings(Section):
    """Where raw tables come from."""

    path: str = Field("", description="folder or file to read; empty for the synthetic city")
    since: Day | None = Field(
        None,
        description="synthetic city: make events after this day only; null = after the last delivered day. Sources of "
        "files deliver what no other day has delivered, with or without it",
    )
    pois_path: str = Field("", description="POI catalogue, where it is not beside the actions")
    readmit_erased: bool = Field(
        False, description="take rows of erased users in again; else they are left out and counted"
    )


class ClickSettings(Section):
    """The click model of the synthetic city: effects on the log-odds of a click.

    If all but `bias` are zero, clicks are independent of everything.
    """

    bias: float = Field(-2.5, description="log-odds without any effect")
    first_taste: float = Field(1.3, description="the user's first favourite leaf of its kind")
    second_taste: float = Field(0.7, description="the second one")
    hour: float = Field(1.2, description="the POI serves what people do at this hour")
    favourite: float = Field(1.1, description="one of the user's favourite POIs")
    log_distance: float = Field(-0.55, description="per log(1 + km)")
    log_rank: float = Field(
        -0.25, description="per log(1 + rank), 0 = most popular of leaf and neighbourhood"
    )
    attribute: float = Field(0.8, description="the attribute that the user likes and only the text tells")
    look: float = Field(
        0.0, description="the look that the user likes and only the picture shows; needs city.pictures"
    )
    position: float = Field(-0.14, description="per position after the first")
    noise: float = Field(0.5, ge=0, description="standard deviation of what no feature shows")


class CitySettings(Section):
    """The synthetic city (docs/design.md 1). Everything follows from the seed."""

    seed: int = 7
    num_users: int = Field(600, ge=1)
    num_pois: int = Field(1500, ge=10)
    num_actions: int = Field(
        40_000, ge=10, description="actions over all days, dirty rows not counted; 10^3 to 10^8"
    )
    num_requests: int = Field(4_000, ge=0, description="requests with impressions over all days")
    first_day: Day = Field(date(2026, 1, 1), description="first day of the city's life")
    num_days: int = Field(60, ge=2, description="days of the city's life")
    center_lon: float = 4.9
    center_lat: float = 52.37
    radius_km: float = Field(18.0, gt=0, description="most POIs lie within this distance of the centre")
    num_other_cities: int = Field(3, ge=0, description="cities that users travel to")
    dirty_share: float = Field(0.01, ge=0, le=0.5, description="rows of each delivery that are refused")
    kept_dirt_share: float = Field(0.0, ge=0, le=0.5, description="rows added that are repaired or flagged")
    bot_share: float = Field(0.0, ge=0, le=0.1, description="actions beside which a bot acts beyond the cap")
    num_candidates: int = Field(11, ge=2, description="POIs shown per request (paper: about 11)")
    attribute_tries: int = Field(
        1, ge=1, le=8, description="POIs that a user looks at for the attribute liked before going to one"
    )
    pictures: bool = Field(
        False, description="every POI has a small picture, and users seek the look that only it shows"
    )
    clicks: ClickSettings = ClickSettings()


class CleanSettings(Section):
    earliest_day: Day = Field(
        date(2005, 1, 1), description="actions before this day are refused: the service did not exist"
    )
    max_future_min: int = Field(
        10, ge=0, description="minutes after the end of --day that a clock may be ahead"
    )
    max_text_length: int = Field(4096, ge=16, description="longer ids and names are refused")
    duplicate_days: int = Field(
        30, ge=1, description="deliveries before --day in which a redelivered action is looked for"
    )
    max_poi_shift_km: float = Field(5.0, gt=0, description="a POI logged farther off is repaired")
    max_poi_move_km: float = Field(500.0, gt=0, description="a POI that moved farther is refused")
    max_pois_at_place: int = Field(
        200, ge=1, description="more POIs at one place, to the last digit, are flagged: a geocoder's fallback"
    )
    max_actions_per_day: int = Field(
        2_000,
        ge=1,
        description="actions kept per user and event day, the earliest; a bot's others are refused",
    )
    max_speed_kmh: float = Field(1_200.0, gt=0, description="a faster user is flagged (airliners: about 900)")


class PlacesSettings(Section):
    """Home and work inference (docs/design.md 2)."""

    cell_m: int = Field(300, ge=50, description="actions in the same cell of this size are at the same place")
    at_place_m: int = Field(
        50, ge=0, description="a POI nearer than this to home or work is home or work, not taste"
    )
    min_days: int = Field(3, ge=1, description="days of evidence needed")
    lookback_days: int = Field(120, ge=7, description="days of actions that are looked at")
    night_from_h: int = Field(20, ge=0, le=23, description="local hour from which an action speaks for home")
    night_to_h: int = Field(7, ge=0, le=23, description="local hour until which it does")
    work_from_h: int = Field(
        9, ge=0, le=23, description="local hour on workdays from which an action speaks for work"
    )
    work_to_h: int = Field(17, ge=0, le=23, description="local hour until which it does")


class IndexSettings(Section):
    version: int = Field(1, ge=1, description="raised only when ids are assigned again")
    cell_km: float = Field(5.0, gt=0, description="side of a grid cell (paper: 5 km)")
    moved_km: float = Field(
        0.2, gt=0, description="a POI delivered farther than this from its slot has moved"
    )
    max_inner: int = Field(
        65_536,
        ge=1,
        description="inner ids that a block may give out; a model holds as many as the fullest block has at training",
    )
    max_blocks: int = Field(
        500_000, ge=1, description="block ids that a model can hold (paper: about 400 thousand for 10^8 POIs)"
    )
    warn_share: float = Field(
        0.8,
        gt=0,
        le=1,
        description="the index job warns when this share of max_inner or max_blocks is given out",
    )


class SequenceSettings(Section):
    max_actions: int = Field(400, ge=1, description="last actions kept per user")
    travel_km: float = Field(50.0, gt=0, description="farther than this from home is travel")
    mixed_share: float = Field(
        0.1, gt=0, lt=0.5, description="a sequence with at least this share of both kinds is mixed"
    )


class SampleSettings(Section):
    window_actions: int = Field(
        50, ge=1, description="targets per pre-training sample; also the decoder's window"
    )
    context_actions: int = Field(150, ge=0, description="earlier actions carried along as context (memory)")
    min_richness: float = Field(2.0, ge=0, description="users below leave pre-training (monotonous)")
    val_days: int = Field(5, ge=0, description="days before the test days, held out for selection")
    test_days: int = Field(5, ge=0, description="last days, held out for the final figures")
    interest_only: bool = Field(
        True, description="only interest actions are targets (paper); off in the public protocols"
    )
    ranking_history: int = Field(
        100, ge=1, description="actions of history per ranking sample (paper: about 300)"
    )
    max_rejected: int = Field(8, ge=1, description="rejected POIs per preference pair")
    preference_rules: tuple[Literal["clicks", "meal_time"], ...] = Field(
        ("clicks",),
        min_length=1,
        description="what makes preference pairs, see etl/tables/preference_pairs.py",
    )


class ImpressionSettings(Section):
    """Simulated exposures for check-in data (docs/design.md 1)."""

    seed: int = 11
    num_candidates: int = Field(11, ge=2, description="POIs per request, the visited one among them")
    max_requests_per_day: int = Field(2_000, ge=1, description="requests simulated per event day at most")
    since_days: int = Field(45, ge=1, description="requests are made from the last so many days only")


class GateSettings(Section):
    """Bounds of the audit (`conf/gates.py` lists the watched columns of each table)."""

    history_days: int = Field(7, ge=1, description="days before --day that a day is compared with")
    min_history_days: int = Field(
        3, ge=1, description="published days needed among them; with fewer there is no verdict"
    )
    low_volume: float = Field(
        0.5, ge=0, le=1, description="fewer rows than this share of the usual number are a warning"
    )
    high_volume: float = Field(2.0, ge=1, description="more rows than this multiple of it are a warning")
    min_volume: float = Field(
        0.25,
        ge=0,
        le=1,
        description="fewer than this share of the usual are almost nothing and stop the night",
    )
    max_share_shift: float = Field(
        0.15, ge=0, le=1, description="a share (of interest actions) that moves farther is a warning"
    )
    min_share: float = Field(
        0.5, ge=0, le=1, description="a share below this part of the usual one stops the night"
    )
    max_shape_shift: float = Field(
        0.15,
        ge=0,
        le=1,
        description="part of the rows that may lie at other hours or categories than on any day before, beyond what "
        "these differ by; more is a warning",
    )
    stop_shape_shift: float = Field(0.25, ge=0, le=1, description="more than this stops the night")
    large_value: float = Field(
        0.05, ge=0, le=1, description="a region with this usual share of the rows must not vanish"
    )
    max_mean_fall: float = Field(
        0.1, ge=0, description="fall of the mean cosine between users' vectors of two days that is a warning"
    )
    stop_mean_fall: float = Field(0.3, ge=0, description="more than this stops the night")
    max_top_share_rise: float = Field(
        0.3,
        ge=0,
        le=1,
        description="rise of the most active user's share of all actions that stops the night",
    )
    max_repeated_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of actions that are those of the day before, a day later; more stop the night",
    )
    max_null_shift: float = Field(
        0.1, ge=0, le=1, description="a share of nulls that moves farther is a warning"
    )
    max_age_days: int = Field(
        0, ge=0, description="days by which the newest row may be older than --day; more stop the night"
    )


class FeatureSettings(Section):
    """Inference jobs."""

    model: str = Field("models:/spacetime-gr@champion", description="MLflow URI or folder of a model bundle")
    batch_rows: int = Field(512, ge=1, description="rows per Arrow batch")
    micro_batch: int = Field(64, ge=1, description="rows per forward pass")
    max_actions: int = Field(
        4096,
        ge=1,
        description="past actions per forward pass, padding included: bounds memory where pasts are long",
    )
    top_k: int = Field(100, ge=1, description="POIs generated per request")
    new_logit: float = Field(
        0.0,
        ge=-20,
        le=20,
        description="added to the log-odds of POIs that are new to the user: more of them in poi_candidates, at the"
        " cost of returns; 0 = as many as the model expects",
    )
    text_encoder: str = Field(
        "models.text_encoder:load_wordllama",
        description="frozen encoder of poi_vectors, as module:function (see models/text_encoder.py)",
    )
    image_encoder: str = Field(
        "models.image_encoder:load_descriptor",
        description="frozen encoder of poi_image_vectors, as module:function (see models/image_encoder.py), or `given`:"
        " the catalogue's column image_vector",
    )
    image_root: str = Field(
        "",
        description="folder or URI below which image_uri may name pictures, readable by every worker; relative names"
        " start there; empty = no URI is opened",
    )
    max_image_mib: int = Field(16, ge=1, le=1024, description="larger pictures are refused")
    max_image_megapixels: int = Field(40, ge=1, description="pictures with more pixels are refused undecoded")
    max_failed_share: float = Field(
        0.05, ge=0, le=1, description="more rows that make the model fail stop the night"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16 = forward passes in it where the device has units for it; never on a CPU",
    )


class MlflowSettings(Section):
    tracking_uri: str = Field("sqlite:///mlflow.db", description="MLflow tracking store")
    artifact_root: str = Field("mlruns", description="folder for artifacts when an experiment is made")
    experiment: str = "spacetime-gr"
    model_name: str = "spacetime-gr"


class Settings(Section):
    """All settings of the ETL and feature jobs."""

    storage: StorageSettings = StorageSettings()
    spark: SparkSettings = SparkSettings()
    source: SourceSettings = SourceSettings()
    city: CitySettings = CitySettings()
    clean: CleanSettings = CleanSettings()
    places: PlacesSettings = PlacesSettings()
    index: IndexSettings = IndexSettings()
    sequences: SequenceSettings = SequenceSettings()
    samples: SampleSettings = SampleSettings()
    impressions: ImpressionSettings = ImpressionSettings()
    features: FeatureSettings = FeatureSettings()
    gates: GateSettings = GateSettings()
    mlflow: MlflowSettings = MlflowSettings()


def load_settings(layers: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Settings:
    """Loads the settings of a job.

    Args:
        layers: YAML files, later ones win; each may set any part of the tree.
        overrides: `a.b=value` strings; the setting's type decides how the value is read (see the top of this file).

    Raises:
        SettingsError: a key is unknown, a value cannot be read or is out of range; it names file, key and known keys.
        MissingInputError: a layer does not exist.
    """
    from_environment = [layer for layer in os.environ.get("SPACETIME_CONF", "").split(":") if layer]
    return load_model(Settings, [CONF_DIR / "base.yaml", *from_environment, *layers], overrides)


def load_model(model: type[M], layers: Sequence[str | Path], overrides: Sequence[str] = ()) -> M:
    """Merges YAML layers and overrides and validates them as `model`; raises as `load_settings`."""
    merged: dict[str, object] = {}
    where = model.__name__
    for layer in layers:
        where = str(layer)
        merged = _merge(merged, rename_keys(model, _read_yaml(Path(layer))))
        _check(model, merged, where)
    together = reduce(_merge, (_parse_override(model, override) for override in overrides), merged)
    try:
        return _check(model, together, where)
    except SettingsError:
        # Checked together, since a key may need another one. The one to blame is that without which all is well.
        for override in overrides:
            rest = [_parse_override(model, other) for other in overrides if other != override]
            try:
                _check(model, reduce(_merge, rest, merged), where)
            except SettingsError:
                continue
            where = f"--set {override}"
            break
        return _check(model, together, where)


def describe_settings(model: type[BaseModel] = Settings, prefix: str = "") -> list[tuple[str, str, str]]:
    """Returns (key, default, meaning) for every setting, in order."""
    rows: list[tuple[str, str, str]] = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            rows += describe_settings(info.annotation, f"{prefix}{name}.")
        else:
            default = info.get_default(call_default_factory=True)
            rows.append((f"{prefix}{name}", str(default), info.description or ""))
    return rows


def _read_yaml(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise MissingInputError(
            what="the settings file",
            where=str(path),
            needed_by="The command line",
            remedy="Check the path given with --conf or SPACETIME_CONF.",
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(where=str(path), key="-", problem=f"the file is not YAML ({error})") from error
    if content is not None and not isinstance(content, dict):
        raise SettingsError(
            where=str(path), key="-", problem="the file does not hold a mapping of keys to values"
        )
    return content or {}


def _parse_override(model: type[BaseModel], override: str) -> dict[str, object]:
    """Returns the tree of one `a.b=value`."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise SettingsError(where="--set", key=override, problem="it is not of the form a.b=value")
    path, kind = _find_setting(model, key)
    nested = _read_value(kind, text, key, override)
    for part in reversed(path):
        nested = {part: nested}
    assert isinstance(nested, dict)
    return nested


def _find_setting(model: type[BaseModel], key: str) -> tuple[list[str], object]:
    """Returns the path of a key and the type of its setting; None for an unknown key.

    For a setting that is a mapping, the rest of the key is a key of the mapping: `spark.conf.spark.sql.x`.
    """
    parts = key.split(".")
    for number in range(1, len(parts) + 1):
        old = parts[number - 1]
        part = parts[number - 1] = getattr(model, "renamed", {}).get(old, old)
        field = model.model_fields.get(part)
        if field is None:
            return parts, None
        kind, rest = field.annotation, parts[number:]
        if not rest:
            return parts, kind
        if get_origin(kind) is dict:
            return [*parts[:number], ".".join(rest)], get_args(kind)[1]
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return parts, None
        model = kind
    raise AssertionError("a key has at least one part")


def _read_value(kind: object, text: str, key: str, override: str) -> object:
    """Reads the text after the sign as a value of a type; pydantic then checks the value."""
    try:
        text.encode()  # fails on surrogates: bytes of the command line that are not UTF-8, which Java cannot take
        choices = [_strip(choice) for choice in _choices(kind)]
        if type(None) in choices and text in NULL_WORDS:
            return None
        is_plain = kind is None or any(choice in (str, int, float, bool, date, Literal) for choice in choices)
        return text if is_plain else yaml.load(text, _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:
        problem = f"its value cannot be read ({error})"
        raise SettingsError(where=f"--set {override}", key=key, problem=problem) from error


def _choices(kind: object) -> tuple[object, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _strip(kind: object) -> object:
    """Returns a type without its annotations: Annotated[date, ...] is date, Literal["a"] is Literal."""
    if get_origin(kind) is Annotated:
        return get_args(kind)[0]
    return Literal if get_origin(kind) is Literal else kind


def _merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _check(model: type[M], content: Mapping[str, object], where: str) -> M:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        known = _known_keys(model, path[:-1]) if first["type"] == "extra_forbidden" else ()
        problem = "no such key" if known else first["msg"]
        raise SettingsError(where=where, key=".".join(path), problem=problem, known=known) from error


def _known_keys(model: type[BaseModel], path: Sequence[str]) -> tuple[str, ...]:
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ()
        model = annotation
    return tuple(sorted(model.model_fields))


if __name__ == "__main__":
    for key, default, meaning in describe_settings():
        print(f"{key:36} {default:40} {meaning}")  # noqa: T201
