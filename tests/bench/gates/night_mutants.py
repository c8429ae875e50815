"""Faults of the feature tables before the audit: what a job that went wrong, or a table written over, leaves behind."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from conf.tables import TABLES
from etl.delta.contracts import spark_schema
from etl.delta.storage import replace_day
from tests.bench.gates.mutant_list import Mutant
from tests.bench.gates.world import World

WRONG_SHARE = 0.04
"""A table of which this share of the rows is wrong or missing harms its readers."""
EAST = 4.95
"""Users whose last request or action lies east of this longitude are the city that is missing."""
Severity = Mapping[str, Any]


class NightTables:
    """The feature tables of a day as pandas, and the way back."""

    def __init__(self, world: World, day: date) -> None:
        self.root, self.day = world.settings.storage.root, day

    def read(self, table: str, *, before: bool = False) -> pd.DataFrame:
        """Reads the day's rows, or all rows of the days before, in order of their keys."""
        key = list(TABLES[table].key)
        rows = DeltaTable(f"{self.root}/{table}").to_pandas()
        is_day = rows["day"] == self.day
        return rows[~is_day if before else is_day].sort_values(key).reset_index(drop=True)

    def write(self, spark: SparkSession, table: str, rows: pd.DataFrame) -> None:
        """Replaces the day's rows."""
        records = rows.astype(object).where(rows.notna(), None).to_dict("records")
        for record in records:
            if "embedding" in record:
                record["embedding"] = [float(value) for value in record["embedding"]]
        frame = spark.createDataFrame(records, spark_schema(TABLES[table]))
        replace_day(frame, table, self.root, day=self.day, run_id="mutant", job="mutant")

    def all(self, table: str) -> pd.DataFrame:
        """Reads a whole table."""
        return DeltaTable(f"{self.root}/{table}").to_pandas()


def plant(world: World, spark: SparkSession, mutant: Mutant, day: date) -> dict[str, float]:
    """Plants a fault in a night's tables and returns by table the share of rows that are wrong or missing."""
    tables = NightTables(world, day)
    rng = np.random.default_rng(mutant.seed)
    wrong = {}
    for table, rows in KINDS[mutant.kind](tables, mutant.severity, rng).items():
        wrong[table] = _share_wrong(table, tables.read(table), rows)
        tables.write(spark, table, rows)
    return {table: round(share, 4) for table, share in wrong.items()}


def _share_wrong(table: str, right: pd.DataFrame, found: pd.DataFrame) -> float:
    """Share of the right rows that are missing or say something else."""
    key = list(TABLES[table].key)
    value = next(name for name in ("embedding", "click_logit", "log_probability") if name in right.columns)
    both = right.merge(found, on=key, how="left", suffixes=("", "_found"), indicator=True)
    missing = (both["_merge"] == "left_only").to_numpy()
    if value == "embedding":
        cosines = [
            1.0 if gone else float(np.dot(a, b))
            for a, b, gone in zip(both[value], both[f"{value}_found"], missing, strict=True)
        ]
        wrong = np.array(cosines) < 0.99
    else:
        wrong = (both[value] - both[f"{value}_found"]).abs().to_numpy() > 0.05
        if "score" in right.columns:
            wrong |= (both["score"] - both["score_found"]).abs().to_numpy() > 0.02
        if "rank" in right.columns:
            wrong |= (both["poi_id"] != both["poi_id_found"]).to_numpy()
    return float((wrong | missing).mean())


def _some(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    return np.sort(rng.permutation(count)[: max(2, round(share * count))])


def _vectors(rows: pd.DataFrame) -> np.ndarray:
    return np.array(rows["embedding"].tolist(), dtype=np.float64).reshape(len(rows), -1)


def _with_vectors(rows: pd.DataFrame, vectors: np.ndarray) -> pd.DataFrame:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows.assign(embedding=[row.astype(np.float32) for row in unit])


def _change_vectors(change: Callable[[np.ndarray, np.random.Generator, Severity], np.ndarray]) -> "Kind":
    def plant_in(
        tables: NightTables, severity: Severity, rng: np.random.Generator
    ) -> dict[str, pd.DataFrame]:
        rows = tables.read(severity["table"])
        vectors, some = _vectors(rows), _some(rng, len(rows), severity.get("share", 1.0))
        vectors[some] = change(vectors[some], rng, severity)
        return {severity["table"]: _with_vectors(rows, vectors)}

    return plant_in


def _swapped_vectors(
    tables: NightTables, severity: Severity, rng: np.random.Generator
) -> dict[str, pd.DataFrame]:
    users = tables.read("user_embeddings")
    every = _vectors(tables.all("poi_embeddings"))
    vectors, some = _vectors(users), _some(rng, len(users), severity["share"])
    vectors[some] = every[rng.integers(len(every), size=len(some))]
    return {"user_embeddings": _with_vectors(users, vectors)}


def _stale_vectors(
    tables: NightTables, severity: Severity, rng: np.random.Generator
) -> dict[str, pd.DataFrame]:
    users, before = tables.read("user_embeddings"), tables.read("user_embeddings", before=True)
    last = before.sort_values("day").groupby("user_id").tail(1).set_index("user_id")["embedding"]
    vectors = _vectors(users)
    for row in _some(rng, len(users), severity["share"]):
        user = users["user_id"][row]
        if user in last.index:
            vectors[row] = np.asarray(last[user], np.float64)
    return {"user_embeddings": _with_vectors(users, vectors)}


def _drop(table: str) -> "Kind":
    def plant_in(
        tables: NightTables, severity: Severity, rng: np.random.Generator
    ) -> dict[str, pd.DataFrame]:
        name = table or severity["table"]
        rows = tables.read(name)
        return {name: rows.drop(index=_some(rng, len(rows), severity["share"])).reset_index(drop=True)}

    return plant_in


def _with_logits(rows: pd.DataFrame, logits: np.ndarray) -> pd.DataFrame:
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return rows.assign(click_logit=logits.astype(np.float32), score=scores.astype(np.float32))


def _of_some_requests(rows: pd.DataFrame, share: float, rng: np.random.Generator) -> np.ndarray:
    requests = rows["request_id"].unique()
    return rows["request_id"].isin(requests[_some(rng, len(requests), share)]).to_numpy()


def _change_scores(
    change: Callable[[pd.DataFrame, np.ndarray, Severity, np.random.Generator], np.ndarray],
) -> "Kind":
    def plant_in(
        tables: NightTables, severity: Severity, rng: np.random.Generator
    ) -> dict[str, pd.DataFrame]:
        rows = tables.read("ranking_scores")
        some = _of_some_requests(rows, severity.get("share", 1.0), rng)
        logits = rows["click_logit"].to_numpy(np.float64).copy()
        logits[some] = change(rows[some], logits[some], severity, rng)
        return {"ranking_scores": _with_logits(rows, logits)}

    return plant_in


def _shuffle_scores(
    rows: pd.DataFrame, logits: np.ndarray, severity: Severity, rng: np.random.Generator
) -> np.ndarray:
    if severity["within"] == "table":
        return rng.permutation(logits)
    mixed = pd.Series(logits, index=rows.index)
    return mixed.groupby(rows["request_id"]).transform(lambda own: rng.permutation(own.to_numpy())).to_numpy()


def _scores_not_of_logits(
    tables: NightTables, severity: Severity, rng: np.random.Generator
) -> dict[str, pd.DataFrame]:
    rows = tables.read("ranking_scores")
    some = _of_some_requests(rows, severity["share"], rng)
    return {"ranking_scores": rows.assign(score=np.where(some, 1 - rows["score"], rows["score"]))}


def _leaked_labels(
    tables: NightTables, severity: Severity, rng: np.random.Generator
) -> dict[str, pd.DataFrame]:
    rows, shown = tables.read("ranking_scores"), tables.all("raw_impressions")
    labels = shown.drop_duplicates(["request_id", "poi_id"]).set_index(["request_id", "poi_id"])["label"]
    keys = pd.MultiIndex.from_frame(rows[["request_id", "poi_id"]])
    label = labels.reindex(keys).fillna(0).to_numpy()
    logits = rows["click_logit"].to_numpy(np.float64) + severity["gain"] * (2 * label - 1)
    return {"ranking_scores": _with_logits(rows, logits)}


def _change_lists(
    change: Callable[[pd.DataFrame, np.ndarray, NightTables, np.random.Generator], pd.DataFrame],
) -> "Kind":
    def plant_in(
        tables: NightTables, severity: Severity, rng: np.random.Generator
    ) -> dict[str, pd.DataFrame]:
        rows = tables.read("poi_candidates")
        some = _of_some_requests(rows, severity.get("share", 1.0), rng)
        return {"poi_candidates": change(rows, some, tables, rng)}

    return plant_in


def _reverse(
    rows: pd.DataFrame, some: np.ndarray, tables: NightTables, rng: np.random.Generator
) -> pd.DataFrame:
    reversed_pois = rows.groupby("request_id")["poi_id"].transform(lambda own: own.to_numpy()[::-1])
    return rows.assign(poi_id=np.where(some, reversed_pois, rows["poi_id"]))


def _one_list(
    rows: pd.DataFrame, some: np.ndarray, tables: NightTables, rng: np.random.Generator
) -> pd.DataFrame:
    first = rows[rows["request_id"] == rows["request_id"].iloc[0]].set_index("rank")
    return rows.assign(
        poi_id=np.where(some, first["poi_id"].reindex(rows["rank"]).to_numpy(), rows["poi_id"]),
        log_probability=np.where(
            some, first["log_probability"].reindex(rows["rank"]).to_numpy(), rows["log_probability"]
        ).astype(np.float32),
    )


def _random_lists(
    rows: pd.DataFrame, some: np.ndarray, tables: NightTables, rng: np.random.Generator
) -> pd.DataFrame:
    index = tables.all("poi_index")
    live = index[index["valid_to"].isna()]["poi_id"].to_numpy()
    drawn = rows.groupby("request_id")["poi_id"].transform(
        lambda own: rng.choice(live, size=len(own), replace=False)
    )
    return rows.assign(poi_id=np.where(some, drawn, rows["poi_id"]))


def _swap_lists(
    rows: pd.DataFrame, some: np.ndarray, tables: NightTables, rng: np.random.Generator
) -> pd.DataFrame:
    requests = rows["request_id"][some].unique()
    other = dict(zip(requests, np.roll(requests, 1), strict=True))
    lists = rows.set_index(["request_id", "rank"])
    keys = pd.MultiIndex.from_arrays([rows["request_id"].map(lambda own: other.get(own, own)), rows["rank"]])
    taken = lists.reindex(keys)
    return rows.assign(
        poi_id=taken["poi_id"].to_numpy(), log_probability=taken["log_probability"].to_numpy()
    ).dropna(subset=["poi_id"])


def _missing_city(
    tables: NightTables, severity: Severity, rng: np.random.Generator
) -> dict[str, pd.DataFrame]:
    rows = tables.read(severity["table"])
    actions = tables.all("cleaned_actions").sort_values(["action_ts_ms", "action_id"])
    last = actions.groupby("user_id")["poi_lon"].last()
    gone = set(last.index[last > EAST])
    return {severity["table"]: rows[~rows["user_id"].isin(gone)].reset_index(drop=True)}


Kind = Callable[[NightTables, Severity, np.random.Generator], dict[str, pd.DataFrame]]
KINDS: Mapping[str, Kind] = {
    "shuffled_vectors": _change_vectors(lambda v, rng, s: v[rng.permutation(len(v))]),
    "constant_vectors": _change_vectors(lambda v, rng, s: np.repeat(v[:1], len(v), axis=0)),
    "negated_vectors": _change_vectors(lambda v, rng, s: -v),
    "half_zero_vectors": _change_vectors(lambda v, rng, s: v * (np.arange(v.shape[1]) < v.shape[1] // 2)),
    "noisy_vectors": _change_vectors(lambda v, rng, s: v + s["sigma"] * rng.standard_normal(v.shape)),
    "swapped_vectors": _swapped_vectors,
    "stale_vectors": _stale_vectors,
    "missing_vectors": _drop(""),
    "negated_scores": _change_scores(lambda rows, logits, s, rng: -logits),
    "shuffled_scores": _change_scores(_shuffle_scores),
    "constant_scores": _change_scores(lambda rows, logits, s, rng: np.full(len(logits), logits.mean())),
    "scaled_scores": _change_scores(lambda rows, logits, s, rng: logits * s["factor"]),
    "scores_not_of_logits": _scores_not_of_logits,
    "leaked_labels": _leaked_labels,
    "missing_scores": _drop("ranking_scores"),
    "reversed_candidates": _change_lists(_reverse),
    "constant_candidates": _change_lists(_one_list),
    "random_candidates": _change_lists(_random_lists),
    "swapped_candidates": _change_lists(_swap_lists),
    "cut_candidates": lambda tables, s, rng: {
        "poi_candidates": (rows := tables.read("poi_candidates"))[rows["rank"] <= s["kept"]].reset_index(
            drop=True
        )
    },
    "candidates_in_other_units": lambda tables, s, rng: {
        "poi_candidates": (rows := tables.read("poi_candidates")).assign(
            log_probability=(rows["log_probability"] * s["factor"]).astype(np.float32)
        )
    },
    "missing_city": _missing_city,
}
