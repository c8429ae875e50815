"""The reader for training a ranking model: shown POIs in, with the features that were known at each request out.

    from udfs.training_sets.reader import read_training_set
    rows = read_training_set(None, "warehouse", "impressions.parquet")                # pyarrow.Table
    rows = read_training_set(spark, "warehouse", shown)                               # Spark DataFrame
    rows = read_training_set(None, "warehouse", shown, clock="day", model="spacetime-gr/3")

Two clocks say what was known:

- `published`: what readers saw at the moment of the request, from the log of releases. A release counts for requests
  strictly after its publication; a rollback counts from its own moment on.
- `day`: what the days themselves tell. Features made at the end of a day count from the next UTC day on, whenever they
  were published; releases that were taken back do not count. The score of a request is its own score, which was made
  from actions strictly before the request. With `model`, the rows are those that `python -m udfs backfill` computed.

Vectors of two models have no common space. A set that would hold rows of several models is refused, unless
`allow_mixed` is given; a row never holds features of two models.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyspark.sql import DataFrame, SparkSession

from conf.errors import MissingInputError, MixedModelsError, NoReleaseError, SchemaError
from conf.releases import read_table
from conf.tables import BACKFILLS, TABLES
from etl.delta.erased_users import clean_text
from udfs.releases.release_log import load_releases
from udfs.training_sets import with_arrow, with_spark
from udfs.training_sets.views import (
    FEATURE_COLUMNS,
    Backfill,
    Clock,
    Timeline,
    backfill_timeline,
    day_timeline,
    published_timeline,
)

LOGGER = logging.getLogger(__name__)
IDS = ("request_id", "user_id", "poi_id")
TIME = "request_ts_ms"


@overload
def read_training_set(
    spark: SparkSession,
    root: str,
    shown: DataFrame | str | Path,
    *,
    clock: Clock = "published",
    model: str = "",
    allow_mixed: bool = False,
) -> DataFrame: ...
@overload
def read_training_set(
    spark: None,
    root: str,
    shown: pa.Table | str | Path,
    *,
    clock: Clock = "published",
    model: str = "",
    allow_mixed: bool = False,
) -> pa.Table: ...
def read_training_set(
    spark: SparkSession | None,
    root: str,
    shown: DataFrame | pa.Table | str | Path,
    *,
    clock: Clock = "published",
    model: str = "",
    allow_mixed: bool = False,
) -> DataFrame | pa.Table:
    """Adds to shown POIs the features that were known at each request.

    Args:
        spark: open session, or None to work through Arrow.
        root: table root.
        shown: rows with `request_id`, `user_id`, `poi_id` (any kind of id) and `request_ts_ms` (epoch milliseconds UTC,
            or a timestamp, UTC); further columns, such as the label, pass through. A frame, a Parquet file or folder,
            or the name of a table such as `raw_impressions`.
        clock: `published` or `day`, see above.
        model: `model_version` whose backfilled features to read; needs the clock `day`.
        allow_mixed: take rows of several models.

    Returns:
        The given rows, with normalised ids, `request_ts_ms` as a number, and `FEATURE_COLUMNS`. Through Arrow in the
        given order.

    Raises:
        NoReleaseError: there is no release.
        MissingBackfillError: `model` has backfilled no day.
        MixedModelsError: the rows would be of several models.
        MissingInputError, SchemaError: the shown POIs do not exist, lack a column, or have one that is added.
    """
    if clock not in ("published", "day"):
        raise ValueError(f"clock={clock!r} is neither 'published' nor 'day'")
    if model and clock != "day":
        raise ValueError("model= reads backfilled days, which were never published; give clock='day' with it")
    timeline = _open_timeline(spark, root, clock, model)
    if spark is not None:
        rows = with_spark.open_shown(spark, root, shown)
        _check_columns(dict(rows.dtypes), str(shown))
        joined = with_spark.join_features(spark, root, with_spark.normalise(rows), timeline)
        counts, example = with_spark.count_models(joined)
    else:
        table = normalise(open_shown(root, shown))
        joined = with_arrow.join_features(root, table, timeline)
        counts = Counter(joined["model_version"].drop_null().to_pylist())
        example = _example(joined, counts)
    if len(counts) > 1 and not allow_mixed:
        raise MixedModelsError(rows_by_model=counts, example=example)
    if not counts:
        _warn_of_nothing(clock)
    _warn_of_withdrawn(timeline)
    return joined


def open_shown(root: str, shown: pa.Table | str | Path) -> pa.Table:
    """Reads the shown POIs through Arrow.

    Raises:
        MissingInputError: there is no such file or table.
    """
    if isinstance(shown, pa.Table):
        return shown
    if str(shown) in TABLES:
        return read_table(root, str(shown))
    if not Path(shown).exists():
        raise MissingInputError(
            what="the shown POIs",
            where=str(shown),
            needed_by="read_training_set",
            remedy="Give a frame, a Parquet file or folder, or the name of a table of the pipeline.",
        )
    return ds.dataset(shown, format="parquet").to_table()


def normalise(shown: pa.Table) -> pa.Table:
    """Turns ids into normalised text and times into epoch milliseconds.

    Raises:
        SchemaError: a column is missing or cannot be converted.
    """
    _check_columns({name: str(shown.schema.field(name).type) for name in shown.schema.names}, "shown")
    for name in (*IDS, TIME):
        column, place = shown[name], shown.schema.get_field_index(name)
        try:
            column = _to_ms(column) if name == TIME else _to_ids(column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            expected = "bigint or timestamp" if name == TIME else "string"
            raise _schema_error(name, expected, f"{shown.schema.field(name).type} ({error})") from error
        shown = shown.set_column(place, name, column)
    return shown


def _to_ms(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.timestamp("ms", column.type.tz), safe=False)
    return column.cast(pa.int64())


def _to_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names = pa.array([clean_text(name) for name in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([names.take(encoded.indices)], pa.string())


def _open_timeline(spark: SparkSession | None, root: str, clock: Clock, model: str) -> Timeline:
    if model:
        return backfill_timeline(_load_backfills(spark, root), model)
    releases = load_releases(spark, root)
    if not releases:
        raise NoReleaseError(root=root, wanted="a release")
    return published_timeline(releases) if clock == "published" else day_timeline(releases)


def _load_backfills(spark: SparkSession | None, root: str) -> list[Backfill]:
    names = list(Backfill.__dataclass_fields__)
    if spark is not None:
        return [Backfill(**row) for row in with_spark.read_log(spark, root, BACKFILLS.name, names)]
    try:
        rows = read_table(root, BACKFILLS.name, columns=names)
    except MissingInputError:  # no model has backfilled a day
        return []
    return [Backfill(**row) for row in rows.to_pylist()]


def _check_columns(types: Mapping[str, str], where: str) -> None:
    missing = [name for name in (*IDS, TIME) if name not in types]
    if missing:
        raise _schema_error(missing[0], "bigint or timestamp" if missing[0] == TIME else "string",
                            f"only {', '.join(types)}")  # fmt: skip
    added = [name for name in FEATURE_COLUMNS if name in types]
    if added:
        raise _schema_error(added[0], "none, since it is added", types[added[0]])


def _schema_error(column: str, expected: str, found: str) -> SchemaError:
    return SchemaError(
        table="the shown POIs", column=column, expected=expected, found=found,
        remedy="Rename or convert the column, then read again.",
    )  # fmt: skip


def _example(joined: pa.Table, counts: Mapping[str, int]) -> str:
    parts = []
    for model in sorted(counts):
        row = joined.filter(pc.field("model_version") == model).slice(0, 1).to_pylist()[0]
        parts.append(f"request {row['request_id']} of model {model}")
    return " and ".join(parts)


def _warn_of_nothing(clock: Clock) -> None:
    remedy = (
        "by the clock 'published' only requests after the first publication have any; clock='day' goes by the days "
        "that the features know"
        if clock == "published"
        else "python -m udfs backfill --from D --to D makes features of days before the first release"
    )
    LOGGER.warning("no row has a feature: no release or backfill was known before any request; %s", remedy)


def _warn_of_withdrawn(timeline: Timeline) -> None:
    gone = [view.release_id for view in timeline.views if view is not None and not view.is_readable]
    if gone:
        LOGGER.warning(
            "releases %s were withdrawn: rows that readers saw through them have no features; a backfill "
            "(python -m udfs backfill) and clock='day' have features for these days",
            ", ".join(map(str, gone)),
        )
