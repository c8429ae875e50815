"""Joins shown POIs with the features that were known at each request, through Arrow: one machine, no Spark.

Every table is read once per version that a view pins. The join is by code and day: the last row of a key up to the
view's day (`find_latest`).
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from conf.releases import read_table
from conf.units import MS_PER_DAY
from models.data.arrays import BoolArray, IntArray
from udfs.training_sets.views import SCORES, VECTORS, Timeline, View, group_by_source

SLOT_NAMES = ("poi_id", "index_version", "indexed_day", "valid_from", "valid_to", "closed_day")
FOR_EVER = np.iinfo(np.int32).max
_MAX_DAYS = 1 << 31


def join_features(root: str, shown: pa.Table, timeline: Timeline) -> pa.Table:
    """Adds the features to the rows, in their order.

    Args:
        root: table root.
        shown: `request_id`, `user_id`, `poi_id` (text, normalised), `request_ts_ms` (int64), and other columns.
        timeline: what was known when.

    Returns:
        The columns of `shown` and of `FEATURE_COLUMNS`; null where nothing was known.
    """
    times = shown["request_ts_ms"].combine_chunks()
    views = find_views(times, timeline)
    rows_of_view: dict[View, list[int]] = defaultdict(list)
    for row, view in enumerate(views):
        if view is not None and view.is_readable:
            rows_of_view[view].append(row)
    rows = {view: np.array(own, np.int64) for view, own in rows_of_view.items()}
    size = shown.num_rows
    readable = [view if view is not None and view.is_readable else None for view in views]
    added = {
        "release_id": pa.array([view.release_id if view else None for view in views], pa.int64()),
        "features_day": pa.array([view.day if view else None for view in readable], pa.date32()),
        "model_version": pa.array([view.model_version if view else None for view in readable], pa.string()),
        "user_embedding": look_up_vectors(root, "user_embeddings", shown["user_id"], rows, size),
        "poi_embedding": look_up_vectors(root, "poi_embeddings", shown["poi_id"], rows, size),
        **look_up_scores(root, shown, rows, timeline),
    }
    for name, column in added.items():
        shown = shown.append_column(name, column)
    return shown


def find_views(times_ms: pa.Array, timeline: Timeline) -> list[View | None]:
    """Returns the view of every time; None for nulls and where nothing was known."""
    starts = np.array(timeline.starts_ms, np.int64)
    places = np.searchsorted(starts, times_ms.fill_null(-1).to_numpy(), side="right")
    is_null = times_ms.is_null().to_numpy(zero_copy_only=False)
    spans = (None, *timeline.views)
    return [None if null else spans[place] for place, null in zip(places, is_null, strict=True)]


def look_up_vectors(
    root: str, name: str, keys: pa.ChunkedArray, rows: dict[View, IntArray], size: int
) -> pa.Array:
    """Returns the vector of each row's key as of its view, array<float>; null where there is none."""
    parts: list[pa.ChunkedArray] = []
    picked = np.full(size, -1, np.int64)
    offset = 0
    for views in group_by_source(rows, name):
        wanted = np.concatenate([rows[view] for view in views])
        days = np.concatenate([np.full(len(rows[view]), to_days(view.day)) for view in views])
        firsts = np.concatenate(
            [np.full(len(rows[view]), to_days(view.first_day) if view.first_day else 0) for view in views]
        )
        vectors = read_of_model(root, views[0], name, [VECTORS[name], "day", "embedding"])
        own = keys.take(pa.array(wanted))
        found = find_latest(vectors[VECTORS[name]], days_of(vectors["day"]), own, days, since=firsts)
        if name == "poi_embeddings":
            found = np.where(are_live(root, views, own, days), found, -1)
        picked[wanted] = np.where(found >= 0, found + offset, -1)
        parts.append(vectors["embedding"].cast(pa.list_(pa.float32())))
        offset += vectors.num_rows
    chunks = [chunk for part in parts for chunk in part.chunks]
    everything = pa.chunked_array(chunks, pa.list_(pa.float32()))
    return everything.take(pa.array(picked, mask=picked < 0)).combine_chunks()


def look_up_scores(
    root: str, shown: pa.Table, rows: dict[View, IntArray], timeline: Timeline
) -> dict[str, pa.Array]:
    """Returns log-odds and score of each row's request and POI; null where they were not scored."""
    keys = pc.binary_join_element_wise(shown["request_id"], shown["poi_id"], "\x1f")
    times = shown["request_ts_ms"].combine_chunks().fill_null(0).to_numpy()
    logits, scores = np.full(shown.num_rows, np.nan, np.float32), np.full(shown.num_rows, np.nan, np.float32)
    is_open = np.zeros(shown.num_rows, bool)
    models = np.empty(shown.num_rows, object)
    for view, own in rows.items():
        is_open[own], models[own] = True, view.model_version
    sources: list[tuple[View, IntArray]] = (
        list(rows.items())
        if timeline.score_views is None
        else [(view, np.flatnonzero(is_open)) for view in timeline.score_views]
    )
    for view, own in sources:
        own = own[is_open[own] & (models[own] == view.model_version)]
        if not len(own):
            continue
        table = read_of_model(root, view, SCORES, ["request_id", "poi_id", "day", "click_logit", "score"])
        stored = pc.binary_join_element_wise(table["request_id"], table["poi_id"], "\x1f")
        request_days = (times[own] // MS_PER_DAY).astype(np.int64)
        days = days_of(table["day"])
        if view.release_id is None:  # a backfill has the scores of many days, each on the day of the request
            found = find_latest(stored, days, keys.take(pa.array(own)), request_days, since=request_days)
        else:
            day = to_days(view.day)
            of_day = np.full(len(own), day)
            found = find_latest(stored, days, keys.take(pa.array(own)), of_day, since=of_day)
            if timeline.score_views is not None:
                found = np.where(request_days <= day, found, -1)
        hit = own[found >= 0]
        taken = pa.array(found[found >= 0])
        logits[hit] = table["click_logit"].take(taken).to_numpy()
        scores[hit] = table["score"].take(taken).to_numpy()
        is_open[hit] = False  # the first day on which the request was scored counts
    return {
        "click_logit": pa.array(logits, mask=np.isnan(logits)),
        "score": pa.array(scores, mask=np.isnan(scores)),
    }


def read_of_model(root: str, view: View, name: str, columns: Sequence[str]) -> pa.Table:
    """Reads the rows of a view's model, at the view's version."""
    table = read_table(
        root, view.table(name), version=view.versions.get(name), columns=[*columns, "model_version"]
    )
    return table.filter(pc.field("model_version") == view.model_version)


def find_latest(
    keys: pa.ChunkedArray, days: IntArray, wanted: pa.ChunkedArray, up_to: IntArray, *, since: IntArray
) -> IntArray:
    """Returns the row with the latest day of each wanted key, between two days inclusive; -1 = none.

    Args:
        keys: (rows,), text; with the day it is unique.
        days: (rows,), days since 1970.
        wanted: (wanted,), text; null = none.
        up_to: (wanted,), last day that counts.
        since: (wanted,), first day that counts.
    """
    if not len(keys) or not len(wanted):
        return np.full(len(wanted), -1, np.int64)
    chunks = [*keys.cast(pa.string()).chunks, *wanted.cast(pa.string()).chunks]
    both = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode()
    codes = both.indices.fill_null(-1).to_numpy().astype(np.int64)
    stored, asked = codes[: len(keys)], codes[len(keys) :]
    packed = stored * _MAX_DAYS + days
    order = np.argsort(packed, kind="stable")
    place = np.searchsorted(packed[order], asked * _MAX_DAYS + up_to, side="right") - 1
    row = order[np.maximum(place, 0)]
    is_found = (place >= 0) & (stored[row] == asked) & (asked >= 0) & (days[row] >= since)
    return np.where(is_found, row, -1)


def are_live(root: str, views: Sequence[View], pois: pa.ChunkedArray, days: IntArray) -> BoolArray:
    """Returns whether each POI has a live slot on its day, as the index knew it at the end of that day."""
    view = views[0]
    slots = read_table(root, "poi_index", version=view.versions.get("poi_index"), columns=SLOT_NAMES)
    slots = slots.filter(pc.field("index_version") == view.index_version)
    indexed, starts = days_of(slots["indexed_day"]), days_of(slots["valid_from"])
    if view.release_id is None and len(indexed):  # the first run's catalogue counts as always known
        indexed = np.where(indexed == indexed.min(), 0, indexed)
    # A slot that was not known yet on a day is found for no earlier day than that on which it was indexed.
    row = find_latest(
        slots["poi_id"], np.maximum(starts, indexed), pois, days, since=np.zeros(len(days), np.int64)
    )
    ends, closed = days_of(slots["valid_to"]), days_of(slots["closed_day"])
    is_found = row >= 0
    is_ended = (ends[row] <= days) & ((closed[row] == FOR_EVER) | (closed[row] <= days))
    live: BoolArray = is_found & ~is_ended
    return live


def days_of(column: pa.ChunkedArray) -> IntArray:
    """Returns days since 1970; null becomes `FOR_EVER`."""
    days = column.cast(pa.int32()).fill_null(FOR_EVER)
    found: NDArray[np.int64] = days.to_numpy().astype(np.int64)
    return found


def to_days(day: date) -> int:
    """Returns the days since 1970."""
    return (day - date(1970, 1, 1)).days
