"""Public next-POI protocols: the training rows and scored rows of a check-in folder.

A folder holds `checkins.parquet` (user, POI, UTC time, offset; see README, "own data"). A protocol orders it by user
and time, drops what it drops, cuts trajectories, splits by time or as the folder says, and names the rows to score.
Nothing else is removed. A target counts if its user and its POI both occur among training rows: those that are not the
first of their trajectory, or any, where splits and sessions are the folder's own. The digest of the scored row ids
(`user_id|unix second|poi_id`) proves that two runs, or two programs, scored the same rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from conf.errors import CorruptInputError, MissingInputError
from conf.units import MS_PER_DAY
from models.data.arrays import BoolArray, IntArray
from models.data.requests import Requests, Visits, previous_within

TRAJECTORY_GAP_H = 24
GETNEXT_FIRST_VALIDATION = pd.Timestamp("2012-11-09 21:54:47", tz="UTC")
"""First validation row of the published split; rows before it are training rows."""

MIN_SESSION = 3
MS_PER_SECOND, MS_PER_HALF_HOUR = 1_000, 1_800_000
FIRST_DAY = 14_613
"""Day of a user's first check-in where no day is known, 2010-01-04, in days since 1970; any will do."""

Frame: TypeAlias = pd.DataFrame


@dataclass(frozen=True)
class Protocol:
    """A named way to make training and scored rows from a check-in folder.

    Attributes:
        prepare: ordered check-ins -> the rows of the protocol with `split` (empty = history only), `is_first` and
            `is_last` of their trajectory, `may_count`, without which a row is not scored, and `is_known_by`: the
            training rows that make a user and a POI known.
        is_last_only: score the last check-in of each trajectory instead of all but its first.
        hides_request_time: the hour, weekday and gap of the target are unknown.
        digest: digest of the scored test rows on the data the protocol was defined on; empty = none
            published.
        needs: columns that the protocol reads in addition to those of every check-in folder.
    """

    prepare: Callable[[Frame], Frame]
    is_last_only: bool = False
    hides_request_time: bool = False
    digest: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProtocolRows:
    """The rows of a protocol from a folder.

    Attributes:
        poi_ids: the catalogue: POIs with a training check-in, sorted.
        visits: all rows of the protocol, by user, then time.
        users: user of each visit.
        visit_poi_ids: POI of each visit, including POIs outside the catalogue.
        splits: split of each visit.
        requests: the scored rows by split (`val`, `test`).
        selection_rows: visits by which checkpoints are selected: every validation check-in that may be a
            target, whichever of them the protocol scores.
        num_rows: rows of each split.
    """

    poi_ids: list[str]
    visits: Visits
    users: NDArray[np.str_]
    visit_poi_ids: NDArray[np.object_]
    splits: NDArray[np.object_]
    requests: dict[str, Requests]
    selection_rows: IntArray
    num_rows: dict[str, int]

    @property
    def is_training(self) -> BoolArray:
        """Which visits are training rows, (visits,) bool."""
        return self.splits == "train"

    @property
    def training_visits(self) -> Visits:
        rows = self.is_training
        return Visits(*(values[rows] for values in vars(self.visits).values()))


def build_rows(protocol: Protocol, folder: Path) -> ProtocolRows:
    """Builds the rows of a protocol from a check-in folder.

    Raises:
        MissingInputError: the folder has no `checkins.parquet`.
        CorruptInputError: the file lacks what the protocol needs.
    """
    checkins = _read_checkins(folder)
    missing = [name for name in protocol.needs if name not in checkins]
    if missing:
        raise CorruptInputError(
            path=str(folder / "checkins.parquet"),
            expected=f"check-ins with the columns {', '.join(protocol.needs)}, which this protocol reads",
            cause=f"it lacks {', '.join(missing)}; protocol time-split takes any folder",
        )
    frame = protocol.prepare(checkins).reset_index(drop=True)
    is_training = (frame["split"] == "train").to_numpy()
    poi_ids = sorted(set(frame.loc[is_training, "poi_id"]))
    rows_of = {poi_id: row for row, poi_id in enumerate(poi_ids)}
    pois = np.array([rows_of.get(poi_id, -1) for poi_id in frame["poi_id"]], dtype=np.int64)
    users = frame["user_id"].to_numpy(dtype=str)
    visits = Visits(
        pois=pois,
        previous_pois=previous_within(pois, users),
        timestamps_ms=frame["ts_ms"].to_numpy(np.int64),
        tz_offsets_min=frame["tz_offset_min"].fillna(0).to_numpy(np.int64),
    )
    return ProtocolRows(
        poi_ids=poi_ids,
        visits=visits,
        users=users,
        visit_poi_ids=frame["poi_id"].to_numpy(dtype=object),
        splits=frame["split"].to_numpy(dtype=object),
        requests={split: _requests(frame, visits, users, split, protocol) for split in ("val", "test")},
        selection_rows=_scored_rows(frame, "val", is_last_only=False),
        num_rows=frame["split"].value_counts().to_dict(),
    )


def _read_checkins(folder: Path) -> Frame:
    path = folder / "checkins.parquet"
    if not path.is_file():
        raise MissingInputError(
            what="the check-in file",
            where=str(path),
            needed_by="evaluate --protocol",
            remedy="Give its folder with --data.",
        )
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise CorruptInputError(
            path=str(path), expected="a Parquet file of check-ins", cause=str(error)
        ) from error
    missing = [name for name in ("user_id", "poi_id", "utc_time") if name not in frame]
    if missing:
        raise CorruptInputError(
            path=str(path),
            expected="check-ins with user_id, poi_id and utc_time",
            cause=f"it lacks {missing}",
        )
    frame["user_id"], frame["poi_id"] = frame["user_id"].astype(str), frame["poi_id"].astype(str)
    frame["utc_time"] = pd.to_datetime(frame["utc_time"], utc=True)  # without a zone it is UTC
    if "tz_offset_min" not in frame:
        frame["tz_offset_min"] = 0
    frame["ts_ms"] = frame["utc_time"].astype("datetime64[us, UTC]").astype(np.int64) // 1000
    if frame["user_id"].str.isdigit().all():  # numeric ids keep the order of the published files
        return frame.assign(order=frame["user_id"].astype(np.int64)).sort_values(
            ["order", "ts_ms"], kind="stable"
        )
    return frame.sort_values(["user_id", "ts_ms"], kind="stable")


def _requests(frame: Frame, visits: Visits, users: np.ndarray, split: str, protocol: Protocol) -> Requests:
    rows = _scored_rows(frame, split, is_last_only=protocol.is_last_only)
    starts, stops = _strictly_earlier(users, visits.timestamps_ms, rows)
    # Of the check-in as it was delivered, also where a protocol hides its day.
    seconds = frame["utc_time"].astype("datetime64[us, UTC]").astype(np.int64).to_numpy()[rows] // 1_000_000
    row_ids = [
        f"{users[row]}|{second}|{frame['poi_id'].iat[row]}" for row, second in zip(rows, seconds, strict=True)
    ]
    return Requests(
        row_ids=np.array(row_ids, dtype=str),
        users=users[rows],
        timestamps_ms=visits.timestamps_ms[rows],
        tz_offsets_min=visits.tz_offsets_min[rows],
        targets=visits.pois[rows],
        starts=starts,
        stops=stops,
        visits=visits,
    )


def _scored_rows(frame: Frame, split: str, *, is_last_only: bool) -> IntArray:
    """Scored rows of a split: last, or all but the first, of a trajectory, by a known user at a known POI."""
    known = frame[(frame["split"] == "train") & frame["is_known_by"]]
    scored = frame["is_last"] if is_last_only else ~frame["is_first"]
    scored = scored & frame["may_count"] & (frame["split"] == split)
    scored &= frame["user_id"].isin(set(known["user_id"])) & frame["poi_id"].isin(set(known["poi_id"]))
    return np.flatnonzero(scored)


def _strictly_earlier(
    users: np.ndarray, timestamps_ms: IntArray, rows: IntArray
) -> tuple[IntArray, IntArray]:
    """Start and stop of each row's history: its user's rows with a smaller time."""
    first_of_user = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    starts = first_of_user[np.searchsorted(first_of_user, rows, side="right") - 1]
    stops = [
        start + np.searchsorted(timestamps_ms[start : row + 1], timestamps_ms[row], side="left")
        for start, row in zip(starts, rows, strict=True)
    ]
    return starts, np.array(stops, dtype=np.int64)


def _with_trajectories(frame: Frame, *, min_length: int) -> Frame:
    """Cuts trajectories at gaps over 24 h and keeps those of at least `min_length` check-ins."""
    is_new_user = frame["user_id"] != frame["user_id"].shift()
    is_gap = frame["ts_ms"].diff() > TRAJECTORY_GAP_H * 3_600_000
    frame = frame.assign(trajectory=(is_new_user | is_gap).cumsum())
    return frame[frame.groupby("trajectory")["ts_ms"].transform("size") >= min_length]


def _mark_ends(frame: Frame) -> Frame:
    """Marks the first and the last row of each `trajectory`, whose rows follow each other."""
    trajectory = frame["trajectory"]
    is_first, is_last = trajectory != trajectory.shift(), trajectory != trajectory.shift(-1)
    return frame.assign(is_first=is_first, is_last=is_last, may_count=True, is_known_by=~is_first)


def _getnext_split(frame: Frame) -> Frame:
    """The cut behind the paper's Table 6; a trajectory that crosses a split's border is two."""
    frame = _with_trajectories(frame.drop_duplicates(["user_id", "poi_id", "utc_time"]), min_length=3)
    is_training = frame["utc_time"] < GETNEXT_FIRST_VALIDATION
    published = frame["getnext_split"].fillna("")
    frame = frame.assign(split=np.where(is_training, "train", published))
    frame = frame[frame["split"] != ""]
    return _mark_ends(frame.assign(trajectory=frame.groupby(["trajectory", "split"], sort=False).ngroup()))


def _getnext_with_history(frame: Frame) -> Frame:
    """The cut behind Table 6, and every other row as history: as a pipeline has it, and published rivals do not."""
    frame = frame.drop_duplicates(["user_id", "poi_id", "utc_time"])
    cut = _getnext_split(frame)
    rest = frame.drop(cut.index).assign(
        split="", is_first=True, is_last=True, may_count=False, is_known_by=False
    )
    return pd.concat([cut, rest]).loc[frame.index]


def _published_split(frame: Frame) -> Frame:
    """The published rows of a column of Table 6, with their split and sessions; validation rows have no sessions."""
    sessions = frame["session"].where(frame["session"] >= 0)
    whole = _cut_sessions(frame, sessions.fillna(-1.0))
    return whole.assign(
        may_count=whole["true_last"].eq(True).fillna(False).astype(bool) | (whole["split"] != "test")
    )


def _estimated_split(frame: Frame) -> Frame:
    """The California column of Table 6: for a part of its rows only order and half hour are known, not the day.

    So no row keeps its day: a user's rows keep order and clock, and a day passes wherever the clock goes back. Weekday
    and gap then hold no more than order and clock do.
    """
    whole = _cut_sessions(frame, frame["session"].astype(np.float64))
    half_hours = whole["half_hour_utc"].to_numpy(np.int64)
    is_new_user = (whole["user_id"] != whole["user_id"].shift()).to_numpy()
    steps = np.diff(half_hours, prepend=0)
    days = np.cumsum((steps < 0) & ~is_new_user)
    days -= np.maximum.accumulate(np.where(is_new_user, days, 0))
    # Rows of one half hour are a second apart, since the order is known.
    places = np.arange(len(steps))
    seconds = places - np.maximum.accumulate(np.where((steps != 0) | is_new_user, places, 0))
    clock_ms = half_hours * MS_PER_HALF_HOUR + seconds * MS_PER_SECOND
    return whole.assign(ts_ms=(FIRST_DAY + days) * MS_PER_DAY + clock_ms)


def _session_split(frame: Frame) -> Frame:
    """The folder's own splits and sessions; sessions of three or more count."""
    whole = _cut_sessions(frame, frame["session"].astype(np.float64))
    size = whole.groupby("trajectory")["ts_ms"].transform("size")
    return whole.assign(may_count=size >= MIN_SESSION)


def _cut_sessions(frame: Frame, sessions: pd.Series) -> Frame:
    """Cuts trajectories where user, split or session change; rows without session (-1) also at gaps over 24 h."""
    is_gap = (frame["ts_ms"].diff() > TRAJECTORY_GAP_H * 3_600_000) & (sessions < 0)
    changes = [column != column.shift() for column in (frame["user_id"], frame["split"], sessions)]
    starts = changes[0] | changes[1] | changes[2] | is_gap
    return _mark_ends(frame.assign(trajectory=starts.cumsum())).assign(is_known_by=True)


def _lim_split(frame: Frame) -> Frame:
    """The rows and trajectories of less-is-more, split 80/10/10 by time."""
    frame = frame[frame["lim_traj_id"].notna()]
    return _split_by_time(frame.assign(trajectory=frame["lim_traj_id"]))


def _time_split(frame: Frame) -> Frame:
    """Consecutive check-ins at one POI collapsed, trajectories of 2 or more, split 80/10/10 by time."""
    is_repeat = (frame["user_id"] == frame["user_id"].shift()) & (frame["poi_id"] == frame["poi_id"].shift())
    return _split_by_time(_with_trajectories(frame[~is_repeat], min_length=2))


def _split_by_time(frame: Frame) -> Frame:
    """First 80 % of the check-ins by time, next 10 %, last 10 %; counts are rounded down."""
    order = frame["ts_ms"].rank(method="first").to_numpy() - 1
    first_val, first_test = int(0.8 * len(frame)), int(0.9 * len(frame))
    splits = np.where(order < first_val, "train", np.where(order < first_test, "val", "test"))
    return _mark_ends(frame.assign(split=splits))


GETNEXT, SESSIONS = ("getnext_split",), ("split", "session")
PROTOCOLS: dict[str, Protocol] = {
    "nyc-table6": Protocol(_getnext_split, is_last_only=True, digest="bbbda6f1e83e8a21", needs=GETNEXT),
    "nyc-table6-all": Protocol(_getnext_split, digest="252b8674516db305", needs=GETNEXT),
    "nyc-table6-notime": Protocol(
        _getnext_split, is_last_only=True, hides_request_time=True, digest="bbbda6f1e83e8a21", needs=GETNEXT
    ),
    "nyc-table6-all-notime": Protocol(
        _getnext_split, hides_request_time=True, digest="252b8674516db305", needs=GETNEXT
    ),
    "nyc-table6-history": Protocol(
        _getnext_with_history, is_last_only=True, digest="bbbda6f1e83e8a21", needs=GETNEXT
    ),
    "nyc-table6-history-all": Protocol(_getnext_with_history, digest="252b8674516db305", needs=GETNEXT),
    "nyc-table6-true": Protocol(
        _published_split, is_last_only=True, digest="46af7b38048f44ac", needs=(*SESSIONS, "true_last")
    ),
    "nyc-lim-all": Protocol(_lim_split, digest="3f6237d609d0c3fb", needs=("lim_traj_id",)),
    "nyc-lim-last": Protocol(_lim_split, is_last_only=True, needs=("lim_traj_id",)),
    "nyc-lim-all-notime": Protocol(
        _lim_split, hides_request_time=True, digest="3f6237d609d0c3fb", needs=("lim_traj_id",)
    ),
    "charlotte": Protocol(_time_split, digest="82302839a3428b70"),
    "calgary": Protocol(_time_split, digest="cf7c87e4622026c5"),
    "gowalla-nyc": Protocol(_time_split, digest="7c2eca81b31ff403"),
    "ca-exact-all": Protocol(_time_split, digest="b1737a6c8243f232"),
    "ca-exact-last": Protocol(_session_split, is_last_only=True, digest="97821e7b52510bff", needs=SESSIONS),
    "ca-table6": Protocol(
        _estimated_split, is_last_only=True, digest="f31637ea61655e31", needs=(*SESSIONS, "half_hour_utc")
    ),
    "synthetic-city": Protocol(_time_split),
    "time-split": Protocol(_time_split),
}
