"""Which features were current at a request: a timeline of views, from the log of releases or of backfills.

A view says which rows of the feature tables count: those of one model up to one day, at one version of each table.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Literal

from conf.errors import MissingBackfillError
from conf.releases import Release, find_taken_back
from conf.units import MS_PER_DAY

Clock = Literal["published", "day"]
VECTORS = {"user_embeddings": "user_id", "poi_embeddings": "poi_id"}
"""Feature tables of vectors, and the key of a vector."""
SCORES = "ranking_scores"
FEATURE_COLUMNS = (
    "release_id", "features_day", "model_version", "user_embedding", "poi_embedding", "click_logit", "score",
)  # fmt: skip
"""Columns that are added: the release (null for a backfill), the last day and the model of the features, the vectors
(array<float>), log-odds and probability of a click; null where nothing was known."""
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, eq=False)
class View:
    """Rows of the feature tables that were current for a while.

    Attributes:
        day: rows of later days do not count.
        first_day: rows of earlier days do not count; None = no limit.
        model_version: the model of all rows.
        index_version: its index version.
        release_id: the release that shows the rows; None = a backfill.
        versions: Delta version of each feature table and of `poi_index`; a table without one is read as it is now.
        is_readable: False if the release was withdrawn, so its rows are gone.
    """

    day: date
    first_day: date | None
    model_version: str
    index_version: int
    release_id: int | None = None
    versions: Mapping[str, int] = field(default_factory=dict)
    is_readable: bool = True

    def table(self, name: str) -> str:
        """Returns the name of the table that holds a feature."""
        return name if self.release_id is not None else f"backfilled_{name}"


@dataclass(frozen=True)
class Timeline:
    """Views in the order in which they became current.

    Attributes:
        starts_ms: ascending, first millisecond UTC of each span.
        views: the view of each span; None = nothing was known.
        score_views: views that hold the scores of requests by the UTC day of the request; None: the score must be one
            that the request's own view shows.
    """

    starts_ms: tuple[int, ...]
    views: tuple[View | None, ...]
    score_views: tuple[View, ...] | None = None

    def find(self, request_ts_ms: int) -> View | None:
        """Returns the view that was current at a time; None if there was none."""
        place = bisect_right(self.starts_ms, request_ts_ms)
        return self.views[place - 1] if place else None


@dataclass(frozen=True)
class Backfill:
    """One row of `backfills`; see its contract."""

    model_version: str
    first_day: date
    last_day: date
    computed_ts_ms: int
    index_version: int


def published_timeline(releases: Sequence[Release]) -> Timeline:
    """Returns what readers saw at each moment: the newest release that had been published before it.

    A rollback counts from its moment on, and what it took back counts until then, since readers saw that.
    """
    starts: list[int] = []
    views: list[View | None] = []
    current: Release | None = None
    for release in sorted(releases, key=lambda release: (release.published_ts_ms, release.release_id)):
        if current is not None and release.release_id < current.release_id:
            continue
        current = release
        # Strictly after it was published: at the very millisecond, nobody can tell what a reader got.
        starts.append(release.published_ts_ms + 1)
        views.append(view_of(release))
    return _timeline(starts, views)


def day_timeline(releases: Sequence[Release]) -> Timeline:
    """Returns what is known of each day now: the features made at the end of a day count from the next day on.

    Of several releases of a day the last one counts, and none that was withdrawn or taken back.
    """
    taken_back = {
        (release.day, tuple(sorted(release.table_versions.items()))) for release in find_taken_back(releases)
    }
    of_day: dict[date, Release] = {}
    for release in releases:
        content = (release.day, tuple(sorted(release.table_versions.items())))
        if not release.withdrawn and content not in taken_back:
            of_day[release.day] = release
    days = sorted(of_day)
    views = [view_of(of_day[day]) for day in days]
    timeline = _timeline([day_start_ms(day) + MS_PER_DAY for day in days], views)
    return Timeline(timeline.starts_ms, timeline.views, score_views=tuple(views))


def backfill_timeline(backfills: Iterable[Backfill], model_version: str) -> Timeline:
    """Returns the features of each day that one model has backfilled.

    Raises:
        MissingBackfillError: the model has backfilled no day.
    """
    ranges = sorted(backfills, key=lambda one: one.computed_ts_ms)
    of_model = [one for one in ranges if one.model_version == model_version]
    if not of_model:
        known = sorted({one.model_version for one in ranges})
        raise MissingBackfillError(model_version=model_version, known=known)
    views: dict[date, View] = {}
    for one in of_model:
        before = one.first_day - timedelta(days=1)
        for number in range((one.last_day - one.first_day).days + 1):
            day = before + timedelta(days=number)
            views[day] = View(day, before, model_version, one.index_version)
    starts: list[int] = []
    found: list[View | None] = []
    for day in sorted(views):
        start = day_start_ms(day) + MS_PER_DAY
        if starts and starts[-1] + MS_PER_DAY < start:  # days between two ranges are unknown
            starts.append(starts[-1] + MS_PER_DAY)
            found.append(None)
        starts.append(start)
        found.append(views[day])
    starts.append(starts[-1] + MS_PER_DAY)
    found.append(None)
    last = max(views)
    scores = View(last + timedelta(days=1), None, model_version, views[last].index_version)
    return Timeline(tuple(starts), tuple(found), score_views=(scores,))


def view_of(release: Release) -> View:
    """Returns the rows that a release shows."""
    return View(
        day=release.day,
        first_day=None,
        model_version=release.model_version,
        index_version=release.index_version,
        release_id=release.release_id,
        versions=release.table_versions,
        is_readable=not release.withdrawn,
    )


def day_start_ms(day: date) -> int:
    """Returns the first millisecond of a UTC day."""
    return (day - _EPOCH).days * MS_PER_DAY


def group_by_source(views: Iterable[View], name: str) -> list[list[View]]:
    """Groups views that read the same rows: one model at one version of a table and of the index."""
    groups: dict[tuple[object, ...], list[View]] = defaultdict(list)
    for view in views:
        versions = view.versions.get(name), view.versions.get("poi_index")
        groups[(view.table(name), *versions, view.model_version, view.index_version)].append(view)
    return list(groups.values())


def _timeline(starts: Sequence[int], views: Sequence[View | None]) -> Timeline:
    """Keeps the last view of those that start at once."""
    last = dict(zip(starts, views, strict=True))
    ordered = sorted(last)
    return Timeline(tuple(ordered), tuple(last[start] for start in ordered))
