"""Held-out requests with everything that the lift needs: base features, and vectors and scores of a bundle."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.errors import MissingInputError, SchemaError
from conf.units import HOURS_PER_DAY, MS_PER_DAY
from models.data.arrays import Float64Array
from models.data.catalogue import Catalogue
from models.data.requests import Visits, local_hours, previous_within
from models.evaluation.baselines import count_training
from models.lift.features import BASE_FEATURES, Exposures, History, build_base_features
from models.lift.measure import LiftFeatures
from models.lift.ranker import Rows
from models.serving.bundle import ModelBundle
from models.serving.inference import encode_pois, encode_user_requests, score_candidates

LOGGER = logging.getLogger(__name__)
ACTION_NAMES = ("user_id", "action_ts_ms", "tz_offset_min", "block_id", "inner_id")
"""Columns of `cleaned_actions` that the base features are counted from."""
SHOWN_NAMES = ("user_id", "request_ts_ms", "candidate_block_ids", "candidate_inner_ids", "labels")
"""Columns of `ranking_samples` that past exposures are counted from."""
MAX_REQUESTS = 20_000
"""The last requests are taken, so that a large platform's lift takes minutes."""


@dataclass(frozen=True)
class HeldOut:
    """Requests of later days than the model was trained on, one row per shown POI, in the order of time.

    Attributes:
        exposures: the shown POIs.
        catalogue: POIs that the rows refer to.
        base: (rows, features), what a ranking team has without the model.
        names: names of the base features, own columns of the team last.
        hours: (rows,), local hours since the epoch.
        is_simulated: whether any row was simulated.
    """

    exposures: Exposures
    catalogue: Catalogue
    base: Float64Array
    names: tuple[str, ...]
    hours: Float64Array
    is_simulated: bool

    @property
    def rows(self) -> Rows:
        """Labels, users and requests, without features."""
        exposures = self.exposures
        return Rows(np.zeros((len(exposures), 0)), exposures.labels, exposures.users, exposures.requests)

    @property
    def timestamps_ms(self) -> np.ndarray:
        """Time of each row's request."""
        times = self.exposures.samples["request_ts_ms"].to_numpy().astype(np.int64)
        return times[self.exposures.requests]

    def features(self, bundle: ModelBundle) -> LiftFeatures:
        """Returns the base features with vectors and scores of a bundle, as its stages allow."""
        batches = [part for part in self.exposures.samples.combine_chunks().to_batches() if part.num_rows]
        users = pois = logits = None
        if "sft_embedding" in bundle.stage_names:
            per_request = np.concatenate([encode_user_requests(bundle, part) for part in batches])
            users = per_request.astype(np.float64)[self.exposures.requests]
            shown, row = np.unique(self.exposures.rows, return_inverse=True)
            pois = encode_pois(bundle, self.catalogue.take(shown)).astype(np.float64)[row]
        if "sft_ranking" in bundle.stage_names:
            parts = [np.concatenate(score_candidates(bundle, part)) for part in batches]
            logits = np.concatenate(parts).astype(np.float64)
        return LiftFeatures(self.base, self.names, users, pois, logits)


def gather_held_out(
    samples: pa.Table,
    earlier: pa.Table,
    actions: pa.Table,
    catalogue: Catalogue,
    own_columns: Path | None = None,
) -> HeldOut:
    """Builds the rows of a lift.

    Args:
        samples: held-out `ranking_samples`.
        earlier: all other samples, `SHOWN_NAMES`; their exposures and clicks count as the past.
        actions: `cleaned_actions`, `ACTION_NAMES`.
        catalogue: slots of the samples' index version.
        own_columns: Parquet file with `request_id`, `poi_id` and numeric columns, which become base features.

    Raises:
        MissingInputError, SchemaError: the file of own columns does not exist or fit.
    """
    ordered = samples.sort_by([("request_ts_ms", "ascending"), ("request_id", "ascending")])
    kept = ordered.slice(max(ordered.num_rows - MAX_REQUESTS, 0)).combine_chunks()
    exposures = Exposures.from_samples(kept, catalogue)
    everything = pa.concat_tables([earlier.select(SHOWN_NAMES), ordered.select(SHOWN_NAMES)])
    first_ms = int(kept["request_ts_ms"].to_numpy().min())
    history = gather_history(
        actions, Exposures.from_samples(everything, catalogue), catalogue, until_ms=first_ms
    )
    base = build_base_features(exposures, catalogue, history)
    names: tuple[str, ...] = BASE_FEATURES
    if own_columns is not None:
        added, own_names = read_own_columns(own_columns, exposures)
        base, names = np.hstack([base, added]), (*names, *own_names)
    times, offsets = (kept[name].to_numpy().astype(np.int64) for name in ("request_ts_ms", "tz_offset_min"))
    is_simulated = bool(pc.any(kept["is_simulated"]).as_py())
    hours = local_hours(times, offsets)[exposures.requests]
    return HeldOut(exposures, catalogue, base, names, hours, is_simulated)


def gather_history(actions: pa.Table, shown: Exposures, catalogue: Catalogue, *, until_ms: int) -> History:
    """Gathers all actions and exposures; popularity and transitions of the baseline as of the day of `until_ms`."""
    ordered = actions.sort_by([("user_id", "ascending"), ("action_ts_ms", "ascending")])
    times, offsets, blocks, inners = (ordered[name].to_numpy().astype(np.int64) for name in ACTION_NAMES[1:])
    rows = catalogue.find_rows(blocks, inners)
    users = ordered["user_id"].to_numpy(zero_copy_only=False).astype(str)
    early = times < until_ms // MS_PER_DAY * MS_PER_DAY
    visits = Visits(rows[early], previous_within(rows[early], users[early]), times[early], offsets[early])
    return History(
        visit_rows=rows,
        visit_times=times,
        visit_hours=np.floor(local_hours(times, offsets)).astype(np.int64) % HOURS_PER_DAY,
        shown_rows=shown.rows,
        shown_times=shown.samples["request_ts_ms"].to_numpy().astype(np.int64)[shown.requests],
        shown_labels=shown.labels,
        counts=count_training(visits, num_pois=len(catalogue)),
    )


def read_own_columns(path: Path, exposures: Exposures) -> tuple[Float64Array, tuple[str, ...]]:
    """Reads the ranking team's own features of the rows; nan where the file has none.

    Returns:
        (rows, columns) and the names.

    Raises:
        MissingInputError: there is no such file.
        SchemaError: a key is missing, a column is not a number, or a request has a POI twice.
    """
    if not path.is_file():
        raise MissingInputError(
            what="the file of own columns", where=str(path), needed_by="The lift",
            remedy="Check --own-columns; it is a Parquet file.",
        )  # fmt: skip
    table = pq.read_table(path)
    for name in ("request_id", "poi_id"):
        if name not in table.column_names:
            raise _bad_columns(path, name, "string", f"only {', '.join(table.column_names)}")
    names = tuple(name for name in table.column_names if name not in ("request_id", "poi_id"))
    for name in names:
        kind = table.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise _bad_columns(path, name, "a number", str(kind))
    keys = list(zip(table["request_id"].to_pylist(), table["poi_id"].to_pylist(), strict=True))
    row_of = {key: row for row, key in enumerate(keys)}
    if len(row_of) < len(keys):
        raise _bad_columns(
            path, "poi_id", "unique within a request", f"{len(keys) - len(row_of)} repeated rows"
        )
    requests = exposures.samples["request_id"].to_pylist()
    pois = [poi for row in exposures.samples["candidate_poi_ids"].to_pylist() for poi in row]
    found = np.array(
        [
            row_of.get((requests[number], poi), -1)
            for number, poi in zip(exposures.requests, pois, strict=True)
        ]
    )
    LOGGER.info(
        "own columns %s: %d of %d rows have them", ", ".join(names), int((found >= 0).sum()), len(found)
    )
    columns = [np.append(table[name].cast(pa.float64()).to_numpy(), np.nan)[found] for name in names]
    return (np.stack(columns, axis=1) if columns else np.zeros((len(found), 0))), names


def _bad_columns(path: Path, column: str, expected: str, found: str) -> SchemaError:
    return SchemaError(
        table=str(path), column=column, expected=expected, found=found,
        remedy="Write one row per request and shown POI, with numeric features, then run the same command.",
    )  # fmt: skip
