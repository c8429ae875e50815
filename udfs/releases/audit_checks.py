"""The checks of an audit across tables: rows that are missing, stale, not live, or of several models or indexes.

Every table is read at the Delta version that is pinned when the audit starts. Each check counts rows that must not
exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property, reduce
from types import MappingProxyType

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from conf.gates import GENERATED, LIVE, VISITED, VISITED_FOUND, gates_of
from conf.settings import CleanSettings
from conf.tables import FEATURE_TABLES, TABLE_STATISTICS, TABLES
from etl.columns.poi_slots import is_live, keep_known
from etl.delta.contracts import spark_schema
from etl.delta.storage import read_table, table_exists, table_version
from etl.spark.session import compute_once, local_frame
from udfs.features.poi_embeddings import pending_pois
from udfs.features.requests import judge_requests_of, prepare_requests
from udfs.features.run_context import pin_version
from udfs.features.runner import FEATURE_JOBS, refused_where
from udfs.features.skipped_features import SkippedFeature
from udfs.features.user_embeddings import mark_current, pending_users

ROUNDING = 1e-4
UPSTREAM_TABLES = ("cleaned_actions", "poi_index", "action_sequences", "ranking_requests")


@dataclass(frozen=True)
class Check:
    """A count of rows that must not exist: `found` of them, 0 allowed."""

    table: str
    name: str
    found: int

    @property
    def is_passed(self) -> bool:
        return self.found == 0


@dataclass(frozen=True)
class Search:
    """Checks of one frame before their count.

    Attributes:
        table: table that the checks are about.
        rows: each row is looked at once.
        conditions: name of a check -> SQL condition of the rows that must not exist.
    """

    table: str
    rows: DataFrame
    conditions: Mapping[str, str]


class AuditedDay:
    """Reads the tables of one day at pinned versions."""

    def __init__(
        self,
        spark: SparkSession,
        root: str,
        day: date,
        skipped: Mapping[str, SkippedFeature] = MappingProxyType({}),
        clean: CleanSettings | None = None,
    ) -> None:
        """Pins the tables; `skipped` are those that the day's model cannot compute, `clean` judges the requests."""
        self.spark, self.root, self.day = spark, root, day
        self._frames: dict[str, DataFrame] = {}
        self.clean = clean or CleanSettings()
        self.versions = {name: table_version(spark, root, name) for name in FEATURE_TABLES}
        self.versions |= {name: pin_version(spark, root, name, day) for name in UPSTREAM_TABLES}
        self.skipped = skipped
        eve = day - timedelta(days=1)
        self.versions_before = {
            name: pin_version(spark, root, name, eve) for name in self.versions if gates_of(name).frozen
        }

    def read(self, name: str) -> DataFrame:
        """Reads a table at its pinned version; opened once, since resolving a version is slow for a small table."""
        if name not in self._frames:
            self._frames[name] = read_table(self.spark, self.root, name, version=self.versions[name])
        return self._frames[name]

    def prepare(self) -> None:
        """Opens all tables and judges the requests, so that several threads may read afterwards."""
        for name in self.versions:
            self.read(name)
        self.judged_requests  # noqa: B018

    def rows(self, name: str) -> DataFrame:
        """Reads the day's rows of a table, or all rows if the table is not written by day."""
        rows = self.read(name)
        return rows.where(F.col("day") == F.lit(self.day)) if TABLES[name].write == "day" else rows

    @cached_property
    def judged_requests(self) -> DataFrame:
        """The requests of the day, judged once for all checks."""
        return compute_once(
            judge_requests_of(self.read("ranking_requests"), day=self.day, settings=self.clean)
        )

    def requests(self, *, action_type_id: int = 0) -> DataFrame:
        """Reads the requests of the day that need an answer, without those refused as a whole."""
        return prepare_requests(self.judged_requests, action_type_id=action_type_id)

    def before_the_night(self) -> dict[str, DataFrame]:
        """Reads the tables that have columns that never change, as they stood before the day's run."""
        return {
            name: read_table(self.spark, self.root, name, version=version)
            for name, version in self.versions_before.items()
        }

    def eve(self) -> dict[str, DataFrame]:
        """Reads the previous day's delivery of the tables whose gate looks for repeated deliveries."""
        eve = F.col("day") == F.lit(self.day - timedelta(days=1))
        return {
            name: self.read(name).where(eve) for name in self.versions if gates_of(name).repeated_after_days
        }

    def earlier_statistics(self, days: int) -> DataFrame:
        """Reads the figures that the audits of the last `days` days before the day have counted."""
        if not table_exists(self.spark, self.root, TABLE_STATISTICS.name):
            return local_frame(self.spark, [], spark_schema(TABLE_STATISTICS))
        first = F.lit(self.day - timedelta(days=days))
        rows = read_table(self.spark, self.root, TABLE_STATISTICS.name)
        return rows.where((F.col("day") >= first) & (F.col("day") < F.lit(self.day)))

    def refused(self, job: str) -> DataFrame:
        """Reads the rows that a feature job refused on the day; the quarantine is only counted, so not pinned."""
        if not table_exists(self.spark, self.root, "quarantined_rows"):
            return local_frame(self.spark, [], spark_schema(TABLES["quarantined_rows"]))
        rows = read_table(self.spark, self.root, "quarantined_rows").where(F.col("day") == F.lit(self.day))
        return rows.where(refused_where(FEATURE_JOBS[job]))


def find_stamps(audited: AuditedDay) -> list[tuple[str, int, bool]]:
    """Returns the pairs of model and index version in the day's feature rows, and whether any are simulated."""
    stamps = [
        audited.rows(name).select("model_version", "index_version", "is_simulated") for name in FEATURE_TABLES
    ]
    grouped = (
        reduce(DataFrame.union, stamps)
        .groupBy("model_version", "index_version")
        .agg(F.bool_or("is_simulated").alias("is_simulated"))
    )
    pairs = sorted(
        (row["model_version"], row["index_version"], row["is_simulated"]) for row in grouped.collect()
    )
    if not pairs and audited.skipped:
        # Without vectors, on a day without requests, only the records of skipped tables name the model.
        records = audited.skipped.values()
        return sorted(
            {(record.model_version, record.index_version, record.is_simulated) for record in records}
        )
    return pairs


def check_stamps(stamps: Sequence[tuple[str, int, bool]]) -> list[Check]:
    """Checks that the day has rows, all of one model on one index."""
    return [
        Check("feature tables", "missing: no row of the day in any of them", int(not stamps)),
        Check("feature tables", "pairs of model and index version too many", max(len(stamps) - 1, 0)),
    ]


def check_across_tables(audited: AuditedDay, *, model_version: str, index_version: int) -> list[Check]:
    """Compares the tables of the day and counts rows that must not exist, in one Spark action."""
    searches = [
        *find_missing_vectors(audited, model_version=model_version, index_version=index_version),
        *find_wrong_scores(audited),
        *find_wrong_candidates(audited, index_version=index_version),
    ]
    named = [(search.table, name) for search in searches for name in search.conditions]
    parts = []
    for search in searches:
        numbers = [
            f"IF({condition}, {named.index((search.table, name))}, NULL)"
            for name, condition in search.conditions.items()
        ]
        parts.append(search.rows.selectExpr(f"explode(array_compact(array({', '.join(numbers)}))) AS check"))
    rows = reduce(DataFrame.unionAll, parts).groupBy("check").count().collect()
    counts = {row["check"]: row["count"] for row in rows}
    return [Check(table, name, counts.get(number, 0)) for number, (table, name) in enumerate(named)]


def find_missing_vectors(audited: AuditedDay, *, model_version: str, index_version: int) -> list[Search]:
    """Finds users and live POIs whose vector is missing or stale, unless it was refused."""
    done = (F.col("model_version") == model_version) & (F.col("day") <= F.lit(audited.day))
    embedded = mark_current(audited.read("user_embeddings").where(done), audited.root)
    users = pending_users(audited.read("action_sequences"), embedded, day=audited.day)
    slots = keep_known(audited.read("poi_index"), day=audited.day, index_version=index_version)
    pois = pending_pois(slots, audited.read("poi_embeddings").where(done), day=audited.day)
    searches = []
    for table, key, pending in (("user_embeddings", "user_id", users), ("poi_embeddings", "poi_id", pois)):
        if table in audited.skipped:
            continue
        refused = audited.refused(table).select(F.get_json_object("payload", f"$.{key}").alias(key))
        missing = pending.join(refused, key, "left_anti")
        searches.append(Search(table, missing, {f"{key}s without a vector as of the day": "true"}))
    return searches


def find_wrong_scores(audited: AuditedDay) -> list[Search]:
    """Finds candidates of the day that are neither scored nor refused, and scores without a candidate."""
    if "ranking_scores" in audited.skipped:
        return []
    # A null candidate must be refused, too.
    asked = audited.requests().select(
        "request_id", F.explode(F.array_distinct("candidate_poi_ids")).alias("poi_id")
    )
    refused = audited.refused("ranking_scores").select(
        F.get_json_object("payload", "$.request_id").alias("request_id"),
        F.get_json_object("payload", "$.poi_id").alias("poi_id"),
    )
    scored = audited.rows("ranking_scores")
    pairs = _group_sources(
        {"asked": asked, "refused": refused, "scored": scored.select("request_id", "poi_id")},
        by=("request_id", "coalesce(poi_id, '')"),
    )
    # The logistic function as the job wrote it, to float32's rounding.
    differs = f"NOT coalesce(abs(score - 1 / (1 + exp(-double(click_logit)))) <= {ROUNDING}, false)"
    return [
        Search(
            "ranking_scores", scored, {"scores that are not the probability of their click_logit": differs}
        ),
        Search(
            "ranking_scores",
            pairs,
            {
                "candidates neither scored nor refused": "asked AND NOT scored AND NOT refused",
                "scores of pairs that nobody asked for": "scored AND NOT asked",
            },
        ),
    ]


def _group_sources(
    sources: Mapping[str, DataFrame], *, by: Sequence[str], aggregates: Sequence[str] = ()
) -> DataFrame:
    """Groups the rows of several frames by a key in one shuffle; tells for each key which frames have it.

    Args:
        sources: name -> frame; columns that a frame lacks are null.
        by: SQL expressions of the key.
        aggregates: SQL aggregates over the rows of all frames.
    """
    marked = [frame.withColumn("source", F.lit(name)) for name, frame in sources.items()]
    together = reduce(lambda one, other: one.unionByName(other, allowMissingColumns=True), marked)
    found = [f"bool_or(source = '{name}') AS {name}" for name in sources]
    return together.groupBy(*map(F.expr, by)).agg(*map(F.expr, (*found, *aggregates)))


def measure_candidates(audited: AuditedDay, *, index_version: int) -> DataFrame:
    """Measures the generated POIs against the day itself, as figures (`etl/quality/table_statistics.py`).

    It counts users' visits to POIs of interest after their request on the same day, and how many of these POIs were
    on their list. It also counts live POIs, and how many of them are on any list.
    """
    day, generated = F.lit(audited.day), audited.rows("poi_candidates").select("request_id", "poi_id")
    requests = audited.requests().select("request_id", "user_id", "request_ts_ms")
    actions = audited.rows("cleaned_actions").where(F.col("is_interest") & (F.col("event_date") == day))
    visited = (
        requests.join(actions.select("user_id", "poi_id", "action_ts_ms"), "user_id")
        .where("action_ts_ms > request_ts_ms")
        .select("request_id", "poi_id")
        .distinct()
    )
    on_list = generated.distinct().withColumn("is_found", F.lit(True))
    visits = visited.join(on_list, ["request_id", "poi_id"], "left").agg(
        F.count("*").alias(VISITED), F.count("is_found").alias(VISITED_FOUND)
    )
    slots = keep_known(audited.read("poi_index"), day=audited.day, index_version=index_version)
    live = slots.where(is_live(day)).select("poi_id").distinct()
    used = generated.select("poi_id").distinct().withColumn("is_generated", F.lit(True))
    spread = live.join(used, "poi_id", "left").agg(
        F.count("*").alias(LIVE), F.count("is_generated").alias(GENERATED)
    )
    return _as_figures(visits, "request_id").unionAll(_as_figures(spread, "poi_id"))


def _as_figures(counts: DataFrame, column: str) -> DataFrame:
    stacked = ", ".join(f"'{name}', double({name})" for name in counts.columns)
    return counts.selectExpr(f"stack({len(counts.columns)}, {stacked}) AS (statistic, value)").selectExpr(
        "'poi_candidates' AS table_name", f"'{column}' AS column_name", "statistic", "value",
        "string(NULL) AS example",
    )  # fmt: skip


def find_wrong_candidates(audited: AuditedDay, *, index_version: int) -> list[Search]:
    """Finds requests without generated POIs, and generated POIs that are not live as of their request."""
    requests = audited.requests()
    generated = audited.rows("poi_candidates").select("request_id", "rank", "poi_id", "log_probability")
    refused = audited.refused("poi_candidates").select(
        F.get_json_object("payload", "$.request_id").alias("request_id")
    )
    slots = keep_known(audited.read("poi_index"), day=audited.day, index_version=index_version)
    live = (
        requests.select("request_id", "request_date")
        .join(generated, "request_id")
        .join(slots.select("poi_id", "valid_from", "valid_to"), "poi_id")
        .where(is_live(F.col("request_date")))
    )
    lists = _group_sources(
        {"asked": requests.select("request_id"), "refused": refused, "generated": generated},
        by=("request_id",),
        aggregates=(
            "max(rank) AS last",
            "count(rank) AS n",
            "array_sort(collect_list(IF(rank IS NULL, NULL, struct(rank, log_probability)))).log_probability AS logs",
            "sum(exp(log_probability)) AS total",
        ),
    )
    # Spark's sequence(1, 0) counts down: without n > 1 the check would read a list of one POI beyond its end.
    rises = (
        f"n > 1 AND exists(sequence(1, n - 1), i -> n > 1 AND logs[int(i)] > logs[int(i - 1)] + {ROUNDING})"
    )
    return [
        Search(
            "poi_candidates",
            lists,
            {
                "requests neither answered nor refused": "asked AND NOT generated AND NOT refused",
                "requests with gaps in their ranks": "last <> n",
                "requests whose POIs are not in order of their probability": rises,
                "requests whose probabilities sum to more than 1": f"total > 1 + {ROUNDING * 10}",
            },
        ),
        Search(
            "poi_candidates",
            generated.join(live, ["request_id", "rank"], "left_anti"),
            {"generated POIs that are not live as of the request": "true"},
        ),
    ]
