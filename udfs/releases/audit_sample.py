"""A sample of every feature table, made once more by the model: rows that say something else are not to be published.

Contracts see one row, completeness sees keys; neither sees vectors that were shuffled among users, scores of yesterday
under today's stamps, or lists that answer somebody else. A few rows of each table are drawn by a hash of their keys, so
a rerun draws the same; the driver makes them from the inputs at the audit's versions, without Spark, and compares. The
same draw tells how far the vectors spread and how far users' vectors have moved since the last ones.
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
"""Rows of each embedding table that are made again: one in ten of them wrong is found in 97 of 100 nights."""
NUM_SCORED, NUM_ANSWERED = 32, 16
"""Requests whose scores, and whose POIs, are made again."""
NUM_SPREAD = 1024
"""Vectors whose spread is looked at."""
TOLERANCE: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far two ways to make one number may lie apart: other batches, another processor."""
Differences = list[str]


@dataclass
class SampleFindings:
    """What the sample showed.

    Attributes:
        checks: rows that differ from what the model makes, per table.
        collapsed: in words, vectors that do not spread.
        figures: by table, then column and statistic; judged beside the days before.
        unjudged: what could not be looked at, in words.
    """

    checks: list[Check] = field(default_factory=list)
    collapsed: list[str] = field(default_factory=list)
    figures: dict[str, dict[tuple[str, str], Figure]] = field(default_factory=dict)
    unjudged: list[str] = field(default_factory=list)


def look_at_sample(
    audited: AuditedDay, settings: Settings, *, model_version: str, model_uri: str
) -> SampleFindings:
    """Draws rows of the day, makes them again and compares.

    Args:
        audited: the day at pinned versions.
        settings: where models are, how they are served.
        model_version: of the day's rows.
        model_uri: the model that the job was given; what it leads to counts only if it is that version.
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
    again = _Again(audited, bundle, settings)
    jobs: list[tuple[str, Callable[[], tuple[int, Differences]]]] = [
        ("user_embeddings", lambda: again.compare_users(users.slice(0, NUM_VECTORS), tolerance)),
        ("poi_embeddings", lambda: again.compare_pois(pois.slice(0, NUM_VECTORS), tolerance)),
        ("ranking_scores", lambda: again.compare_scores(tolerance)),
        ("poi_candidates", lambda: again.compare_candidates(tolerance)),
    ]
    for table, compare in jobs:
        if table in audited.skipped:
            continue
        looked_at, different = compare()
        told = f", for example {different[0]}" if different else ""
        name = f"of {looked_at} sampled rows are not what the model makes of the inputs{told}"
        findings.checks.append(Check(table, name, len(different)))
    return findings


def open_audited_model(settings: Settings, *, model_version: str, model_uri: str) -> ModelBundle | None:
    """Opens the model that made the day's rows; None if it is not at hand."""
    uris = [model_uri] if model_version.startswith("folder-") else [f"models:/{model_version}", model_uri]
    for uri in uris:
        try:
            path, found = resolve_model(uri, settings)
        except SpacetimeError as error:
            LOGGER.info("the audit looks for model %s at %s: %s", model_version, uri, error)
            continue
        if found == model_version:
            return load_bundle(path, serving=Serving(max_actions=settings.features.max_actions))
    return None


class _Again:
    """Makes rows of a day again."""

    def __init__(self, audited: AuditedDay, bundle: ModelBundle, settings: Settings) -> None:
        self.audited, self.bundle, self.settings = audited, bundle, settings
        self.day: date = audited.day

    def compare_users(self, rows: pa.Table, tolerance: float) -> tuple[int, Differences]:
        """Compares vectors of users with those made of their histories."""
        if not rows.num_rows:
            return 0, []
        days, ids = rows["sequence_day"].to_pylist(), rows["user_id"].to_pylist()
        sequences = self.audited.read("action_sequences")
        wanted = F.col("day").isin(sorted(set(days))) & F.col("user_id").isin(ids)
        states = sequences.where(wanted).select("user_id", "day", "seq_len", "profile_ids", *HISTORY_NAMES)
        found = _batch(states)
        vectors = encode_users(self.bundle, found)
        keys = zip(found["user_id"].to_pylist(), found["day"].to_pylist(), strict=True)
        made = dict(zip(keys, vectors, strict=True))
        return _compare_vectors(list(zip(ids, days, strict=True)), _vectors(rows), made, "user", tolerance)

    def compare_pois(self, rows: pa.Table, tolerance: float) -> tuple[int, Differences]:
        """Compares vectors of POIs with those made of their slots."""
        if not rows.num_rows:
            return 0, []
        ids = rows["poi_id"].to_pylist()
        known = self._known_slots().where(F.col("poi_id").isin(ids) & is_live(F.lit(self.day)))
        found = _batch(known.select(*SLOT_NAMES))
        made = dict(zip(found["poi_id"].to_pylist(), encode_pois(self.bundle, found), strict=True))
        return _compare_vectors(ids, _vectors(rows), made, "POI", tolerance)

    def compare_scores(self, tolerance: float) -> tuple[int, Differences]:
        """Compares click logits with those of the same candidates."""
        written = self._of_requests("ranking_scores", NUM_SCORED, ("poi_id", "click_logit"))
        if not written.num_rows:
            return 0, []
        requests = self._requests(written)
        candidates = group_candidates(explode_candidates(requests, self._known_slots()))
        states = self._with_history(candidates, written)
        made = {
            (request, poi): float(logit)
            for request, pois, logits in zip(
                states["request_id"].to_pylist(), states["candidate_poi_ids"].to_pylist(),
                score_candidates(self.bundle, states), strict=True,
            )
            for poi, logit in zip(pois, logits, strict=True)
        }  # fmt: skip
        different = []
        for row in written.to_pylist():
            expected, found = made.get((row["request_id"], row["poi_id"])), row["click_logit"]
            if expected is None or not abs(found - expected) <= tolerance * (1 + abs(expected)):
                different.append(
                    f"request {row['request_id']}, POI {row['poi_id']}: logit {found}, made now {expected}"
                )
        return written.num_rows, different

    def compare_candidates(self, tolerance: float) -> tuple[int, Differences]:
        """Compares lists of POIs, and their log probabilities, with those generated now."""
        written = self._of_requests("poi_candidates", NUM_ANSWERED, ("rank", "poi_id", "log_probability"))
        if not written.num_rows:
            return 0, []
        states = self._with_history(self._requests(written), written)
        known = self._known_slots().select(*CATALOGUE_NAMES).orderBy("block_id", "inner_id")
        catalogue = Catalogue.from_arrow(known.toArrow())
        made = generate_candidates(
            self.bundle, states, catalogue, top_k=self.settings.features.top_k, finder=self._finder(catalogue)
        )
        lists: dict[str, dict[int, tuple[str, float]]] = {}
        for row in written.to_pylist():
            lists.setdefault(row["request_id"], {})[row["rank"]] = (row["poi_id"], row["log_probability"])
        different = []
        for request, (pois, logs) in zip(states["request_id"].to_pylist(), made, strict=True):
            expected = [(catalogue.poi_ids[poi], float(log)) for poi, log in zip(pois, logs, strict=True)]
            problem = _tell_list(lists.pop(request, {}), expected, tolerance)
            if problem:
                different.append(f"request {request}: {problem}")
        different += [f"request {request}: not to be answered" for request in lists]
        return len(made), different

    def _known_slots(self) -> DataFrame:
        index_version = self.bundle.layout.index_version
        return keep_known(self.audited.read("poi_index"), day=self.day, index_version=index_version)

    def _of_requests(self, table: str, number: int, columns: Sequence[str]) -> pa.Table:
        """Reads all rows of some requests of the day."""
        rows = self.audited.rows(table)
        drawn = rows.select("request_id").distinct().orderBy(_by_hash("request_id", self.day)).limit(number)
        ids = [row["request_id"] for row in drawn.collect()]
        return rows.where(F.col("request_id").isin(ids)).select("request_id", "user_id", *columns).toArrow()

    def _requests(self, written: pa.Table) -> DataFrame:
        requests = self.audited.requests(action_type_id=self.bundle.action_type_id)
        drawn = F.col("request_id").isin(sorted(set(written["request_id"].to_pylist())))
        return requests.where(drawn & F.col("action_type_id").isNotNull())

    def _with_history(self, requests: DataFrame, written: pa.Table) -> pa.RecordBatch:
        """Looks up histories as the feature jobs do, of these users only."""
        users = sorted(set(written["user_id"].to_pylist()))
        sequences = self.audited.read("action_sequences").where(
            (F.col("day") <= F.lit(self.day)) & F.col("user_id").isin(users)
        )
        return _batch(with_defaults(with_history(requests, sequences, as_of=F.lit(self.day))))

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
    """Draws rows of the day by a hash of their key: the same ones on every rerun, others on other days."""
    rows = audited.rows(table).select(key, *columns)
    return rows.orderBy(_by_hash(key, audited.day), key).limit(NUM_SPREAD).toArrow()


def _by_hash(key: str, day: date) -> F.Column:
    return F.xxhash64(F.lit(str(day)), F.col(key))


def _measure_movement(
    audited: AuditedDay, users: pa.Table, model_version: str, findings: SampleFindings
) -> None:
    """Adds how alike users' new vectors are to their last ones by the same model; nothing on its first night."""
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
    made: Mapping[Any, np.ndarray],
    what: str,
    tolerance: float,
) -> tuple[int, Differences]:
    different = []
    for key, vector in zip(keys, written, strict=True):
        expected = made.get(key)
        name = key[0] if isinstance(key, tuple) else key
        if expected is None:
            different.append(f"{what} {name}: there is nothing that it was made from")
        elif len(expected) != len(vector):
            different.append(f"{what} {name}: {len(vector)} numbers, the model makes {len(expected)}")
        elif not np.max(np.abs(vector - expected)) <= tolerance:
            cosine = float(vector @ expected)
            different.append(f"{what} {name}: its vector has cosine {cosine:.3f} to the one made now")
    return len(keys), different


def _tell_list(
    written: Mapping[int, tuple[str, float]], expected: Sequence[tuple[str, float]], tolerance: float
) -> str:
    """Says how a list of POIs by rank differs from the one made now; empty = it does not. Ties may change places."""
    if len(written) != len(expected):
        return f"{len(written)} POIs, the model makes {len(expected)}"
    made = dict(expected)
    least = expected[-1][1] if expected else 0.0
    for rank, (_, log) in enumerate(expected, start=1):
        poi, found = written.get(rank, ("", float("nan")))
        # A POI that is not on the list made now may have tied with its last one, where the cut between them
        # is arbitrary; so it is taken to be worth as much, and its written figure must agree with that.
        own = made.get(poi, least)
        allowed = tolerance * (1 + abs(log))
        if not abs(found - log) <= allowed or not abs(own - found) <= allowed:
            return f"rank {rank} is {poi} with log probability {found:.4f}, made now {expected[rank - 1]}"
    return ""
