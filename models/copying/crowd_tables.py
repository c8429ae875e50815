"""Statistics of the crowd from Spark: `training_visits` and `training_transitions` -> `CrowdStatistics`.

Rows of one day (one training period) are read through Arrow. Training reads the rows of its day at pinned versions;
serving reads the latest day. A process holds both tables, and a request is compared with all users
(`models/copying/crowd_visits.py`), so this suits the users and POIs of a city, not of a country.
"""

import logging
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds

from conf.errors import MissingInputError
from conf.tables import TRAINING_TRANSITIONS, TRAINING_VISITS
from models.copying.crowd_candidates import SlotFinder
from models.copying.crowd_statistics import CrowdStatistics
from models.data.arrays import IntArray
from models.data.catalogue import CATALOGUE_COLUMNS, Catalogue
from models.data.dataset import TableAt, open_table, read_table

LOGGER = logging.getLogger(__name__)
NEEDED_BY = "A decoder that copies from the crowd (decoder.crowd)"
CROWD_TABLES = (TRAINING_VISITS.name, TRAINING_TRANSITIONS.name)


@dataclass(frozen=True)
class CrowdAt:
    """Tables, day and index version of the statistics of the crowd.

    Attributes:
        visits: `training_visits`.
        transitions: `training_transitions`.
        day: day of the rows, YYYY-MM-DD.
        index_version: index version of the rows' slots.
    """

    visits: TableAt
    transitions: TableAt
    day: str
    index_version: int

    @property
    def rows(self) -> pds.Expression:
        """Filter on the rows of both tables."""
        of_day = pds.field("day") == date.fromisoformat(self.day)
        return of_day & (pds.field("index_version") == self.index_version)


def open_finder(crowd: CrowdAt, catalogue: Catalogue) -> SlotFinder:
    """Reads the statistics and prepares them for requests; raises the errors of `read_crowd`."""
    return SlotFinder(read_crowd(crowd, catalogue), catalogue)


def last_crowd(visits: TableAt, transitions: TableAt, day: date, index_version: int) -> CrowdAt:
    """Returns the statistics of the latest day up to `day`, which a model that serves on `day` copies from.

    Raises:
        MissingInputError: there are none, or they have another index version.
    """
    remedy = f"Run: {TRAINING_VISITS.command} --day {day}."
    opened = open_table(visits, needed_by=NEEDED_BY, remedy=remedy)
    days = [partition["day"] for partition in opened.partitions() if partition["day"] <= day.isoformat()]
    crowd = CrowdAt(visits, transitions, max(days, default=""), index_version)
    if not days or not opened.to_pyarrow_dataset().head(1, filter=crowd.rows).num_rows:
        raise MissingInputError(
            what=f"visits in index version {index_version} of the latest day up to {day}",
            where=visits.location, needed_by=NEEDED_BY, remedy=remedy,
        )  # fmt: skip
    return crowd


def read_catalogue(poi_index: TableAt, index_version: int) -> Catalogue:
    """Reads all slots of an index version."""
    is_version = pds.field("index_version") == index_version
    return Catalogue.from_arrow(read_table(poi_index, CATALOGUE_COLUMNS, is_version))


def read_crowd(crowd: CrowdAt, catalogue: Catalogue) -> CrowdStatistics:
    """Reads the statistics, with POIs as rows of a catalogue; leaves out rows with slots outside the catalogue.

    Raises:
        MissingInputError: a table does not exist, or has no visit of the day in the index version.
    """
    visits = read_table(crowd.visits, ("user_id", "block_id", "inner_id", "local_hour", "visits"), crowd.rows)
    names = ("user_id", "block_id", "inner_id", "next_block_id", "next_inner_id", "weight")
    transitions = read_table(crowd.transitions, names, crowd.rows)
    if not visits.num_rows:
        raise MissingInputError(
            what=f"visits of day {crowd.day} in index version {crowd.index_version}",
            where=crowd.visits.location,
            needed_by=NEEDED_BY,
            remedy=f"Run: {TRAINING_VISITS.command} --day {crowd.day}.",
        )
    user_ids, (visitors, goers) = _number_users(visits, transitions)
    pois, (visit_users, hours, counts) = _keep_known(
        [catalogue.find_rows(*_slots(visits, ""))],
        [visitors, _integers(visits, "local_hour"), visits["visits"].to_numpy().astype(np.float64)],
        table=TRAINING_VISITS.name,
    )
    (before, after), (goers, weights) = _keep_known(
        [catalogue.find_rows(*_slots(transitions, "")), catalogue.find_rows(*_slots(transitions, "next_"))],
        [goers, transitions["weight"].to_numpy().astype(np.float64)],
        table=TRAINING_TRANSITIONS.name,
    )
    by_user = np.lexsort((hours, pois[0], visit_users))
    by_poi = np.lexsort((goers, after, before))
    return CrowdStatistics(
        user_ids=user_ids,
        num_pois=len(catalogue),
        transition_users=goers[by_poi],
        transition_pois=before[by_poi],
        transition_next_pois=after[by_poi],
        transition_weights=weights[by_poi],
        visit_users=visit_users[by_user],
        visit_pois=pois[0][by_user],
        visit_hours=hours[by_user],
        visit_counts=counts[by_user],
    )


def _number_users(*tables: pa.Table) -> tuple[np.ndarray, list[IntArray]]:
    """Returns the sorted users of all tables, and every row's place among them."""
    names = pa.chunked_array([pc.unique(table["user_id"]) for table in tables], pa.string())
    user_ids = np.unique(np.asarray(names.to_pylist(), dtype=str))
    known = pa.array(user_ids.tolist(), pa.string())
    places = [pc.index_in(table["user_id"], value_set=known) for table in tables]
    return user_ids, [place.to_numpy().astype(np.int64) for place in places]


def _slots(table: pa.Table, prefix: str) -> tuple[IntArray, IntArray]:
    return _integers(table, f"{prefix}block_id"), _integers(table, f"{prefix}inner_id")


def _integers(table: pa.Table, name: str) -> IntArray:
    return table[name].to_numpy().astype(np.int64)


def _keep_known(
    pois: list[IntArray], values: list[np.ndarray], *, table: str
) -> tuple[list[IntArray], list[np.ndarray]]:
    """Leaves out rows with a POI that is not in the catalogue."""
    is_known = np.all([rows >= 0 for rows in pois], axis=0)
    if not is_known.all():
        LOGGER.warning("%s: %d of %d rows name slots that are not in the catalogue and are left out",
                       table, int((~is_known).sum()), len(is_known))  # fmt: skip
    return [rows[is_known] for rows in pois], [rows[is_known] for rows in values]
