"""The job behind `python -m models explain`: one request of one user, as text and as a picture.

    python -m models explain --day D --user USER_ID [--at 2026-03-01T18:00] [--top 10] [--out FOLDER]

The model is that of the current release, else of the day's training. The history is the user's latest row of
`action_sequences` up to the day, else of the day's `pretrain_samples`. Without `--at` the request is one median gap
after the last action; without `--place` it is at the POI of the last action. Tables are read through Arrow, at their
newest version. Text goes to stderr, the picture to `{storage.artifacts}/explanations/` or `--out`.
"""

import logging
import re
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
from rich.console import Console

from conf.cli import JobContext, JobSummary
from conf.errors import IndexVersionError, MissingInputError, SettingsError
from conf.releases import find_current, load_releases
from conf.settings import Settings
from conf.tables import HISTORY_NAMES
from models.copying.crowd_candidates import SlotFinder
from models.copying.crowd_tables import CROWD_TABLES, last_crowd, open_finder
from models.data.catalogue import CATALOGUE_COLUMNS, Catalogue
from models.data.dataset import TableAt, read_table
from models.data.pins import locate_table
from models.explain.attention import map_attention
from models.explain.attribution import Explanation, Place, explain_request
from models.explain.interests import find_interests
from models.explain.text import print_attention, print_explanation, print_interests
from models.serving.bundle import ModelBundle, load_bundle, resolve_model

LOGGER = logging.getLogger(__name__)
INPUTS = ("user_id", "index_version", "profile_ids", *HISTORY_NAMES)
TEXT_WIDTH = 110
"""Width of the text if it is not printed in a terminal, in characters."""


def run_explain(context: JobContext) -> JobSummary:
    """Explains one request: prints, draws, and returns the main figures.

    Raises:
        MissingInputError: no such user as of the day, no bundle, or a table is not there.
        SettingsError: `--at` or `--place` cannot be read, or `--top` is below 1.
        IndexVersionError: the history is of another index version than the model.
    """
    options, settings = context.options, context.settings
    if options.top < 1:
        raise SettingsError(where="--top", key=str(options.top), problem="it has to be at least 1")
    at_ms, place = read_time(options.at), read_place(options.place)
    uri = options.model or find_model(settings, context.day)
    folder, model_version = resolve_model(uri, settings)
    bundle = load_bundle(folder)
    history = read_history(settings.storage.root, options.user, context.day)
    version = bundle.layout.index_version
    if history["index_version"][0].as_py() != version:
        history_version = history["index_version"][0].as_py()
        raise IndexVersionError(model_uri=uri, trained_on=version, found=history_version)
    request = build_request(history, at_ms, place, action_type_id=bundle.action_type_id)
    catalogue, names, centers = read_places(settings, version)
    started = time.perf_counter()
    model = bundle.model(bundle.generator_stage)
    finder = open_crowd(settings, bundle, catalogue, context.day)
    explanation = explain_request(model, request, catalogue, centers, top_k=options.top, finder=finder)
    seconds = {"explain": time.perf_counter() - started}
    console = Console(stderr=True, width=None if sys.stderr.isatty() else TEXT_WIDTH)
    print_explanation(explanation, names, console)
    attention = map_attention(model, request, explanation)
    if attention is not None:
        print_attention(attention, console)
    interests = find_interests(bundle, request, catalogue, explanation, top_k=options.top)
    if interests is not None:
        print_interests(interests, names, read_categories(settings, version), console)
    picture = None if context.dry_run else draw_picture(context, explanation, names)
    notes = _summarise(explanation, bundle, model_version)
    return JobSummary(rows_in=len(explanation.past), notes=notes | {"picture": picture}, steps=seconds)


def find_model(settings: Settings, day: date) -> str:
    """Returns the model of the current release; before the first release, that of the day's training."""
    current = find_current(load_releases(settings.storage.root))
    # A model from a folder has no name to find it by.
    if current is not None and "/" in current.model_version:
        return f"models:/{current.model_version}"
    return str(Path(settings.storage.artifacts) / "training" / str(day) / "bundle")


def read_time(text: str) -> int | None:
    """Reads epoch milliseconds or an ISO time (UTC unless it says otherwise); None of an empty text.

    Raises:
        SettingsError: it is neither.
    """
    if not text:
        return None
    try:
        if re.fullmatch(r"-?\d{9,}", text):
            return int(text)
        time_read = datetime.fromisoformat(text)
    except ValueError:
        problem = "it is neither epoch milliseconds nor a time such as 2026-03-01T18:00"
        raise SettingsError(where="--at", key=text, problem=problem) from None
    return round((time_read if time_read.tzinfo else time_read.replace(tzinfo=UTC)).timestamp() * 1000)


def read_place(text: str) -> Place | None:
    """Reads LON,LAT in degrees; None of an empty text.

    Raises:
        SettingsError: it is not a place on earth.
    """
    if not text:
        return None
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError:
        lon, lat = np.inf, np.inf
    if not (abs(lon) <= 180 and abs(lat) <= 90):
        raise SettingsError(
            where="--place", key=text, problem="it is not LON,LAT in degrees, such as 4.9,52.4"
        )
    return lon, lat


def read_history(root: str, user_id: str, day: date) -> pa.Table:
    """Returns the user's latest history as of a day, one row.

    Raises:
        MissingInputError: the user has none, or there is no table to look into.
    """
    is_user, columns = pds.field("user_id") == user_id, ("day", *INPUTS)
    missing = []
    for name, days in (
        ("action_sequences", pds.field("day") <= day),
        ("pretrain_samples", pds.field("day") == day),
    ):
        try:
            rows = read_table(TableAt(locate_table(root, name)), columns, is_user & days)
        except MissingInputError as error:
            missing.append(error)
            continue
        if rows.num_rows:
            last = [(row_day, times[-1:]) for row_day, times in zip(
                rows["day"].to_pylist(), rows["timestamps_ms"].to_pylist(), strict=True)]  # fmt: skip
            newest = max(range(len(last)), key=lambda row: last[row])
            return rows.take([newest])
    if len(missing) == 2:
        raise missing[0]
    raise MissingInputError(
        what=f"user {user_id!r}",
        where=f"action_sequences up to {day} and pretrain_samples of it",
        needed_by="The explanation",
        remedy="Check the spelling of --user; a user is known from the day of the first accepted action on.",
    )


def build_request(
    history: pa.Table, at_ms: int | None, place: Place | None, *, action_type_id: int
) -> pa.RecordBatch:
    """Builds one request from a user's history.

    Args:
        history: one row.
        at_ms: time of the request; None = the median gap after the last action.
        place: place of the user; None = the POI of the last action before the request.
        action_type_id: action type of the request.

    Returns:
        One row with the history columns, cut to actions strictly before the request, and the request's.
    """
    row = history.slice(0, 1).to_pylist()[0]
    times = np.array(row["timestamps_ms"], dtype=np.int64)
    if at_ms is None:
        at_ms = int(times[-1]) + (int(np.median(np.diff(times))) if len(times) > 1 else 0)
        at_ms = max(at_ms, int(times[-1]) + 1)  # the last action is part of the past
    num_past = int(np.searchsorted(times, at_ms, side="left"))
    for name in HISTORY_NAMES:
        row[name] = row[name][:num_past]
    if place is None and num_past:
        place = (row["poi_lons"][-1], row["poi_lats"][-1])
    row |= {
        "request_ts_ms": at_ms,
        "tz_offset_min": row["tz_offsets_min"][-1] if num_past else 0,
        "user_lon": place[0] if place else None,
        "user_lat": place[1] if place else None,
        "action_type_id": action_type_id,
    }
    types = {"request_ts_ms": pa.int64(), "tz_offset_min": pa.int64(), "action_type_id": pa.int64()}
    types |= {"user_lon": pa.float64(), "user_lat": pa.float64()}
    schema = pa.schema([*history.schema, *(pa.field(name, kind) for name, kind in types.items())])
    return pa.RecordBatch.from_pylist([row], schema=schema)


def read_places(settings: Settings, index_version: int) -> tuple[Catalogue, dict[str, str], dict[int, Place]]:
    """Returns the catalogue of an index version, names by POI id, and centres by block.

    A POI without a name has its id as name.
    """
    root, is_version = settings.storage.root, pds.field("index_version") == index_version
    index = read_table(TableAt(locate_table(root, "poi_index")), (*CATALOGUE_COLUMNS, "name"), is_version)
    blocks = read_table(
        TableAt(locate_table(root, "blocks")), ("block_id", "center_lon", "center_lat"), is_version
    )
    names = zip(index["poi_id"].to_pylist(), index["name"].to_pylist(), strict=True)
    centers = zip(*(blocks[name].to_pylist() for name in blocks.column_names), strict=True)
    return (
        Catalogue.from_arrow(index.select(CATALOGUE_COLUMNS)),
        {poi_id: name or poi_id for poi_id, name in names},
        {block: (lon, lat) for block, lon, lat in centers},
    )


def read_categories(settings: Settings, index_version: int) -> dict[int, str]:
    """Returns the paths of an index version's categories by id; empty if there is no such table, and ids are shown."""
    table = TableAt(locate_table(settings.storage.root, "categories"))
    try:
        rows = read_table(
            table, ("category_id", "category_path"), pds.field("index_version") == index_version
        )
    except MissingInputError as error:
        LOGGER.warning("categories are shown by id: %s", error)
        return {}
    return dict(zip(rows["category_id"].to_pylist(), rows["category_path"].to_pylist(), strict=True))


def open_crowd(settings: Settings, bundle: ModelBundle, catalogue: Catalogue, day: date) -> SlotFinder | None:
    """Returns the crowd's statistics as of the day, if the bundle copies from it; raises as `last_crowd`."""
    if not bundle.copies_from_crowd:
        return None
    visits, transitions = (TableAt(locate_table(settings.storage.root, name)) for name in CROWD_TABLES)
    crowd = last_crowd(visits, transitions, day, bundle.layout.index_version)
    return open_finder(crowd, catalogue)


def draw_picture(context: JobContext, explanation: Explanation, names: dict[str, str]) -> str:
    """Writes the picture and returns its path; its name has day, user and time."""
    from models.explain.plot import draw_explanation  # plots take a second to import

    settings = context.settings
    folder = Path(context.options.out or Path(settings.storage.artifacts) / "explanations")
    user = re.sub(r"[^\w.-]", "_", explanation.user_id)
    path = folder / f"{context.day}-{user}-{explanation.timestamp_ms}.png"
    folder.mkdir(parents=True, exist_ok=True)
    draw_explanation(explanation, names, path, cell_km=settings.index.cell_km)
    LOGGER.info("picture: %s", path)
    return str(path)


def _summarise(explanation: Explanation, bundle: ModelBundle, model_version: str) -> dict[str, object]:
    best = explanation.pois[0] if explanation.pois else None
    return {
        "user": explanation.user_id,
        "at": explanation.timestamp_ms,
        "model": model_version,
        "stage": bundle.generator_stage,
        "simulated": bundle.is_simulated,
        "has_memory": explanation.has_memory,
        "generator_share_block": round(explanation.block_shares.generator, 4),
        "generator_share_poi": round(explanation.poi_shares.generator, 4),
        "top_poi": best.poi_id if best else None,
        "top_probability": round(best.probability, 4) if best else None,
    }
