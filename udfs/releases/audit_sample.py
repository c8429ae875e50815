"""Recomputes a sample of every feature table with the model; rows that differ must not be published.

Contracts check single rows and completeness checks keys. Neither detects vectors shuffled among users, yesterday's
scores under today's stamps, or lists that answer another request. A few rows of each table are drawn by a hash of their
keys, so a rerun draws the same rows. The driver runs the model on the inputs at the audit's versions, without Spark,
and compares. The same draw measures how far the vectors spread and how far users' vectors moved since their last ones.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.errors import SpacetimeError
from conf.gates import COSINE_BEFORE
from conf.settings import Settings
from conf.tables import HISTORY_NAMES
from etl.columns.poi_slots import is_live, keep_known
from etl.delta.retention import table_path
from etl.delta.storage import table_version
from etl.quality.gate_rules import Figure
from etl.spark.session import compute_once
from models.copying.crowd_candidates import SlotFinder
from models.copying.crowd_tables import CROWD_TABLES, last_crowd, open_finder
from models.data.dataset import TableAt
from models.evaluation.vector_spread import describe_collapse, measure_spread
from models.serving.bundle import ModelBundle, Serving, load_bundle, resolve_model
from models.serving.inference import (
    Catalogue,
    encode_pois,
    encode_users,
    generate_candidates,
    score_candidates,
)
from udfs.features.poi_candidates import CATALOGUE_NAMES
from udfs.features.poi_embeddings import SLOT_NAMES
from udfs.features.ranking_scores import explode_candidates, group_candidates
from udfs.features.requests import with_defaults, with_history
from udfs.releases.audit_checks import AuditedDay, Check

LOGGER = logging.getLogger(__name__)
NUM_VECTORS = 32
"""Rows of each embedding table that are recomputed: if 1 row in 10 is wrong, 97 of 100 runs detect it."""
NUM_SCORED, NUM_ANSWERED = 32, 16
"""Requests whose scores, and whose POIs, are recomputed."""
NUM_SPREAD = 1024
"""Vectors whose spread is measured."""
TOLERANCE: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 5e-2}
"""Allowed difference between two computations of one number, for example in other batches or on another processor."""
Differences = list[str]


@dataclass
class SampleFindings:
    """The findings of the sample.

    Attributes:
        checks: number of rows that differ from the recomputed ones, per table.
        collapsed: descriptions of vectors that do not spread.
        figures: by table, then column and statistic; judged against the days before.
        unjudged: checks that could not be made, as text.
    """

    checks: list[Check] = field(default_factory=list)
    collapsed: list[str] = field(default_factory=list)
    figures: dict[str, dict[tuple[str, str], Figure]] = field(default_factory=dict)
    unjudged: list[str] = field(default_factory=list)


def look_at_sample(
    audited: AuditedDay, settings: Settings, *, model_version: str, model_uri: str
) -> SampleFindings:
    """Draws rows of the day, recomputes them and compares.

    Args:
        audited: the day at pinned versions.
        settings: where models are, how they are served.
        model_version: of the day's rows.
        model_uri: the model given to the job; it is used only if it resolves to that version.
    """
    findings = SampleFindings()
    users, pois = (
        _draw(audited, table, key, ("embedding", *more))
        for table, key, more in (
            ("user_embeddings", "user_id", ("sequence_day",)),
            ("poi_embeddings", "poi_id", ()),
        )
    )
    for table, rows in (("user_embeddings", users), ("poi_embeddings", pois)):
        if rows.num_rows:
            findings.collapsed += describe_collapse(measure_spread(_vectors(rows)), table)
    _measure_movement(audited, users, model_version, findings)
    bundle = open_audited_model(settings, model_version=model_version, model_uri=model_uri)
    if bundle is None:
        findings.unjudged.append(f"no row was made again: model {model_version} cannot be opened")
        return findings
    tolerance = TOLERANCE[settings.features.dtype]
    drawn = _Drawn(
        users.slice(0, NUM_VECTORS),
        pois.slice(0, NUM_VECTORS),
        _draw_requests(audited, "ranking_scores", NUM_SCORED, ("poi_id", "click_logit")),
        _draw_requests(audited, "poi_candidates", NUM_ANSWERED, ("rank", "poi_id", "log_probability")),
    )
    recomputation = _Recomputation(audited, bundle, settings, drawn)
    jobs: list[tuple[str, Callable[[], tuple[int, Differences]]]] = [
        ("user_embeddings", lambda: recomputation.compare_users(tolerance)),
        ("poi_embeddings", lambda: recomputation.compare_pois(tolerance)),
        ("ranking_scores", lambda: recomputation.compare_scores(tolerance)),
        ("poi_candidates", lambda: recomputation.compare_candidates(tolerance)),
    ]
    for table, compare in jobs:
        if table in audited.skipped:
            continue
        num_compared, different = compare()
        example = f", for example {different[0]}" if different else ""
        name = f"of {num_compared} sampled rows are not what the model makes of the inputs{example}"
        findings.checks.append(Check(table, name, len(different)))
    return findings


def open_audited_model(settings: Settings, *, model_version: str, model_uri: str) -> ModelBundle | None:
    """Opens the model that computed the day's rows; None if it is not available."""
    uris = [model_uri] if model_version.startswith("folder-") else [f"models:/{model_version}", model_uri]
    for uri in uris:
        try:
            path, resolved_version = resolve_model(uri, settings)
        except SpacetimeError as error:
            LOGGER.info("the audit looks for model %s at %s: %s", model_version, uri, error)
            continue
        if resolved_version == model_version:
            return load_bundle(path, serving=Serving(max_actions=settings.features.max_actions))
    return None


@dataclass(frozen=True)
class _Drawn:
    """The drawn rows of each feature table, as they were written; of requests, all rows."""

    users: pa.Table
    pois: pa.Table
    scores: pa.Table
    candidates: pa.Table


class _Recomputation:
    """Recomputes rows of a day with the model and compares them with the written ones."""

    def __init__(self, audited: AuditedDay, bundle: ModelBundle, settings: Settings, drawn: _Drawn) -> None:
        self.audited, self.bundle, self.settings, self.drawn = audited, bundle, settings, drawn
        self.day: date = audited.day
        self.sequences = self._read_sequences()

    def _read_sequences(self) -> DataFrame:
        """Reads the sequences of all drawn rows, once.

        Their days are looked up first on two narrow columns. A night's users were mostly active on its last days, and
        so the arrays of the long history, which lie in the partition of the first delivery, are hardly ever read.
        """
        asking = {
            user
            for rows in (self.drawn.scores, self.drawn.candidates)
            for user in rows["user_id"].to_pylist()
        }
        days = set(self.drawn.users["sequence_day"].to_pylist())
        sequences = self.audited.read("action_sequences").where(F.col("day") <= F.lit(self.day))
        if asking:
            last = (
                sequences.where(F.col("user_id").isin(sorted(asking)))
                .groupBy("user_id")
                .agg(F.max("day").alias("day"))
                .select("day")
                .distinct()
            )
            days |= {row["day"] for row in last.collect()}
        users = sorted(asking | set(self.drawn.users["user_id"].to_pylist()))
        return compute_once(sequences.where(F.col("day").isin(sorted(days)) & F.col("user_id").isin(users)))

    def compare_users(self, tolerance: float) -> tuple[int, Differences]:
        """Compares vectors of users with those computed from their histories."""
        rows = self.drawn.users
        if not rows.num_rows:
            return 0, []
        days, ids = rows["sequence_day"].to_pylist(), rows["user_id"].to_pylist()
        is_drawn = F.col("day").isin(sorted(set(days))) & F.col("user_id").isin(ids)
        columns = ("user_id", "day", "seq_len", "profile_ids", *HISTORY_NAMES)
        states = _batch(self.sequences.where(is_drawn).select(*columns))
        vectors = encode_users(self.bundle, states)
        keys = zip(states["user_id"].to_pylist(), states["day"].to_pylist(), strict=True)
        recomputed = dict(zip(keys, vectors, strict=True))
        return _compare_vectors(
            list(zip(ids, days, strict=True)), _vectors(rows), recomputed, "user", tolerance
        )

    def compare_pois(self, tolerance: float) -> tuple[int, Differences]:
        """Compares vectors of POIs with those computed from their slots."""
        rows = self.drawn.pois
        if not rows.num_rows:
            return 0, []
        ids = rows["poi_id"].to_pylist()
        known = self._known_slots().where(F.col("poi_id").isin(ids) & is_live(F.lit(self.day)))
        slots = _batch(known.select(*SLOT_NAMES))
        recomputed = dict(zip(slots["poi_id"].to_pylist(), encode_pois(self.bundle, slots), strict=True))
        return _compare_vectors(ids, _vectors(rows), recomputed, "POI", tolerance)

    def compare_scores(self, tolerance: float) -> tuple[int, Differences]:
        """Compares click logits with those of the same candidates."""
        written = self.drawn.scores
        if not written.num_rows:
            return 0, []
        requests = self._requests(written)
        candidates = group_candidates(explode_candidates(requests, self._known_slots()))
        states = self._with_history(candidates)
        recomputed = {
            (request, poi): float(logit)
            for request, pois, logits in zip(
                states["request_id"].to_pylist(), states["candidate_poi_ids"].to_pylist(),
                score_candidates(self.bundle, states), strict=True,
            )
            for poi, logit in zip(pois, logits, strict=True)
        }  # fmt: skip
        different = []
        for row in written.to_pylist():
            expected, logit = recomputed.get((row["request_id"], row["poi_id"])), row["click_logit"]
            if expected is None or not abs(logit - expected) <= tolerance * (1 + abs(expected)):
                different.append(
                    f"request {row['request_id']}, POI {row['poi_id']}: logit {logit}, made now {expected}"
                )
        return written.num_rows, different

    def compare_candidates(self, tolerance: float) -> tuple[int, Differences]:
        """Compares lists of POIs, and their log probabilities, with those generated now."""
        written = self.drawn.candidates
        if not written.num_rows:
            return 0, []
        states = self._with_history(self._requests(written))
        known = self._known_slots().select(*CATALOGUE_NAMES).orderBy("block_id", "inner_id")
        catalogue = Catalogue.from_arrow(known.toArrow())
        features = self.settings.features
        recomputed = generate_candidates(
            self.bundle, states, catalogue, top_k=features.top_k, new_logit=features.new_logit,
            finder=self._finder(catalogue),
        )  # fmt: skip
        lists: dict[str, dict[int, tuple[str, float]]] = {}
        for row in written.to_pylist():
            lists.setdefault(row["request_id"], {})[row["rank"]] = (row["poi_id"], row["log_probability"])
        different = []
        for request, generated in zip(states["request_id"].to_pylist(), recomputed, strict=True):
            pairs = zip(generated.pois, generated.log_probs, strict=True)
            expected = [(catalogue.poi_ids[poi], float(log)) for poi, log in pairs]
            problem = _describe_difference(lists.pop(request, {}), expected, tolerance)
            if problem:
                different.append(f"request {request}: {problem}")
        different += [f"request {request}: not to be answered" for request in lists]
        return len(recomputed), different

    def _known_slots(self) -> DataFrame:
        index_version = self.bundle.layout.index_version
        return keep_known(self.audited.read("poi_index"), day=self.day, index_version=index_version)

    def _requests(self, written: pa.Table) -> DataFrame:
        requests = self.audited.requests(action_type_id=self.bundle.action_type_id)
        drawn = F.col("request_id").isin(sorted(set(written["request_id"].to_pylist())))
        return requests.where(drawn & F.col("action_type_id").isNotNull())

    def _with_history(self, requests: DataFrame) -> pa.RecordBatch:
        """Looks up histories as the feature jobs do."""
        return _batch(with_defaults(with_history(requests, self.sequences, as_of=F.lit(self.day))))

    def _finder(self, catalogue: Catalogue) -> SlotFinder | None:
        if not self.bundle.copies_from_crowd:
            return None
        spark, root = self.audited.spark, self.audited.root
        visits, transitions = (
            TableAt(table_path(spark, root, name), table_version(spark, root, name)) for name in CROWD_TABLES
        )
        return open_finder(
            last_crowd(visits, transitions, self.day, self.bundle.layout.index_version), catalogue
        )


def _draw(audited: AuditedDay, table: str, key: str, columns: Sequence[str]) -> pa.Table:
    """Draws rows of the day by a hash of their key: the same rows on every rerun, different ones on other days."""
    rows = audited.rows(table).select(key, *columns)
    return rows.orderBy(_by_hash(key, audited.day), key).limit(NUM_SPREAD).toArrow()


def _draw_requests(audited: AuditedDay, table: str, number: int, columns: Sequence[str]) -> pa.Table:
    """Draws requests of the day as `_draw` draws rows, and reads all their rows."""
    rows = audited.rows(table)
    drawn = rows.select("request_id").distinct().orderBy(_by_hash("request_id", audited.day)).limit(number)
    ids = [row["request_id"] for row in drawn.collect()]
    return rows.where(F.col("request_id").isin(ids)).select("request_id", "user_id", *columns).toArrow()


def _by_hash(key: str, day: date) -> F.Column:
    return F.xxhash64(F.lit(str(day)), F.col(key))


def _measure_movement(
    audited: AuditedDay, users: pa.Table, model_version: str, findings: SampleFindings
) -> None:
    """Adds how similar users' new vectors are to their last ones by the same model; nothing on its first day."""
    ids = users["user_id"].to_pylist()
    earlier = audited.read("user_embeddings").where(
        (F.col("day") < F.lit(audited.day))
        & (F.col("model_version") == model_version)
        & F.col("user_id").isin(ids)
    )
    last = earlier.groupBy("user_id").agg(F.max_by("embedding", "day").alias("embedding")).toArrow()
    if not last.num_rows:
        return
    before = dict(zip(last["user_id"].to_pylist(), _vectors(last), strict=True))
    pairs = [(now, before[user]) for user, now in zip(ids, _vectors(users), strict=True) if user in before]
    cosines = [float(now @ was) for now, was in pairs]
    findings.figures["user_embeddings"] = {
        ("embedding", COSINE_BEFORE): Figure(float(np.mean(cosines)) if len(cosines) else None)
    }


def _batch(frame: DataFrame) -> pa.RecordBatch:
    table = frame.toArrow().combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _vectors(rows: pa.Table) -> np.ndarray:
    return np.array(rows["embedding"].to_pylist(), dtype=np.float64).reshape(rows.num_rows, -1)


def _compare_vectors(
    keys: Sequence[Any],
    written: np.ndarray,
    recomputed: Mapping[Any, np.ndarray],
    what: str,
    tolerance: float,
) -> tuple[int, Differences]:
    different = []
    for key, vector in zip(keys, written, strict=True):
        expected = recomputed.get(key)
        name = key[0] if isinstance(key, tuple) else key
        if expected is None:
            different.append(f"{what} {name}: there is nothing that it was made from")
        elif len(expected) != len(vector):
            different.append(f"{what} {name}: {len(vector)} numbers, the model makes {len(expected)}")
        elif not np.max(np.abs(vector - expected)) <= tolerance:
            cosine = float(vector @ expected)
            different.append(f"{what} {name}: its vector has cosine {cosine:.3f} to the one made now")
    return len(keys), different


def _describe_difference(
    written: Mapping[int, tuple[str, float]], expected: Sequence[tuple[str, float]], tolerance: float
) -> str:
    """Describes how a list of POIs by rank differs from the recomputed one; empty if equal. Ties may swap places."""
    if len(written) != len(expected):
        return f"{len(written)} POIs, the model makes {len(expected)}"
    recomputed = dict(expected)
    lowest = expected[-1][1] if expected else 0.0
    for rank, (_, log) in enumerate(expected, start=1):
        poi, written_log = written.get(rank, ("", float("nan")))
        # A POI that is missing from the recomputed list may have tied with the last one, where the cut between
        # them is arbitrary. So it is given the last one's log probability, and the written one must agree with it.
        recomputed_log = recomputed.get(poi, lowest)
        allowed = tolerance * (1 + abs(log))
        if not abs(written_log - log) <= allowed or not abs(recomputed_log - written_log) <= allowed:
            return (
                f"rank {rank} is {poi} with log probability {written_log:.4f}, made now {expected[rank - 1]}"
            )
    return ""
