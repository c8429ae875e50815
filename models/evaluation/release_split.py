"""The default protocol, `release-split`: held-out targets of `pretrain_samples` as serving would see them.

A request is a target action of the split. Its history is all strictly earlier actions of its sample. The request has
a time, the user's place and one action type for all requests (the most common one of the training targets), never the
type of the target. The target is ranked among all slots of the index that are live on that day; targets that are not
live are left out and counted separately.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from models.copying.crowd_candidates import SlotFinder
from models.data.arrays import IntArray
from models.data.catalogue import Catalogue
from models.data.ragged import rows_and_places
from models.data.requests import Requests, Visits, previous_within
from models.evaluation.baselines import TrainingCounts, count_training

MODEL_COLUMNS = (
    "timestamps_ms", "tz_offsets_min", "user_lons", "user_lats", "action_type_ids",
    "block_ids", "inner_ids", "poi_lons", "poi_lats", "category_ids",
)  # fmt: skip
"""History columns that a model reads."""


def draw_evenly(num_rows: int, limit: int) -> IntArray:
    """Returns the numbers of at most `limit` of some rows, evenly spaced; all if there are no more."""
    return np.arange(min(limit, num_rows), dtype=np.int64) * num_rows // max(min(limit, num_rows), 1)


@dataclass(frozen=True)
class EvaluationRows:
    """Requests with all inputs of models and baselines.

    Attributes:
        requests: users, times, targets and histories.
        catalogue: slots to rank.
        counts: counts of the training period for the baselines.
        visit_columns: `MODEL_COLUMNS` of every visit, flat.
        user_lons: longitude of the user at each request; nan = unknown.
        user_lats: latitude of the user at each request.
        profile_ids: profile attributes of each request's user.
        action_type_id: action type of the requests.
        is_simulated: True = built from simulated rows.
        num_not_live: number of targets left out since they were not live on their day.
        finder: finder of crowd candidates from the training period; None if no model needs it.
    """

    requests: Requests
    catalogue: Catalogue
    counts: TrainingCounts
    visit_columns: dict[str, pa.Array]
    user_lons: np.ndarray
    user_lats: np.ndarray
    profile_ids: pa.Array
    action_type_id: int
    is_simulated: bool = False
    num_not_live: int = 0
    finder: SlotFinder | None = None

    def take(self, rows: IntArray) -> "EvaluationRows":
        """Returns some of the rows; catalogue, counts and visits are shared."""
        return replace(
            self,
            requests=self.requests.take(rows),
            user_lons=self.user_lons[rows],
            user_lats=self.user_lats[rows],
            profile_ids=self.profile_ids.take(pa.array(rows)),
        )

    def draw(self, limit: int) -> "EvaluationRows":
        """Returns at most `limit` of the rows, evenly spaced in their order; the same ones every time."""
        return self if len(self.requests) <= limit else self.take(draw_evenly(len(self.requests), limit))

    def count_visits(self) -> Counter[str]:
        """Counts the training visits of each POI over all its slots."""
        visits: Counter[str] = Counter()
        for poi_id, number in zip(self.catalogue.poi_ids, self.counts.popularity, strict=True):
            visits[poi_id] += number
        return visits

    def batches(self, num_rows: int) -> Iterator[tuple[IntArray, pa.RecordBatch]]:
        """Yields (rows, requests in the columns of a model), at most `num_rows` at a time, by history length."""
        order = np.argsort(self.requests.stops - self.requests.starts, kind="stable")
        for start in range(0, len(order), num_rows):
            rows = order[start : start + num_rows]
            yield rows, self._batch(rows)

    def _batch(self, rows: IntArray) -> pa.RecordBatch:
        requests = self.requests.take(rows)
        _, past = requests.pairs()
        offsets = pa.array(
            np.concatenate([[0], np.cumsum(requests.stops - requests.starts)]).astype(np.int32)
        )
        columns = {
            name: pa.ListArray.from_arrays(offsets, values.take(pa.array(past)))
            for name, values in self.visit_columns.items()
        }
        columns |= {
            "user_id": pa.array(requests.users.tolist(), pa.string()),
            "request_ts_ms": pa.array(requests.timestamps_ms),
            "tz_offset_min": pa.array(requests.tz_offsets_min),
            "user_lon": pa.array(self.user_lons[rows]),
            "user_lat": pa.array(self.user_lats[rows]),
            "action_type_id": pa.array(np.full(len(rows), self.action_type_id)),
            "profile_ids": self.profile_ids.take(pa.array(rows)),
        }
        return pa.record_batch(columns)


def build_rows(
    training: pa.Table, held_out: pa.Table, catalogue: Catalogue, *, action_type_id: int | None = None
) -> EvaluationRows:
    """Builds the requests of a held-out split.

    Args:
        training: `pretrain_samples` of the training split (windows are counted, context is not).
        held_out: `pretrain_samples` of the split to score.
        catalogue: all slots of the index.
        action_type_id: action type of the requests; None = the most common one of the training targets.
    """
    lists = {name: _as_lists(held_out, name) for name in (*MODEL_COLUMNS, "is_targets")}
    offsets = lists["timestamps_ms"].offsets.to_numpy().astype(np.int64)
    flat = {name: column.flatten() for name, column in lists.items()}
    sample = np.repeat(np.arange(len(held_out)), np.diff(offsets))
    visits = _visits(flat, sample, catalogue)
    targets = np.flatnonzero(flat["is_targets"].to_numpy(zero_copy_only=False))
    is_live = _are_live(visits, targets, catalogue)
    requests = _requests(held_out, visits, sample, offsets, targets[is_live], flat)
    live_targets = targets[is_live]
    return EvaluationRows(
        requests=requests,
        catalogue=catalogue,
        counts=count_training(_training_visits(training, catalogue), num_pois=len(catalogue)),
        visit_columns={name: flat[name] for name in MODEL_COLUMNS},
        user_lons=flat["user_lons"].to_numpy()[live_targets].astype(np.float64),
        user_lats=flat["user_lats"].to_numpy()[live_targets].astype(np.float64),
        profile_ids=_as_lists(held_out, "profile_ids").take(pa.array(sample[live_targets])),
        action_type_id=most_common_action_type(training) if action_type_id is None else action_type_id,
        is_simulated=bool(held_out.num_rows) and any(held_out["is_simulated"].to_pylist()),
        num_not_live=int((~is_live).sum()),
    )


def most_common_action_type(samples: pa.Table) -> int:
    """Returns the most common action type of targets (ties: the smallest id); 0 = click if there is no target."""
    types = _as_lists(samples, "action_type_ids").flatten().to_numpy().astype(np.int64)
    is_target = _as_lists(samples, "is_targets").flatten().to_numpy(zero_copy_only=False)
    return int(np.bincount(types[is_target], minlength=1).argmax())


def _visits(flat: dict[str, pa.Array], sample: IntArray, catalogue: Catalogue) -> Visits:
    pois = catalogue.find_rows(flat["block_ids"].to_numpy(), flat["inner_ids"].to_numpy())
    return Visits(
        pois=pois,
        previous_pois=previous_within(pois, sample),
        timestamps_ms=flat["timestamps_ms"].to_numpy().astype(np.int64),
        tz_offsets_min=flat["tz_offsets_min"].to_numpy().astype(np.int64),
    )


def _are_live(visits: Visits, targets: IntArray, catalogue: Catalogue) -> np.ndarray:
    pois, days = visits.pois[targets], visits.timestamps_ms[targets] // 86_400_000
    known = np.maximum(pois, 0)
    if not len(catalogue):
        return np.zeros(len(targets), dtype=np.bool_)
    return (pois >= 0) & (catalogue.first_days[known] <= days) & (days < catalogue.last_days[known])


def _requests(
    held_out: pa.Table,
    visits: Visits,
    sample: IntArray,
    offsets: IntArray,
    targets: IntArray,
    flat: dict[str, pa.Array],
) -> Requests:
    users = np.asarray(held_out["user_id"].to_pylist(), dtype=str)[sample[targets]]
    poi_ids = _as_lists(held_out, "poi_ids").flatten().take(pa.array(targets)).to_pylist()
    times = visits.timestamps_ms[targets]
    starts = offsets[sample[targets]]
    # From the left: actions in the same millisecond as the target do not count as earlier.
    stops = [
        start + np.searchsorted(visits.timestamps_ms[start:target], time, side="left")
        for start, target, time in zip(starts, targets, times, strict=True)
    ]
    row_ids = [f"{user}|{time}|{poi}" for user, time, poi in zip(users, times, poi_ids, strict=True)]
    return Requests(
        row_ids=np.array(row_ids, dtype=str),
        users=users,
        timestamps_ms=times,
        tz_offsets_min=visits.tz_offsets_min[targets],
        targets=visits.pois[targets],
        starts=starts,
        stops=np.array(stops, dtype=np.int64),
        visits=visits,
    )


def _training_visits(training: pa.Table, catalogue: Catalogue) -> Visits:
    """Returns the windows of training samples: each action once; its previous POI may be context."""
    names = ("block_ids", "inner_ids", "timestamps_ms", "tz_offsets_min")
    lists = {name: _as_lists(training, name) for name in names}
    lengths = np.diff(lists["block_ids"].offsets.to_numpy()).astype(np.int64)
    sample, position = rows_and_places(lengths)
    visits = _visits({name: column.flatten() for name, column in lists.items()}, sample, catalogue)
    in_window = position >= training["num_context"].to_numpy().astype(np.int64)[sample]
    return Visits(*(values[in_window] for values in vars(visits).values()))


def _as_lists(table: pa.Table, name: str) -> pa.ListArray:
    """Returns a list column as one array whose offsets start at 0."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    if isinstance(column, pa.ListArray) and len(column) and column.offsets[0].as_py() == 0:
        return column
    return pa.concat_arrays([pa.array([], type=column.type), column])
