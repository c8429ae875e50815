"""Any requests -> exact top-k live POIs of each, as files: an analysis, a backtest, another system's questions.

    python -m udfs poi_candidates --day D --requests PATH --out FOLDER [--top 100] [--model URI]

PATH is a Parquet file or folder, the folder of a Delta table, or the name of a metastore's table. Columns:
`request_id`, `user_id`, `request_ts_ms` (epoch milliseconds UTC); optional `user_lon`, `user_lat`, `tz_offset_min`,
`action_type`. Each request sees what was known at the end of its own UTC day, at most of D, and of that only actions
strictly before it; requests before the first night see that night's delivery. Where the place is not given, it is that
of the last action's POI, as in training; the time zone is that of the last action, else that of the longitude.

    FOLDER/candidates/   request_id, user_id, rank, poi_id, log_probability, model_version, index_version, is_simulated
    FOLDER/refused/      rows that could not be answered: reason, detail, payload (the row as given, JSON)

Requests in = answered + refused, or nothing is written. The feature tables are left alone.
"""

import logging
import shutil
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from conf.cli import JobContext, JobSummary
from conf.errors import MissingInputError, RowsLostError, SchemaError, SettingsError
from conf.tables import POI_CANDIDATES
from etl.session import compute_once
from models.other_tables import OTHER_TABLES
from udfs.feature_night import Night, open_night
from udfs.feature_rows import REFUSAL_COLUMNS, complete_outcomes, keep_accepted
from udfs.feature_run import check_versions, open_places
from udfs.poi_candidates import EMITTED, UNKNOWN_ACTION_TYPE, generate_for_states
from udfs.requests import latest_sequences, type_id_of, with_history
from udfs.slots import request_date

LOGGER = logging.getLogger(__name__)
REQUIRED = ("request_id", "user_id", "request_ts_ms")
OPTIONAL = {"user_lon": "double", "user_lat": "double", "tz_offset_min": "int", "action_type": "string"}
FIRST_MS = 100_000_000_000
"""March 1973: a smaller number is a time in seconds."""
SHOWN = ("request_id", "user_id", "rank", "poi_id", "log_probability", "model_version", "index_version",
         "is_simulated")  # fmt: skip
DEGREES_PER_HOUR = 15


def run_given_requests(context: JobContext) -> JobSummary:
    """Answers the requests of a table or file; a failed run leaves the folder as it was.

    Raises:
        SettingsError: `--out` is missing or holds files of something else, or `--top` is below 1.
        MissingInputError: there are no such requests, or a table or the model is not there.
        SchemaError: a required column is missing.
        IndexVersionError, CapacityError, FingerprintError: the model does not fit the index.
        RowsLostError: requests in are not answered + refused.
    """
    options = context.options
    top_k = context.settings.features.top_k if options.top is None else options.top
    out = options.out
    _check_options(out, top_k)
    started = time.perf_counter()
    night = open_night(context, ("action_sequences", "poi_index"), OTHER_TABLES)
    given = compute_once(judge_requests(read_requests(night.spark, options.requests)))
    outcomes = compute_once(answer_requests(night, given, top_k=top_k))
    counted = outcomes.agg(
        F.count_if(F.col("reason").isNull()).alias("rows"),
        F.count_distinct(F.when(F.col("reason").isNull(), F.col("request_id"))).alias("answered"),
        F.count_if(F.col("reason").isNotNull()).alias("refused"),
    ).first()
    assert counted is not None
    rows_in = given.count()
    if rows_in != counted["answered"] + counted["refused"]:
        raise RowsLostError(
            table="candidates", day=str(night.day), rows_in=rows_in, rows_out=counted["answered"],
            rows_refused=counted["refused"], rows_dropped=0,
        )  # fmt: skip
    if not context.dry_run:
        write_files(outcomes, out)
    reasons = outcomes.where("reason IS NOT NULL").groupBy("reason").count().collect()
    return JobSummary(
        rows_in=rows_in,
        rows_out=counted["answered"],
        rows_refused=counted["refused"],
        steps={"answer": time.perf_counter() - started},
        notes={
            "out": str(out),
            "candidates": counted["rows"],
            "reasons": {row["reason"]: row["count"] for row in sorted(reasons)},
            "model_version": night.model.model_version,
            "inputs": night.versions,
        },
    )


def read_requests(spark: SparkSession, name: str) -> DataFrame:
    """Reads requests from Parquet, a Delta folder or a metastore's table.

    Raises:
        MissingInputError: there is nothing of that name.
        SchemaError: a required column is missing.
    """
    path = Path(name)
    if (path / "_delta_log").is_dir():
        frame = spark.read.format("delta").load(str(path.absolute()))
    elif path.exists() or "://" in name:
        frame = spark.read.parquet(name if "://" in name else str(path.absolute()))
    elif "/" not in name and spark.catalog.tableExists(name):
        frame = spark.table(name)
    else:
        raise MissingInputError(
            what="the requests", where=name, needed_by="poi_candidates --requests",
            remedy="Give a Parquet file or folder, the folder of a Delta table, or the name of a table.",
        )  # fmt: skip
    for column in REQUIRED:
        if column not in frame.columns:
            raise SchemaError(
                table=name, column=column, expected="a column of that name",
                found=f"only {', '.join(frame.columns)}", remedy="Rename the column in the requests.",
            )  # fmt: skip
    return frame


def judge_requests(given: DataFrame) -> DataFrame:
    """Brings requests into the types of the model's inputs and says why one cannot be answered.

    Returns:
        Required and optional columns, `action_type_id` (null where none was given), `is_simulated`, and `reason`,
        `detail`, `payload`; the first reason that holds, null in good rows. Of rows with one id the earliest is good.
    """
    payload = F.to_json(F.struct(*given.columns))
    text = {name: F.col(name).cast("string") if name in given.columns else F.lit(None) for name in OPTIONAL}
    typed = given.select(
        *(F.col(name).cast("string").alias(name) for name in REQUIRED[:2]),
        F.col("request_ts_ms").try_cast("bigint").alias("request_ts_ms"),
        *(text[name].try_cast(kind).alias(name) for name, kind in OPTIONAL.items()),
        payload.alias("payload"),
        F.lit(False).alias("is_simulated"),
    ).withColumn("action_type_id", type_id_of(F.col("action_type")))
    same_id = Window.partitionBy("request_id").orderBy("request_ts_ms", "user_id", "payload")
    judged = typed.withColumn("repetition", F.row_number().over(same_id))
    rules = _rules()
    reason = F.coalesce(*(F.when(rule.holds, F.lit(rule.reason)) for rule in rules))
    detail = F.coalesce(*(F.when(rule.holds, rule.detail) for rule in rules))
    return judged.withColumns({"reason": reason, "detail": detail}).drop("repetition")


def answer_requests(night: Night, given: DataFrame, *, top_k: int) -> DataFrame:
    """Plans the candidates of judged requests: columns of `poi_candidates` plus those of refusals."""
    sequences = night.read("action_sequences").where(F.col("day") <= F.lit(night.day))
    good = given.where("reason IS NULL").drop(*REFUSAL_COLUMNS)
    as_of = day_known(sequences, F.col("request_ts_ms"), day=night.day)
    check_versions(
        night, latest_sequences(sequences, good.withColumn("as_of", as_of)).select("index_version").distinct()
    )
    states = with_defaults(
        with_history(good, sequences, as_of=as_of), action_type_id=night.model.action_type_id
    )
    generated = generate_for_states(
        states,
        open_places(night),
        model=night.model,
        micro_batch=night.settings.features.micro_batch,
        num_partitions=night.settings.spark.shuffle_partitions,
        top_k=top_k,
    )
    refused = given.where("reason IS NOT NULL").select(
        *(F.col(name) if name in given.columns else F.lit(None).alias(name) for name in EMITTED),
        *REFUSAL_COLUMNS,
    )
    both = generated.unionByName(refused)
    return complete_outcomes(both, POI_CANDIDATES, day=night.day, model=night.model, run_id=night.run_id)


def day_known(sequences: DataFrame, timestamp_ms: Column, *, day: date) -> Column:
    """Returns the day as of which a request's past is looked up: its own, but no day before the first night."""
    first = sequences.agg(F.min("day").alias("first")).first()
    first_day = day if first is None or first["first"] is None else first["first"]
    return F.least(F.lit(day), F.greatest(F.lit(first_day), request_date(timestamp_ms)))


def with_defaults(states: DataFrame, *, action_type_id: int) -> DataFrame:
    """Fills in what a request does not say: place and time zone from its history, the model's own action type."""
    last = {name: F.get(name, F.size(name) - 1) for name in ("poi_lons", "poi_lats", "tz_offsets_min")}
    lon = F.coalesce("user_lon", last["poi_lons"].cast("double"))
    by_place = (F.round(lon / DEGREES_PER_HOUR) * 60).cast("int")
    return states.withColumns(
        {
            "user_lon": lon,
            "user_lat": F.coalesce("user_lat", last["poi_lats"].cast("double")),
            "tz_offset_min": F.coalesce("tz_offset_min", last["tz_offsets_min"], by_place, F.lit(0)),
            "action_type_id": F.coalesce("action_type_id", F.lit(action_type_id)),
        }
    )


def write_files(outcomes: DataFrame, out: Path) -> None:
    """Writes both folders at once: what was at `out` before is replaced as a whole."""
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    found = keep_accepted(outcomes).select(*SHOWN).orderBy("request_id", "rank")
    found.write.parquet(str((fresh / "candidates").absolute()))
    refused = outcomes.where("reason IS NOT NULL").select("request_id", *REFUSAL_COLUMNS)
    refused.coalesce(1).write.parquet(str((fresh / "refused").absolute()))
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


@dataclass(frozen=True)
class _Rule:
    """Why a request cannot be answered: a condition on judged columns, and what to show of the row."""

    reason: str
    holds: Column
    detail: Column


def _rules() -> tuple[_Rule, ...]:
    """Returns the rules in the order in which they are tried."""
    missing = [F.when(F.col(name).isNull(), F.lit(f"no {name}")) for name in REQUIRED]
    kind = F.col("action_type")
    return (
        _Rule("request_incomplete", F.coalesce(*missing).isNotNull(), F.coalesce(*missing)),
        _Rule("request_repeated", F.col("repetition") > 1, F.col("request_id")),
        _Rule(
            "request_time_in_seconds",
            F.col("request_ts_ms") < FIRST_MS,
            F.col("request_ts_ms").cast("string"),
        ),
        _Rule(
            "request_place_out_of_range",
            ~_is_place(F.col("user_lon"), F.col("user_lat")),
            F.format_string("%s, %s", "user_lon", "user_lat"),
        ),
        _Rule(UNKNOWN_ACTION_TYPE, kind.isNotNull() & F.col("action_type_id").isNull(), kind),
    )


def _is_place(lon: Column, lat: Column) -> Column:
    """Is the place on earth, or not given at all; half a place is none."""
    both = lon.between(-180, 180) & lat.between(-90, 90)
    return F.coalesce(both, lon.isNull() & lat.isNull())


def _check_options(out: Path | None, top_k: int) -> None:
    if out is None:
        raise SettingsError(
            where="the command line", key="--out", problem="--requests needs a folder to write to"
        )
    if out.exists() and any(out.iterdir()) and not (out / "candidates").is_dir():
        raise SettingsError(
            where="the command line", key="--out", problem=f"{out} holds files of something else"
        )
    if top_k < 1:
        raise SettingsError(where="the command line", key="--top", problem="it has to be at least 1")
