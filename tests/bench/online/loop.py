"""Table 5 on the first day after the training; the A/B test day by day: show, draw clicks and visits, log, night."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from etl.spark.session import open_session
from models.data.arrays import IntArray
from models.judging.lists import Pair
from models.judging.verdicts import judge_by_values
from tests.bench.online.experiment import Experiment
from tests.bench.online.lists import Lists, Morning, RankingTeam, open_morning
from tests.bench.online.truth import outcomes, requests_of, visits_after_clicks

LOGGER = logging.getLogger(__name__)
IMPRESSION_NAMES = (
    "request_id", "user_id", "request_ts_ms", "tz_offset_min", "user_lon", "user_lat", "poi_id", "position", "label",
    "is_simulated",
)  # fmt: skip
ARMS = ("A", "B")
"""A has the ranking team's base model on what is recalled by rule, B also has what our model gives."""


def arm_of(user_id: str) -> str:
    """Returns the arm of a user, by hash."""
    return ARMS[_hash("arm", user_id) % 2]


def half_of(user_id: str) -> int:
    """Returns the half of an arm that a user is in (0 or 1), for the A/A comparison."""
    return _hash("half", user_id) % 2


def compare_lists(experiment: Experiment, team: RankingTeam) -> dict[str, Any]:
    """Judges the lists of the aligned model against those of the online system, for all requests of the first day.

    Returns:
        Of `generated`, and of `ranked` (what the ranking team's model with our features makes of all that is recalled):
        verdicts on `lists` and on `pois` of equal rank, (user, verdict) each. Also `requests` and `mean_value`.
    """
    spark, city, content = _session(experiment), experiment.settings.city, experiment.content
    requests = requests_of(spark, city, experiment.ab_day(1))
    morning = open_morning(experiment, team, requests, experiment.ab_day(1))
    top = content["top"]
    recalled = morning.nearest_and_own(content["num_nearest"])
    generated = morning.generated(team.bundle, content["num_generated"])
    theirs = team.order("base", morning, recalled, top)
    systems = {
        "generated": [rows[:top] for rows in generated],
        "ranked": team.order("both", morning, _union(recalled, generated), top),
    }
    all_lists = [_as_table(morning, lists) for lists in (theirs, *systems.values())]
    every = pa.concat_tables(all_lists).group_by(["request_id", "poi_id"]).aggregate([("position", "min")])
    every = every.rename_columns(["request_id", "poi_id", "position"])
    valued = outcomes(requests, every, city=city, conversions=content["conversions"])
    table = valued.select("request_id", "poi_id", "value").toArrow()
    keys = zip(table["request_id"].to_pylist(), table["poi_id"].to_pylist(), strict=True)
    values = dict(zip(keys, table["value"].to_pylist(), strict=True))
    found: dict[str, Any] = {
        "requests": morning.samples.num_rows,
        "mean_value": {"online": _mean(all_lists[0], values)},
    }
    for (name, own), shown in zip(systems.items(), all_lists[1:], strict=True):
        pairs = _pairs(morning, own, theirs)
        users = {pair.request_id: pair.user_id for pair in pairs}
        lists, ranks = judge_by_values(pairs, values, content["margin"])
        found[name] = {
            "lists": [(users[request], verdict) for request, verdict in lists.items()],
            "pois": ranks,
        }
        found["mean_value"][name] = _mean(shown, values)
    return found


def live_day(experiment: Experiment, team: RankingTeam, number: int) -> None:
    """Lives one day of the A/B test: answers its requests, logs what came of them, and runs the night."""
    day = experiment.ab_day(number)
    spark, city, content = _session(experiment), experiment.settings.city, experiment.content
    requests = requests_of(spark, city, day)
    morning = open_morning(experiment, team, requests, day)
    arms = np.array([arm_of(user) for user in morning.samples["user_id"].to_pylist()])
    parts = [_answer(team, morning.take(np.flatnonzero(arms == arm)), arm, content) for arm in ARMS]
    drawn = outcomes(
        requests, pa.concat_tables(parts), city=city, conversions=content["conversions"]
    ).toArrow()
    drawn = drawn.sort_by([("request_id", "ascending"), ("position", "ascending")])
    experiment.log_file(day, "x").parent.mkdir(exist_ok=True)
    pq.write_table(drawn, experiment.log_file(day, "outcomes"))
    pq.write_table(visits_after_clicks(drawn), experiment.log_file(day, "visits"))
    pq.write_table(drawn.select(IMPRESSION_NAMES), experiment.log_file(day, "impressions"))
    experiment.night(day)


def read_outcomes(experiment: Experiment, number: int) -> pa.Table:
    """Reads what came of a day of the A/B test, with `arm`, `half` and `day` of every impression."""
    day = experiment.ab_day(number)
    shown = pq.read_table(experiment.log_file(day, "outcomes"))
    users = shown["user_id"].to_pylist()
    columns: dict[str, Sequence[object]] = {
        "arm": [arm_of(user) for user in users],
        "half": [half_of(user) for user in users],
        "day": [number] * len(users),
    }
    for name, values in columns.items():
        shown = shown.append_column(name, pa.array(values))
    return shown


def lived_days(experiment: Experiment) -> int:
    """Returns how many days of the A/B test are over, nights included."""
    path = experiment.folder / "lived.json"
    return int(json.loads(path.read_text())["days"]) if path.exists() else 0


def note_lived(experiment: Experiment, days: int) -> None:
    """Notes that a day is over."""
    (experiment.folder / "lived.json").write_text(json.dumps({"days": days}))


def _answer(team: RankingTeam, morning: Morning, arm: str, content: Mapping[str, Any]) -> pa.Table:
    recalled, top = morning.nearest_and_own(content["num_nearest"]), content["top"]
    if arm == "A":
        return _as_table(morning, team.order("base", morning, recalled, top))
    generated = morning.generated(team.bundle, content["num_generated"])
    return _as_table(morning, team.order("both", morning, _union(recalled, generated), top))


def _union(one: Lists, other: Lists) -> Lists:
    return [np.union1d(left, right) for left, right in zip(one, other, strict=True)]


def _as_table(morning: Morning, lists: Sequence[IntArray]) -> pa.Table:
    lengths = [len(own) for own in lists]
    rows = np.concatenate(lists)
    ids: NDArray[np.object_] = morning.samples["request_id"].to_numpy(zero_copy_only=False)
    positions = np.concatenate([np.arange(1, length + 1) for length in lengths]).astype(np.int32)
    return pa.table(
        {
            "request_id": pa.array(np.repeat(ids, lengths), pa.string()),
            "poi_id": pa.array(morning.catalogue.poi_ids[rows], pa.string()),
            "position": pa.array(positions),
        }
    )


def _pairs(morning: Morning, ours: Lists, theirs: Lists) -> list[Pair]:
    ids, users = (morning.samples[name].to_pylist() for name in ("request_id", "user_id"))
    poi_ids = morning.catalogue.poi_ids
    return [
        Pair(request, user, tuple(poi_ids[own]), tuple(poi_ids[other]))
        for request, user, own, other in zip(ids, users, ours, theirs, strict=True)
        if len(own) and len(other)
    ]


def _mean(lists: pa.Table, values: dict[tuple[str, str], float]) -> float:
    keys = zip(lists["request_id"].to_pylist(), lists["poi_id"].to_pylist(), strict=True)
    return float(np.mean([values[key] for key in keys]))


def _session(experiment: Experiment) -> SparkSession:
    return open_session(experiment.settings, f"online {experiment.seed}")


def _hash(what: str, user_id: str) -> int:
    return hashlib.sha256(f"{what}/{user_id}".encode()).digest()[0]
