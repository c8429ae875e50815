"""Small data sets of all shapes that a reader knows, for `tests/bench/own_data.py`: too little of this or none of that.

Each is written by a function of its own from a seeded simulation of people who live somewhere, have favourite POIs and
go there at their hours. Names of files and folders hold what names elsewhere hold: spaces, umlauts, `#`, quotes.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIRST_DAY = datetime(2024, 3, 1, tzinfo=UTC)
CATEGORIES = ("Coffee Shop", "Bar", "Museum", "Thai Restaurant", "Park", "Gym", "Train Station", "Office")
MS_PER_DAY = 86_400_000


@dataclass(frozen=True)
class Visit:
    """One action of the simulation."""

    user_id: str
    poi_id: str
    category: str
    lon: float
    lat: float
    time: datetime


@dataclass(frozen=True)
class Miniature:
    """A data set of the bench.

    Attributes:
        name: what is special about it.
        path: file or folder below the folder of all miniatures.
        write: fills the path.
    """

    name: str
    path: str
    write: Callable[[Path], None]


def simulate_visits(
    *,
    seed: int,
    num_users: int,
    num_pois: int,
    num_rows: int,
    num_days: int,
    center: tuple[float, float] = (4.9, 52.37),
) -> list[Visit]:
    """Simulates visits in order of time; the first and the last day have some.

    Args:
        seed: everything follows from it.
        num_users: people, u0 and so on; each acts.
        num_pois: POIs within some kilometres of the centre; each is visited.
        num_rows: visits.
        num_days: days from `FIRST_DAY` on.
        center: longitude and latitude; a longitude beyond 180 is wrapped.
    """
    random = np.random.default_rng(seed)
    lons = (center[0] + random.normal(0, 0.08, num_pois) + 180.0) % 360.0 - 180.0
    lats = center[1] + random.normal(0, 0.05, num_pois)
    favourites = [random.choice(num_pois, size=min(6, num_pois), replace=False) for _ in range(num_users)]
    days = np.concatenate([[0, num_days - 2, num_days - 1], random.integers(num_days, size=num_rows - 3)])
    visits, taken = [], set()
    for row, day in enumerate(days):
        user = row % num_users
        is_usual = random.random() < 0.7
        poi = (
            row % num_pois
            if row < num_pois
            else random.choice(favourites[user])
            if is_usual
            else random.integers(num_pois)
        )
        second = int(random.integers(7 * 3600, 22 * 3600))
        while (user, day, second) in taken:
            second += 60
        taken.add((user, day, second))
        time = FIRST_DAY + timedelta(days=int(day), seconds=second)
        category = CATEGORIES[int(poi) % len(CATEGORIES)]
        visits.append(
            Visit(
                f"u{user}", f"p{poi}", category, round(float(lons[poi]), 5), round(float(lats[poi]), 5), time
            )
        )
    return sorted(visits, key=lambda visit: (visit.time, visit.user_id))


def write_json_actions(path: Path, visits: list[Visit]) -> None:
    """Writes JSON lines in the paper's form, without time zones."""
    lines = [
        json.dumps(
            {
                "user_id": visit.user_id,
                "time": int(visit.time.timestamp() * 1000),
                "user_geo": {"x": round(visit.lon + 0.004, 5), "y": round(visit.lat - 0.003, 5)},
                "poi_id": visit.poi_id,
                "poi_geo": {"x": visit.lon, "y": visit.lat},
                "category": visit.category,
                "action_type": "click",
            }
        )
        for visit in visits
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_getnext(path: Path, visits: list[Visit]) -> None:
    """Writes the CSV of GETNext."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["user_id", "POI_id", "POI_catid", "POI_catname", "latitude", "longitude", "timezone", "UTC_time"]
        )
        for visit in visits:
            when = f"{visit.time:%Y-%m-%d %H:%M:%S}"
            writer.writerow(
                [visit.user_id, visit.poi_id, "c", visit.category, visit.lat, visit.lon, 60, when]
            )


def write_tsmc(path: Path, visits: list[Visit]) -> None:
    """Writes the TSMC2014 file, the column of time zones empty."""
    lines = []
    for visit in visits:
        when = f"{visit.time:%a %b %d %H:%M:%S +0000 %Y}"
        fields = (visit.user_id, visit.poi_id, "c", visit.category, visit.lat, visit.lon, "", when)
        lines.append("\t".join(map(str, fields)))
    path.write_text("\n".join(lines) + "\n", encoding="latin-1")


def write_checkins(
    folder: Path, visits: list[Visit], *, has_categories: bool = True, has_zones: bool = True
) -> None:
    """Writes `checkins.parquet` and `pois.parquet`; columns that it shall not have are left out."""
    folder.mkdir()
    columns = {
        "user_id": [visit.user_id for visit in visits],
        "poi_id": [visit.poi_id for visit in visits],
        "latitude": [visit.lat for visit in visits],
        "longitude": [visit.lon for visit in visits],
        "utc_time": pa.array([visit.time for visit in visits], pa.timestamp("us", "UTC")),
    }
    if has_categories:
        columns["category"] = [visit.category for visit in visits]
    if has_zones:
        columns["tz_offset_min"] = pa.array([60] * len(visits), pa.int16())
    pq.write_table(pa.table(columns), folder / "checkins.parquet")
    places = {visit.poi_id: visit for visit in visits}
    listed = {
        "poi_id": list(places),
        "latitude": [visit.lat for visit in places.values()],
        "longitude": [visit.lon for visit in places.values()],
    }
    if has_categories:
        listed["category"] = [visit.category for visit in places.values()]
    pq.write_table(pa.table(listed), folder / "pois.parquet")


def _write_200_rows(path: Path) -> None:
    write_json_actions(path, simulate_visits(seed=1, num_users=40, num_pois=25, num_rows=200, num_days=50))


def _write_37_days(path: Path) -> None:
    write_getnext(path, simulate_visits(seed=2, num_users=30, num_pois=60, num_rows=1500, num_days=37))


def _write_one_user(path: Path) -> None:
    write_checkins(path, simulate_visits(seed=3, num_users=1, num_pois=20, num_rows=300, num_days=90))


def _write_no_category(path: Path) -> None:
    visits = simulate_visits(seed=4, num_users=25, num_pois=50, num_rows=1200, num_days=60)
    write_checkins(path, visits, has_categories=False)


def _write_no_zone(path: Path) -> None:
    write_tsmc(path, simulate_visits(seed=5, num_users=25, num_pois=50, num_rows=1200, num_days=60))


def _write_date_line(path: Path) -> None:
    visits = simulate_visits(
        seed=6, num_users=25, num_pois=50, num_rows=1200, num_days=60, center=(180.0, -16.8)
    )
    write_checkins(path, visits, has_zones=False)


MINIATURES = (
    Miniature("200-rows", "200 rows.json", _write_200_rows),
    Miniature("37-days", "37#days.csv", _write_37_days),
    Miniature("one-user", "eine Nutzerin, übers Jahr", _write_one_user),
    Miniature("no-category", "no_category", _write_no_category),
    Miniature("no-zone", 'it\'s "no" zone.txt', _write_no_zone),
    Miniature("date-line", "date-line", _write_date_line),
)
"""The six of `own-data-first-run`; between them they have every shape but Parquet actions."""
