"""Any requests -> exact top-k live POIs of each, as files: for an analysis, a backtest or another system.

    python -m udfs poi_candidates --day D --requests PATH --out FOLDER [--top 100] [--new-logit 1] [--model URI]

PATH is a Parquet file or folder, the folder of a Delta table, or the name of a metastore's table. Files of a folder may
differ in columns and types. Required columns are `request_id`, `user_id` and `request_ts_ms` (epoch milliseconds UTC,
or a timestamp); `user_lon`, `user_lat`, `tz_offset_min` and `action_type` are optional. Column names ignore case. The
rules are those of the daily requests (`etl/columns/request_rules.py`). A request after the end of D is refused, since
nothing is known of its day: give a later D. Each request sees the data known at the end of its own UTC day, and of
that only actions strictly before it. Requests before the first delivery see that first delivery. A missing place is
that of the last action's POI, as in training. A missing time zone is that of the last action, else of the longitude.

    FOLDER/candidates/   request_id, user_id, rank, poi_id, log_probability, source, p_new, model_version,
                         index_version, is_simulated
    FOLDER/refused/      rows that could not be answered: reason, detail, payload (the row as given, JSON)

Requests in = answered + refused + equal rows dropped, or nothing is written. The feature tables do not change.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from datetime import date
from functools import reduce
from pathlib import Path

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import RowsLostError, SchemaError, SettingsError
from conf.out_folder import check_out_folder, fill_out_folder
from conf.tables import POI_CANDIDATES
from etl.columns.refusal import count_rows, tally
from etl.columns.request_rules import judge_requests
from etl.columns.spacetime import event_date
from etl.delta.erased_users import leave_out, read_erased
from etl.sources.files import FilePart, find_files, open_parquet
from etl.sources.values import EXPECTED, SPARK_TYPES, convert, may_hold
from etl.spark.session import compute_once
from models.copying.crowd_tables import CROWD_TABLES
from udfs.features.outcomes import REFUSAL_COLUMNS, complete_outcomes, keep_accepted
from udfs.features.poi_candidates import EMITTED, UNKNOWN_ACTION_TYPE, ListSettings, generate_for_states
from udfs.features.requests import latest_sequences, prepare_requests, with_defaults, with_history
from udfs.features.run_context import FeatureRun, open_run
from udfs.features.runner import check_versions, open_places

LARGEST_LOGIT = 20
LOGGER = logging.getLogger(__name__)
REQUIRED = {"request_id": "id", "user_id": "id", "request_ts_ms": "epoch"}
OPTIONAL = {"user_lon": "degrees", "user_lat": "degrees", "tz_offset_min": "minutes", "action_type": "string"}
"""Columns and the kind of value that each must hold (`etl/sources/values.py`)."""
SHOWN = ("request_id", "user_id", "rank", "poi_id", "log_probability", "source", "p_new", "model_version",
         "index_version", "is_simulated")  # fmt: skip


def run_given_requests(context: JobContext) -> JobSummary:
    """Answers the requests of a table or file; a failed run leaves the folder as it was.

    Raises:
        SettingsError: `--out` is missing or holds other files, or `--top` is below 1.
        MissingInputError: the requests, a table or the model do not exist.
        SchemaError: a required column is missing, occurs twice, or cannot hold its kind of value.
        IndexVersionError, CapacityError, FingerprintError: the model does not fit the index.
        RowsLostError: requests in are not answered + refused + dropped.
    """
    options = context.options
    features = context.settings.features
    lists = ListSettings(
        features.top_k if options.top is None else options.top,
        features.new_logit if options.new_logit is None else options.new_logit,
    )
    out = options.out
    _check_options(out, lists)
    started = time.perf_counter()
    run = open_run(context, ("action_sequences", "poi_index"), CROWD_TABLES)
    delivered = read_requests(run.spark, options.requests)
    requests = leave_out(delivered, read_erased(run.spark, context.settings))
    judged = compute_once(
        judge_requests(requests, day=run.day, settings=context.settings.clean, content=("payload",))
    )
    outcomes = compute_once(answer_requests(run, judged, lists=lists))
    counts = outcomes.agg(
        F.count_if(F.col("reason").isNull()).alias("rows"),
        F.count_distinct(F.when(F.col("reason").isNull(), F.col("request_id"))).alias("answered"),
        F.count_if(F.col("reason").isNotNull()).alias("refused"),
    ).first()
    assert counts is not None
    rows_in, verdicts = delivered.count(), tally(count_rows(judged).collect())
    of_erased = rows_in - requests.count()
    dropped = verdicts["statuses"]["dropped"] + of_erased
    if rows_in != counts["answered"] + counts["refused"] + dropped:
        raise RowsLostError(
            table="candidates", day=str(run.day), rows_in=rows_in, rows_out=counts["answered"],
            rows_refused=counts["refused"], rows_dropped=dropped,
        )  # fmt: skip
    if not context.dry_run:
        write_files(outcomes, out)
    reasons = outcomes.where("reason IS NOT NULL").groupBy("reason").count().collect()
    return JobSummary(
        rows_in=rows_in,
        rows_out=counts["answered"],
        rows_refused=counts["refused"],
        rows_dropped=dropped,
        steps={"answer": time.perf_counter() - started},
        notes={
            "out": str(out),
            "candidates": counts["rows"],
            "of_erased_users": of_erased,
            "reasons": {row["reason"]: row["count"] for row in sorted(reasons)},
            "repairs": verdicts["repairs"],
            "model_version": run.model.model_version,
            "inputs": run.versions,
        },
    )


def read_requests(spark: SparkSession, name: str) -> DataFrame:
    """Reads requests from Parquet, a Delta folder or a metastore's table, as columns of `ranking_requests`.

    A value that cannot be read as its column's kind becomes null; the rules then name it.

    Returns:
        The columns but `day`, and `payload`: the row as given, JSON.

    Raises:
        MissingInputError: nothing of that name exists.
        CorruptInputError: a file is not Parquet.
        SchemaError: a required column is missing, occurs twice, or cannot hold its kind of value.
    """
    remedy = "Give a Parquet file or folder, the folder of a Delta table, or the name of a table."
    path = Path(name)
    if (path / "_delta_log").is_dir():
        parts = [FilePart(spark.read.format("delta").load(str(path.absolute())))]
    elif "/" not in name and not path.exists() and spark.catalog.tableExists(name):
        parts = [FilePart(spark.table(name))]
    else:
        needed_by = "poi_candidates --requests"
        files = find_files(spark, name, what="Parquet", needed_by=needed_by, remedy=remedy)
        with _naming_repeated_columns(name):
            parts = open_parquet(spark, files)
    present = {column.lower() for part in parts for column in part.frame.columns}
    for column in REQUIRED:
        if column not in present:
            shown = ", ".join(sorted({column for part in parts for column in part.frame.columns}))
            raise SchemaError(
                table=name, column=column, expected="a column of that name",
                found=f"only {shown}", remedy="Rename the column in the requests.",
            )  # fmt: skip
    return reduce(DataFrame.unionByName, [_read_part(part, name) for part in parts])


def _read_part(part: FilePart, name: str) -> DataFrame:
    """Reads the requests of files that have the same columns."""
    frame, spellings = part.frame, {column.lower(): column for column in part.frame.columns}
    columns = []
    for column, kind in {**REQUIRED, **OPTIONAL}.items():
        source = spellings.get(column)
        if source is None:
            value = F.lit(None).cast(SPARK_TYPES[kind])
        else:
            dtype = frame.schema[source].dataType
            if not may_hold(kind, dtype):
                raise SchemaError(
                    table=name, column=source, expected=EXPECTED.get(kind, kind), found=dtype.simpleString(),
                    remedy="Convert the column in the requests.",
                )  # fmt: skip
            value = convert(F.col(f"`{source}`"), dtype, kind, is_nanoseconds=source in part.nanoseconds)
        columns.append(value.alias(column))
    whole = F.struct(*(F.col(f"`{column}`") for column in frame.columns))
    return frame.select(
        *columns,
        F.lit(None).cast("array<string>").alias("candidate_poi_ids"),
        F.lit(False).alias("is_simulated"),
        F.to_json(whole, {"ignoreNullFields": "false"}).alias("payload"),
    )


@contextlib.contextmanager
def _naming_repeated_columns(name: str) -> Iterator[None]:
    """Turns Spark's error about column names that differ only in case into a SchemaError."""
    try:
        yield
    except AnalysisException as error:
        if error.getCondition() != "COLUMN_ALREADY_EXISTS":
            raise
        column = (error.getMessageParameters() or {}).get("columnName", "").strip("`")
        raise SchemaError(
            table=name, column=column, expected="one column of that name", found="two, in other letters",
            remedy="Rename or leave out one of them: names are compared without case.",
        ) from error  # fmt: skip


def answer_requests(run: FeatureRun, judged: DataFrame, *, lists: ListSettings) -> DataFrame:
    """Plans the candidates of judged requests: columns of `poi_candidates` plus those of refusals."""
    sequences = run.read("action_sequences").where(F.col("day") <= F.lit(run.day))
    accepted = prepare_requests(judged, action_type_id=run.model.action_type_id, more=("payload",))
    is_known = F.col("action_type_id").isNotNull()
    good = accepted.where(is_known).drop("payload")
    as_of = day_known(sequences, F.col("request_ts_ms"), day=run.day)
    check_versions(
        run, latest_sequences(sequences, good.withColumn("as_of", as_of)).select("index_version").distinct()
    )
    generated = generate_for_states(
        with_defaults(with_history(good, sequences, as_of=as_of)),
        open_places(run),
        model=run.model,
        micro_batch=run.settings.features.micro_batch,
        num_partitions=run.settings.spark.shuffle_partitions,
        lists=lists,
    )
    unknown = accepted.where(~is_known).withColumns(
        {"reason": F.lit(UNKNOWN_ACTION_TYPE), "detail": F.col("action_type")}
    )
    outcomes = generated
    for refused in (judged.where("status = 'refused'"), unknown):
        outcomes = outcomes.unionByName(
            refused.select(
                *(F.col(name) if name in refused.columns else F.lit(None).alias(name) for name in EMITTED),
                *REFUSAL_COLUMNS,
            )
        )
    return complete_outcomes(outcomes, POI_CANDIDATES, day=run.day, model=run.model, run_id=run.run_id)


def day_known(sequences: DataFrame, timestamp_ms: Column, *, day: date) -> Column:
    """Returns the day as of which a request's history is looked up: its own, but not before the first delivery."""
    first = sequences.agg(F.min("day").alias("first")).first()
    first_day = day if first is None or first["first"] is None else first["first"]
    return F.least(F.lit(day), F.greatest(F.lit(first_day), event_date(timestamp_ms)))


def write_files(outcomes: DataFrame, out: Path) -> None:
    """Writes both folders; together they replace an earlier answer."""
    candidates = keep_accepted(outcomes).select(*SHOWN).orderBy("request_id", "rank")
    refused = outcomes.where("reason IS NOT NULL").select("request_id", *REFUSAL_COLUMNS)
    with fill_out_folder(out, "poi_candidates") as work:
        candidates.write.parquet(str((work / "candidates").absolute()))
        refused.coalesce(1).write.parquet(str((work / "refused").absolute()))


def _check_options(out: Path | None, lists: ListSettings) -> None:
    if out is None:
        raise SettingsError(
            where="the command line", key="--out", problem="--requests needs a folder to write to"
        )
    check_out_folder(out)
    if lists.top_k < 1:
        raise SettingsError(where="the command line", key="--top", problem="it has to be at least 1")
    if not abs(lists.new_logit) <= LARGEST_LOGIT:  # false for NaN too
        problem = f"it has to be a number from -{LARGEST_LOGIT} to {LARGEST_LOGIT}, as features.new_logit"
        raise SettingsError(where="the command line", key="--new-logit", problem=problem)
