"""What a person or a language model has to know to judge two lists: the request, the user's past, the POIs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq

from conf.errors import MissingInputError, SchemaError
from models.data.dataset import TableAt, read_table
from models.data.geo import distance_km
from models.data.pins import locate_table
from models.judging.lists import Pair

REQUEST_COLUMNS = ("request_id", "user_id", "request_ts_ms", "user_lon", "user_lat")
NUM_PAST = 8
"""Latest POIs of the user that are shown."""


@dataclass(frozen=True)
class Poi:
    """One POI of a list, or of the user's past."""

    name: str
    category: str
    lon: float | None
    lat: float | None
    km: float | None


@dataclass(frozen=True)
class Facts:
    """One pair as it is shown: the request, the user's past (latest first), and the lists by side."""

    request_id: str
    when: str
    lon: float | None
    lat: float | None
    past: tuple[Poi, ...]
    left: tuple[Poi, ...]
    right: tuple[Poi, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


def gather_facts(root: str, requests: Path, pairs: Sequence[Pair], *, seed: int) -> list[Facts]:
    """Gathers what is shown of every pair.

    Args:
        root: table root; `poi_index`, `categories` and `action_sequences` are read at their newest version.
        requests: Parquet file of the requests, as for `poi_candidates --requests`.
        pairs: the lists.
        seed: of the sides.

    Raises:
        MissingInputError: the file or a table does not exist, or the file lacks a request.
        SchemaError: the file lacks a column.
    """
    asked = _read_requests(requests, pairs)
    pasts = _read_pasts(root, {row["user_id"] for row in asked.values()})
    pois = _read_pois(root)
    found = []
    for pair in pairs:
        row = asked[pair.request_id]
        place = (row["user_lon"], row["user_lat"])
        before = [poi for poi, at in pasts.get(row["user_id"], ()) if at < row["request_ts_ms"]]
        recent = list(dict.fromkeys(reversed(before)))[:NUM_PAST]
        left, right = (tuple(_show(own, pois, place)) for own in pair.sides(seed))
        at = datetime.fromtimestamp(row["request_ts_ms"] / 1000, tz=UTC)
        local = at + timedelta(minutes=row.get("tz_offset_min") or 0)
        found.append(
            Facts(
                pair.request_id, f"{local:%A %H:%M}", *place, tuple(_show(recent, pois, place)), left, right
            )
        )
    return found


def _show(
    poi_ids: Iterable[str], pois: dict[str, dict[str, Any]], place: tuple[float | None, float | None]
) -> Iterable[Poi]:
    lon, lat = place
    for poi_id in poi_ids:
        row = pois.get(poi_id, {"name": poi_id, "category": "", "poi_lon": None, "poi_lat": None})
        km = None
        if lon is not None and lat is not None and row["poi_lon"] is not None:
            at = np.array([lon]), np.array([lat]), np.array([row["poi_lon"]]), np.array([row["poi_lat"]])
            km = round(float(distance_km(*at)[0]), 1)
        yield Poi(row["name"] or poi_id, row["category"], row["poi_lon"], row["poi_lat"], km)


def _read_requests(path: Path, pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    if not path.exists():
        raise MissingInputError(what="the file of requests", where=str(path), needed_by="The page of pairs",
                                remedy="Give the file that the lists were made for.")  # fmt: skip
    table = pq.read_table(path)
    for name in REQUEST_COLUMNS:
        if name not in table.column_names:
            raise SchemaError(table=str(path), column=name, expected="as for poi_candidates --requests",
                              found=f"only {', '.join(table.column_names)}", remedy="Rename the column.")  # fmt: skip
    index = table.schema.get_field_index("request_ts_ms")
    if pa.types.is_timestamp(table.schema.field(index).type):
        milliseconds = table["request_ts_ms"].cast(pa.timestamp("ms", "UTC"), safe=False).cast(pa.int64())
        table = table.set_column(index, "request_ts_ms", milliseconds)
    rows = {row["request_id"]: row for row in table.to_pylist()}
    missing = [pair.request_id for pair in pairs if pair.request_id not in rows]
    if missing:
        raise MissingInputError(what=f"request {missing[0]!r} and {len(missing) - 1} others", where=str(path),
                                needed_by="The page of pairs",
                                remedy="Give the file that the lists were made for.")  # fmt: skip
    return rows


def _read_pasts(root: str, users: set[str]) -> dict[str, list[tuple[str, int]]]:
    """Returns the POIs and times of each user's longest known history, oldest first."""
    table = TableAt(locate_table(root, "action_sequences"))
    rows = read_table(
        table, ("user_id", "day", "poi_ids", "timestamps_ms"), pds.field("user_id").isin(list(users))
    )
    latest: dict[str, dict[str, Any]] = {}
    for row in rows.to_pylist():
        if row["user_id"] not in latest or row["day"] > latest[row["user_id"]]["day"]:
            latest[row["user_id"]] = row
    return {
        user: list(zip(row["poi_ids"], row["timestamps_ms"], strict=True)) for user, row in latest.items()
    }


def _read_pois(root: str) -> dict[str, dict[str, Any]]:
    slots = read_table(
        TableAt(locate_table(root, "poi_index")),
        ("poi_id", "name", "category_id", "poi_lon", "poi_lat", "valid_from"),
    )
    categories = read_table(TableAt(locate_table(root, "categories")), ("category_id", "category_path"))
    paths = dict(
        zip(categories["category_id"].to_pylist(), categories["category_path"].to_pylist(), strict=True)
    )
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(slots.to_pylist(), key=lambda row: row["valid_from"]):
        found[row["poi_id"]] = {**row, "category": paths.get(row["category_id"], "")}
    return found
