"""ranking_requests + action_sequences + poi_index -> ranking_scores: a click logit per request and candidate.

Candidates of accepted requests (`etl/columns/request_rules.py`) are mapped to the slots that are live as of the
request. A candidate without a valid id or a live slot is refused with a reason, so candidates in = scores out +
refused. A candidate listed twice in a request is scored once. The history holds actions strictly before the request;
users without a history are scored too. Run it with `python -m udfs ranking_scores --day D`.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from conf.tables import CANDIDATE_NAMES, HISTORY_NAMES, RANKING_SCORES
from etl.columns.poi_slots import is_known, is_live, keep_known
from etl.columns.refusal import MAX_DETAIL
from etl.columns.request_rules import is_no_id
from models.serving.inference import score_candidates
from udfs.features.isolation import RowFailure, run_isolated
from udfs.features.model_cache import ServedModel, load_model, task_device
from udfs.features.outcomes import (
    REFUSAL_COLUMNS,
    FeatureBuild,
    Refusal,
    complete_outcomes,
    outcome_schema,
    row_payload,
    with_refusals,
)
from udfs.features.requests import (
    PAYLOAD_NAMES,
    latest_sequences,
    prepare_requests,
    with_defaults,
    with_history,
)

EMITTED = ("request_id", "user_id", "poi_id", "click_logit", "is_simulated")
NO_ID = "score_no_candidate_id"
NO_LIVE_SLOT = "score_no_live_slot"
UNKNOWN_ACTION_TYPE = "score_unknown_action_type"
REASON = "score_failed"
KNOWN = ("known_from", "known_until")
REASONS = (NO_LIVE_SLOT, NO_ID, UNKNOWN_ACTION_TYPE, REASON)
_SLOT_TO_CANDIDATE = {
    "candidate_poi_ids": "poi_id",
    "candidate_block_ids": "block_id",
    "candidate_inner_ids": "inner_id",
    "candidate_lons": "poi_lon",
    "candidate_lats": "poi_lat",
    "candidate_category_ids": "category_id",
    "candidate_positions": "position",
}


def explode_candidates(requests: DataFrame, slots: DataFrame) -> DataFrame:
    """Builds one row per request and candidate, with the candidate's slot.

    Args:
        requests: prepared requests.
        slots: known slots of one index version, or `date_details` of it, of which those known on the request's day
            count.

    Returns:
        The request's columns, `poi_id`, `position` (first place in the list, from 1) and the columns of the
        slot that is live as of the request, null if there is none.
    """
    candidates = requests.withColumn("poi_id", F.explode(F.array_distinct("candidate_poi_ids")))
    candidates = candidates.withColumn(
        "position", F.array_position("candidate_poi_ids", F.col("poi_id")).cast("int")
    )
    columns = ("block_id", "inner_id", "poi_lon", "poi_lat", "category_id")
    bounds = [name for name in ("valid_from", "valid_to", *KNOWN) if name in slots.columns]
    slots = slots.select("poi_id", *columns, *bounds).withColumnRenamed("poi_id", "slot_poi_id")
    matches = (F.col("poi_id") == F.col("slot_poi_id")) & is_live(F.col("request_date"))
    if KNOWN[0] in bounds:
        matches = matches & is_known(F.col("request_date"))
    return candidates.join(slots, matches, "left").drop("slot_poi_id", *bounds)


def refuse_candidates(candidates: DataFrame, *, max_length: int) -> DataFrame:
    """Builds outcomes for candidates that cannot be scored: unknown action type, invalid id, or no live slot."""
    is_unknown, poi = F.col("action_type_id").isNull(), F.col("poi_id")
    reason = (
        F.when(is_unknown, UNKNOWN_ACTION_TYPE)
        .when(is_no_id(poi, max_length=max_length), NO_ID)
        .when(F.col("block_id").isNull(), NO_LIVE_SLOT)
    )
    shown = F.coalesce(F.substring(poi, 1, MAX_DETAIL), F.lit("null"))
    detail = F.when(is_unknown, F.col("action_type")).otherwise(shown)
    payload = F.to_json(F.struct(*PAYLOAD_NAMES, "poi_id"), {"ignoreNullFields": "false"})
    return (
        candidates.withColumn("reason", reason)
        .where(F.col("reason").isNotNull())
        .withColumn("detail", detail)
        .withColumn("payload", payload)
        .withColumn("click_logit", F.lit(None).cast("float"))
        .select(*EMITTED, *REFUSAL_COLUMNS)
    )


def group_candidates(candidates: DataFrame) -> DataFrame:
    """Builds one row per request, with the candidates that can be scored as parallel arrays by position."""
    scorable = candidates.where(F.col("action_type_id").isNotNull() & F.col("block_id").isNotNull())
    columns = ("position", *(name for name in _SLOT_TO_CANDIDATE.values() if name != "position"))
    # collect_list keeps no order after a shuffle; the position is the struct's first field and never tied.
    grouped = scorable.groupBy(*PAYLOAD_NAMES, "action_type_id", "is_simulated").agg(
        F.array_sort(F.collect_list(F.struct(*columns))).alias("candidates")
    )
    arrays = {name: F.col(f"candidates.{slot}").alias(name) for name, slot in _SLOT_TO_CANDIDATE.items()}
    return grouped.withColumns(arrays).drop("candidates")


def build_ranking_scores(
    judged: DataFrame,
    sequences: DataFrame,
    poi_index: DataFrame,
    *,
    day: date,
    model: ServedModel,
    run_id: str,
    micro_batch: int,
    num_partitions: int,
    max_text_length: int,
) -> FeatureBuild:
    """Plans the scores of the day; `judged` by `judge_requests_of`, other arguments as in `build_user_embeddings`."""
    requests = prepare_requests(judged, action_type_id=model.action_type_id)
    slots = keep_known(poi_index, day=day, index_version=model.index_version)
    sequences = sequences.where(F.col("day") <= F.lit(day))  # partitions of later days are not read
    emitted = plan_scores(
        requests, slots, sequences, as_of=F.lit(day), model=model,
        micro_batch=micro_batch, num_partitions=num_partitions, max_text_length=max_text_length,
    )  # fmt: skip
    return FeatureBuild(
        unit=("request_id", "poi_id"),
        todo=requests.select("request_id", F.explode(F.array_distinct("candidate_poi_ids")).alias("poi_id")),
        outcomes=complete_outcomes(emitted, RANKING_SCORES, day=day, model=model, run_id=run_id),
        index_versions=latest_sequences(sequences, requests.withColumn("as_of", F.lit(day)))
        .select("index_version")
        .distinct(),
        judged=judged,
    )


def plan_scores(
    requests: DataFrame,
    slots: DataFrame,
    sequences: DataFrame,
    *,
    as_of: Column,
    model: ServedModel,
    micro_batch: int,
    num_partitions: int,
    max_text_length: int,
) -> DataFrame:
    """Plans the scores of prepared requests, each with the history known at the end of its day `as_of`.

    Returns:
        One row per request and candidate: `EMITTED`, `score` and the refusal columns.
    """
    candidates = explode_candidates(requests, slots)
    states = with_defaults(with_history(group_candidates(candidates), sequences, as_of=as_of))
    ordered = states.repartition(num_partitions, "user_id").sortWithinPartitions(
        "seq_len", "user_id", "request_id"
    )
    scored = ordered.select(
        *PAYLOAD_NAMES,
        "action_type_id",
        "seq_len",
        "profile_ids",
        *HISTORY_NAMES,
        *CANDIDATE_NAMES,
        "is_simulated",
    ).mapInArrow(
        partial(score_requests, model=model, micro_batch=micro_batch), outcome_schema(RANKING_SCORES, EMITTED)
    )
    emitted = scored.unionByName(refuse_candidates(candidates, max_length=max_text_length))
    # The logistic function as Spark writes it: 0 and 1 at the ends, never NaN.
    return emitted.withColumn("score", 1 / (1 + F.exp(-F.col("click_logit").cast("double"))))


def score_requests(
    batches: Iterator[pa.RecordBatch], *, model: ServedModel, micro_batch: int
) -> Iterator[pa.RecordBatch]:
    """Runs the click head in a worker: requests with candidates in, one row per candidate out."""
    bundle, device = load_model(model), task_device()

    def score(batch: pa.RecordBatch) -> Sequence[np.ndarray | RowFailure]:
        logits = score_candidates(bundle, batch, micro_batch=micro_batch, device=device)
        bad = RowFailure("a click logit is not finite")
        return [request if np.isfinite(request).all() else bad for request in logits]

    for batch in batches:
        yield scores_to_arrow(batch, run_isolated(score, batch, micro_batch=micro_batch))


def scores_to_arrow(batch: pa.RecordBatch, logits: Sequence[np.ndarray | RowFailure]) -> pa.RecordBatch:
    """Builds one row per candidate with its logit; a failed request becomes one refusal per candidate."""
    poi_ids = batch.column("candidate_poi_ids")
    requests = pa.array(np.repeat(np.arange(batch.num_rows), poi_ids.value_lengths()))
    values: list[pa.Array] = []
    refusals: list[Refusal] = []
    for row, result in enumerate(logits):
        candidates = poi_ids[row].as_py()
        if isinstance(result, RowFailure):
            values.append(pa.nulls(len(candidates), pa.float32()))
            payloads = [row_payload(batch, row, PAYLOAD_NAMES, poi_id=poi_id) for poi_id in candidates]
            refusals += [(REASON, result.error, payload) for payload in payloads]
        else:
            values.append(pa.array(result.astype(np.float32)))
            refusals += [(None, None, None)] * len(candidates)
    columns = {
        "request_id": batch.column("request_id").take(requests),
        "user_id": batch.column("user_id").take(requests),
        "poi_id": poi_ids.flatten(),
        "click_logit": pa.concat_arrays(values),
        "is_simulated": batch.column("is_simulated").take(requests),
    }
    return with_refusals(columns, refusals)
