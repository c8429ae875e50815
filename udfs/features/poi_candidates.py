"""ranking_requests + action_sequences + poi_index -> poi_candidates: exact top-k live POIs of each request.

Every POI of the index that is live as of the request competes; none is sampled or pruned. The catalogue is
sent once to each executor and decoded once per worker process. If the model copies from the crowd, each worker process
reads the co-visitation tables itself at the pinned version, so that the driver never holds them. Run it with `python -m
udfs poi_candidates --day D`; `udfs/features/given_requests.py` answers requests of another table or file.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark import Broadcast
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.tables import CANDIDATE_SOURCES, HISTORY_NAMES, POI_CANDIDATES
from etl.columns.poi_slots import keep_known
from models.copying.crowd_candidates import SlotFinder
from models.copying.crowd_tables import CrowdAt, open_finder
from models.serving.inference import Catalogue, Generated, generate_candidates
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

EMITTED = ("request_id", "user_id", "rank", "poi_id", "log_probability", "source", "p_new", "is_simulated")
UNKNOWN_ACTION_TYPE = "generate_unknown_action_type"
REASON = "generate_failed"
REASONS = (UNKNOWN_ACTION_TYPE, REASON)
CATALOGUE_NAMES = (
    "poi_id",
    "block_id",
    "inner_id",
    "poi_lon",
    "poi_lat",
    "category_id",
    "valid_from",
    "valid_to",
)
MAX_LOG_PROBABILITY = 1e-4
"""Rounding may carry log P a little above 0; a larger value is an error of the model."""


@dataclass(frozen=True)
class ListSettings:
    """What a consumer chooses of the lists.

    Attributes:
        top_k: POIs per request.
        new_logit: added to the log-odds of POIs that are new to the user; 0 = as the model expects.
    """

    top_k: int
    new_logit: float = 0.0


_decoded: dict[str, Catalogue] = {}
_opened: dict[tuple[str, CrowdAt], SlotFinder] = {}


@dataclass(frozen=True)
class ShippedCatalogue:
    """The catalogue on its way to the workers: an Arrow stream, and its digest as cache key."""

    stream: Broadcast[bytes]
    digest: str


@dataclass(frozen=True)
class Places:
    """The POIs that may be generated, and the crowd's tables for them; None if the model copies nothing."""

    catalogue: ShippedCatalogue
    crowd: CrowdAt | None = None


def ship_catalogue(
    spark: SparkSession, poi_index: DataFrame, *, day: date, index_version: int
) -> ShippedCatalogue:
    """Broadcasts the known slots of one index version; order and bytes follow from the content alone.

    Ended slots are kept, since a request may be earlier than their end.
    """
    known = keep_known(poi_index, day=day, index_version=index_version)
    table = known.select(*CATALOGUE_NAMES).orderBy("block_id", "inner_id").toArrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    stream = sink.getvalue().to_pybytes()
    return ShippedCatalogue(spark.sparkContext.broadcast(stream), hashlib.sha256(stream).hexdigest())


def build_poi_candidates(
    judged: DataFrame,
    sequences: DataFrame,
    places: Places,
    *,
    day: date,
    model: ServedModel,
    run_id: str,
    micro_batch: int,
    num_partitions: int,
    lists: ListSettings,
) -> FeatureBuild:
    """Plans the candidates of the day: a list for each accepted request of `judged`, shorter where fewer are live."""
    requests = prepare_requests(judged, action_type_id=model.action_type_id)
    known_type = F.col("action_type_id").isNotNull()
    sequences = sequences.where(F.col("day") <= F.lit(day))  # partitions of later days are not read
    states = with_defaults(with_history(requests.where(known_type), sequences, as_of=F.lit(day)))
    generated = generate_for_states(
        states, places, model=model, micro_batch=micro_batch, num_partitions=num_partitions, lists=lists
    )
    emitted = generated.unionByName(refuse_requests(requests.where(~known_type)))
    return FeatureBuild(
        unit=("request_id",),
        todo=requests.select("request_id"),
        outcomes=complete_outcomes(emitted, POI_CANDIDATES, day=day, model=model, run_id=run_id),
        index_versions=latest_sequences(sequences, requests.withColumn("as_of", F.lit(day)))
        .select("index_version")
        .distinct(),
        judged=judged,
    )


def generate_for_states(
    states: DataFrame,
    places: Places,
    *,
    model: ServedModel,
    micro_batch: int,
    num_partitions: int,
    lists: ListSettings,
) -> DataFrame:
    """Plans the candidates of requests that have their history (`with_history`) and `action_type_id`."""
    # Requests that share a history become neighbours, so that a batch encodes it once (`encode_shared`).
    ordered = states.repartition(num_partitions, "user_id").sortWithinPartitions(
        "seq_len", "user_id", "request_id"
    )
    return ordered.select(
        *PAYLOAD_NAMES, "action_type_id", "seq_len", "profile_ids", *HISTORY_NAMES, "is_simulated"
    ).mapInArrow(
        partial(generate_for_requests, model=model, places=places, micro_batch=micro_batch, lists=lists),
        outcome_schema(POI_CANDIDATES, EMITTED),
    )


def refuse_requests(requests: DataFrame) -> DataFrame:
    """Builds outcomes for requests of an unknown action type."""
    return (
        requests.withColumn("reason", F.lit(UNKNOWN_ACTION_TYPE))
        .withColumn("detail", F.col("action_type"))
        .withColumn("payload", F.to_json(F.struct(*PAYLOAD_NAMES)))
        .withColumn("rank", F.lit(None).cast("int"))
        .withColumn("poi_id", F.lit(None).cast("string"))
        .withColumn("log_probability", F.lit(None).cast("float"))
        .withColumn("source", F.lit(None).cast("string"))
        .withColumn("p_new", F.lit(None).cast("float"))
        .select(*EMITTED, *REFUSAL_COLUMNS)
    )


def generate_for_requests(
    batches: Iterator[pa.RecordBatch],
    *,
    model: ServedModel,
    places: Places,
    micro_batch: int,
    lists: ListSettings,
) -> Iterator[pa.RecordBatch]:
    """Generates in a worker: requests in, one row per request and rank out."""
    bundle, device, pois = load_model(model), task_device(), decode_catalogue(places.catalogue)
    finder = open_crowd(places, pois)

    def generate(batch: pa.RecordBatch) -> Sequence[Generated | RowFailure]:
        results = generate_candidates(
            bundle, batch, pois, top_k=lists.top_k, new_logit=lists.new_logit, micro_batch=micro_batch,
            device=device, finder=finder,
        )  # fmt: skip
        return [check_candidates(result) for result in results]

    for batch in batches:
        yield candidates_to_arrow(batch, run_isolated(generate, batch, micro_batch=micro_batch), pois)


def check_candidates(generated: Generated) -> Generated | RowFailure:
    """Returns the POIs generated for a request, or a failure if they are not usable."""
    log_probabilities = generated.log_probs
    if not len(log_probabilities):
        return RowFailure("no POI is live as of the request")
    if not np.all(log_probabilities <= MAX_LOG_PROBABILITY):  # false for NaN too
        return RowFailure("a log probability is positive or not a number")
    return generated


def decode_catalogue(catalogue: ShippedCatalogue) -> Catalogue:
    """Returns the catalogue of this worker process, decoding it if this is its first task."""
    if catalogue.digest not in _decoded:
        _decoded.clear()
        _decoded[catalogue.digest] = Catalogue.from_arrow(
            pa.ipc.open_stream(catalogue.stream.value).read_all()
        )
    return _decoded[catalogue.digest]


def open_crowd(places: Places, pois: Catalogue) -> SlotFinder | None:
    """Returns the crowd candidates, read once per worker process; None if the model copies nothing.

    Raises:
        MissingInputError: the tables have no row of the day.
    """
    if places.crowd is None:
        return None
    key = (places.catalogue.digest, places.crowd)
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_finder(places.crowd, pois)
    return _opened[key]


def candidates_to_arrow(
    batch: pa.RecordBatch, results: Sequence[Generated | RowFailure], pois: Catalogue
) -> pa.RecordBatch:
    """Stacks the generated POIs of all requests, one row each; a failed request is one refused row."""
    requests: list[int] = []
    ranks: list[int | None] = []
    poi_ids: list[str | None] = []
    log_probabilities: list[float | None] = []
    sources: list[str | None] = []
    p_new: list[float | None] = []
    refusals: list[Refusal] = []
    for row, result in enumerate(results):
        if isinstance(result, RowFailure):
            num_rows = 1
            ranks.append(None)
            poi_ids.append(None)
            log_probabilities.append(None)
            sources.append(None)
            p_new.append(None)
            refusals.append((REASON, result.error, row_payload(batch, row, PAYLOAD_NAMES)))
        else:
            num_rows = len(result.pois)
            ranks += range(1, num_rows + 1)
            poi_ids += [pois.poi_ids[poi_row] for poi_row in result.pois]
            log_probabilities += np.minimum(result.log_probs, 0).astype(np.float32).tolist()
            sources += [CANDIDATE_SOURCES[source] for source in result.sources]
            p_new += [result.p_new] * num_rows
            refusals += [(None, None, None)] * num_rows
        requests += [row] * num_rows
    taken = pa.array(requests, pa.int64())
    columns = {
        "request_id": batch.column("request_id").take(taken),
        "user_id": batch.column("user_id").take(taken),
        "rank": pa.array(ranks, pa.int32()),
        "poi_id": pa.array(poi_ids, pa.string()),
        "log_probability": pa.array(log_probabilities, pa.float32()),
        "source": pa.array(sources, pa.string()),
        "p_new": pa.array(p_new, pa.float32()),
        "is_simulated": batch.column("is_simulated").take(taken),
    }
    return with_refusals(columns, refusals)
