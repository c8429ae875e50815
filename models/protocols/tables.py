"""Rows of a public protocol as tables of this project: index, training samples, requests.

The catalogue is the POIs with a training check-in. A window is `window_actions` consecutive check-ins of a user, with
earlier check-ins as context, up to the memory's limit. The user's place is that of the previous check-in. A POI outside
the catalogue has an inner id beyond every capacity: the model knows its place and category, but never generates it.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from deltalake import write_deltalake

from conf.errors import MissingInputError
from conf.tokens import action_type_id
from models.copying.crowd_statistics import CrowdStatistics, count_others
from models.data.arrays import BoolArray, IntArray
from models.data.dataset import TableAt
from models.data.geo import distance_km
from models.data.requests import Requests, Visits, previous_within
from models.evaluation.baselines import count_training
from models.evaluation.release_split import MODEL_COLUMNS, EvaluationRows
from models.protocols.place_index import PlaceIndex, build_index, number_categories
from models.protocols.splits import ProtocolRows
from models.training.pretrain import PretrainTables

DAY = date(1970, 1, 1)
"""Day of the sample rows: a protocol has no daily runs."""
MEMORY_ACTIONS = 350
TRAVEL_KM, MIXED_SHARE = 10.0, 0.1
"""Within one city, travel is a visit to another part of it; the share is that of the settings `sequences`."""
UNKNOWN_INNER = 1 << 20
"""Inner ids from here on are POIs outside the catalogue."""


@dataclass(frozen=True)
class ProtocolTables:
    """A protocol as tables of this project.

    Attributes:
        rows: rows of the protocol.
        index: slots of the catalogue.
        visit_columns: `MODEL_COLUMNS` of every visit.
        poi_rows: row of the catalogue of every visit's POI; -1 = not in it.
    """

    rows: ProtocolRows
    index: PlaceIndex
    visit_columns: dict[str, pa.Array]
    poi_rows: IntArray

    def is_travel(self) -> BoolArray:
        """Returns which visits are farther than `TRAVEL_KM` from the user's most visited training POI."""
        lons, lats = (self.visit_columns[f"poi_{axis}"].to_numpy() for axis in ("lons", "lats"))
        training = np.flatnonzero(self.rows.is_training)
        visits = pd.DataFrame(
            {"user": self.rows.users[training], "poi": self.poi_rows[training], "row": training}
        )
        counts = visits.groupby(["user", "poi"])["row"].agg(["size", "min"]).reset_index()
        homes = counts.sort_values(["user", "size", "poi"], ascending=[True, False, True]).groupby("user")[
            "min"
        ]
        home_row = homes.first().reindex(self.rows.users).to_numpy()
        known = ~np.isnan(home_row)
        home = home_row[known].astype(np.int64)
        is_far = np.zeros(len(lons), np.bool_)
        is_far[known] = distance_km(lons[home], lats[home], lons[known], lats[known]) > TRAVEL_KM
        return is_far

    @property
    def digest(self) -> str:
        """Digest of all rows that a training reads."""
        sha = hashlib.sha256()
        for name, values in self.visit_columns.items():
            known = values.to_numpy(zero_copy_only=False)[self.rows.splits != "test"]
            sha.update(name.encode() + np.ascontiguousarray(known).tobytes())
        sha.update("\n".join(self.rows.users[self.rows.splits != "test"].tolist()).encode())
        sha.update(self.rows.selection_rows.tobytes())
        return sha.hexdigest()[:16]


def build_tables(rows: ProtocolRows, folder: Path, *, is_hashed: bool = False) -> ProtocolTables:
    """Joins the rows of a protocol with the POIs of its folder.

    Args:
        rows: rows of the protocol.
        folder: folder with `pois.parquet`.
        is_hashed: True = index by a hash instead of places, an ablation of the paper.

    Raises:
        MissingInputError: the folder has no `pois.parquet`.
    """
    pois = _read_pois(folder)
    index = build_index(pois[pois["poi_id"].isin(set(rows.poi_ids))], is_hashed=is_hashed)
    catalogue = index.catalogue
    row_of = {poi_id: row for row, poi_id in enumerate(catalogue.poi_ids)}
    poi_rows = np.array([row_of.get(poi_id, -1) for poi_id in rows.visit_poi_ids], np.int64)
    visited = pois.set_index("poi_id").loc[rows.visit_poi_ids].reset_index()
    lons, lats = visited["longitude"].to_numpy(np.float64), visited["latitude"].to_numpy(np.float64)
    blocks, inners = catalogue.block_ids[poi_rows], catalogue.inner_ids[poi_rows]
    is_new = poi_rows < 0
    blocks[is_new] = index.find_blocks(rows.visit_poi_ids[is_new], lons[is_new], lats[is_new])
    inners[is_new] = UNKNOWN_INNER + np.unique(rows.visit_poi_ids[is_new].astype(str), return_inverse=True)[1]
    columns = {
        "timestamps_ms": rows.visits.timestamps_ms,
        "tz_offsets_min": rows.visits.tz_offsets_min,
        "user_lons": _before(lons, rows.users),
        "user_lats": _before(lats, rows.users),
        "action_type_ids": np.full(len(lons), action_type_id("checkin")),
        "block_ids": blocks,
        "inner_ids": inners,
        "poi_lons": lons,
        "poi_lats": lats,
        "category_ids": number_categories(visited["category"], index.categories),
    }
    return ProtocolTables(rows, index, {name: pa.array(columns[name]) for name in MODEL_COLUMNS}, poi_rows)


def write_samples(tables: ProtocolTables, folder: Path, *, window_actions: int) -> PretrainTables:
    """Writes index and windows as Delta tables, once per folder, and returns their locations."""
    locations = PretrainTables(
        *(TableAt(str(folder / name), 0) for name in ("pretrain_samples", "poi_index", "blocks"))
    )
    if not (folder / "blocks").is_dir():
        is_target = tables.rows.is_training
        is_selected = np.zeros(len(is_target), np.bool_)
        is_selected[tables.rows.selection_rows] = True
        samples = [
            cut_windows(tables, split, targets, window_actions=window_actions)
            for split, targets in (("train", is_target), ("val", is_selected))
        ]
        content = (pa.concat_tables(samples), tables.index.slots, tables.index.blocks)
        for table, rows in zip(
            (locations.samples, locations.poi_index, locations.blocks), content, strict=True
        ):
            write_deltalake(table.location, rows, mode="overwrite")
    return locations


def cut_windows(tables: ProtocolTables, split: str, is_target: BoolArray, *, window_actions: int) -> pa.Table:
    """Cuts the check-ins of a split into windows, each with earlier check-ins as context.

    Args:
        tables: the protocol.
        split: rows to cut; each row is in one window.
        is_target: which visits are loss targets; windows without one are left out.
        window_actions: rows of a window.
    """
    users, splits = tables.rows.users, tables.rows.splits
    in_split = np.flatnonzero(splits == split)
    user_starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    user_start = user_starts[np.searchsorted(user_starts, in_split, side="right") - 1]
    _, first, place = np.unique(user_start, return_index=True, return_inverse=True)
    number = (np.arange(len(in_split)) - first[place]) // window_actions
    is_first = np.concatenate([[True], (number[1:] != number[:-1]) | (place[1:] != place[:-1])])
    firsts = np.flatnonzero(is_first)
    starts = in_split[firsts]
    stops = in_split[np.concatenate([firsts[1:], [len(in_split)]]) - 1] + 1
    memory = np.maximum(user_start[firsts], starts - MEMORY_ACTIONS)
    has_target = np.array(
        [is_target[start:stop].any() for start, stop in zip(starts, stops, strict=True)], np.bool_
    )
    starts, stops, memory = starts[has_target], stops[has_target], memory[has_target]
    return _make_samples(tables, split, is_target & (splits == split), memory, starts, stops)


def build_evaluation_rows(tables: ProtocolTables, split: str) -> EvaluationRows:
    """Builds the scored rows of a split, with POIs as rows of the catalogue."""
    old, catalogue = tables.rows.requests[split], tables.index.catalogue
    pois = tables.poi_rows
    visits = Visits(
        pois=pois,
        previous_pois=previous_within(pois, tables.rows.users),
        timestamps_ms=old.visits.timestamps_ms,
        tz_offsets_min=old.visits.tz_offsets_min,
    )
    row_of = {poi_id: row for row, poi_id in enumerate(catalogue.poi_ids)}
    targets = np.array([row_of[tables.rows.poi_ids[target]] for target in old.targets], np.int64)
    requests = replace(old, targets=targets, visits=visits)
    training = Visits(*(values[tables.rows.is_training] for values in vars(visits).values()))
    has_history = requests.stops > requests.starts
    last = np.maximum(requests.stops - 1, 0)
    places = {
        axis: np.where(has_history, tables.visit_columns[f"poi_{axis}"].to_numpy()[last], np.nan)
        for axis in ("lons", "lats")
    }
    no_profile = pa.ListArray.from_arrays(np.zeros(len(requests) + 1, np.int32), pa.array([], pa.int64()))
    return EvaluationRows(
        requests=requests,
        catalogue=catalogue,
        counts=count_training(training, num_pois=len(catalogue)),
        visit_columns=tables.visit_columns,
        user_lons=places["lons"],
        user_lats=places["lats"],
        profile_ids=no_profile,
        action_type_id=action_type_id("checkin"),
    )


def count_training_crowd(tables: ProtocolTables) -> CrowdStatistics:
    """Counts visits and transitions of the training rows; validation and test rows are never counted."""
    training, visits = tables.rows.is_training, tables.rows.visits
    return count_others(
        tables.rows.users[training],
        tables.poi_rows[training],
        visits.timestamps_ms[training],
        visits.tz_offsets_min[training],
        num_pois=tables.index.slots.num_rows,
    )


def keep_memory(rows: EvaluationRows, *, window_actions: int) -> EvaluationRows:
    """Cuts histories to the length that the model had in training."""
    requests: Requests = rows.requests
    starts = np.maximum(requests.starts, requests.stops - MEMORY_ACTIONS - window_actions)
    return replace(rows, requests=replace(requests, starts=starts))


def name_patterns(is_travel: BoolArray, starts: IntArray, stops: IntArray) -> pa.Array:
    """Names each window by its share of travel, as the sequence job does: local, travel, else mixed."""
    until = np.concatenate([[0], np.cumsum(is_travel)])
    share = (until[stops] - until[starts]) / (stops - starts)
    single = np.where(share < MIXED_SHARE, "local", "travel")
    return pa.array(np.where((share < MIXED_SHARE) | (share > 1 - MIXED_SHARE), single, "mixed").tolist())


def _make_samples(
    tables: ProtocolTables,
    split: str,
    is_target: BoolArray,
    memory: IntArray,
    starts: IntArray,
    stops: IntArray,
) -> pa.Table:
    lengths = stops - memory
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    visit_rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - memory, lengths)
    lists = pa.array(offsets.astype(np.int32))
    in_window = visit_rows >= np.repeat(starts, lengths)

    def nest(values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(lists, values)

    users = tables.rows.users[starts]
    nobody = pa.ListArray.from_arrays(np.zeros(len(starts) + 1, np.int32), pa.array([], pa.int64()))
    columns = {
        "day": pa.array([DAY] * len(starts), pa.date32()),
        "split": pa.array([split] * len(starts)),
        "sample_id": pa.array([f"{user}|{start}" for user, start in zip(users, starts, strict=True)]),
        "user_id": pa.array(users.tolist()),
        "pattern": name_patterns(tables.is_travel(), starts, stops),
        "seq_len": pa.array(lengths.astype(np.int32)),
        "num_context": pa.array((starts - memory).astype(np.int32)),
        "is_targets": nest(pa.array(is_target[visit_rows] & in_window)),
        "profile_ids": nobody,
    }
    columns |= {
        name: nest(values.take(pa.array(visit_rows))) for name, values in tables.visit_columns.items()
    }
    return pa.table(columns)


def _read_pois(folder: Path) -> pd.DataFrame:
    path = folder / "pois.parquet"
    if not path.is_file():
        raise MissingInputError(
            what="the POI file",
            where=str(path),
            needed_by="evaluate --protocol",
            remedy="Give the folder of check-ins and POIs with --data.",
        )
    pois = pd.read_parquet(path, columns=None)
    if "category" not in pois:
        pois = pois.assign(category=None)
    return pois[["poi_id", "longitude", "latitude", "category"]]  # without the counts, which span all periods


def _before(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Returns the value of the same user's previous visit; nan at a user's first."""
    before = np.full(len(values), np.nan)
    same = users[1:] == users[:-1]
    before[1:][same] = values[:-1][same]
    return before
