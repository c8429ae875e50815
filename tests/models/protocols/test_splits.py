"""Public protocols: the rows they make of a tiny check-in folder, and of the real one where it is there."""

from pathlib import Path

import pandas as pd
import pytest

from conf.errors import CorruptInputError, MissingInputError
from models.evaluation.baselines import count_training, score_kernel, score_popularity, score_visits
from models.evaluation.metrics import digest_rows, exact_mean, hit_values, rank_targets, reciprocal_values
from models.protocols.splits import PROTOCOLS, build_rows
from tests.checkin_data import DATA, needs_data


def _folder(tmp_path: Path, rows: list[tuple[str, str, int]]) -> Path:
    """Writes check-ins given as (user, POI, hour)."""
    frame = pd.DataFrame(rows, columns=["user_id", "poi_id", "hour"])
    frame["utc_time"] = pd.Timestamp("2012-06-01", tz="UTC") + pd.to_timedelta(frame.pop("hour"), unit="h")
    frame.assign(tz_offset_min=-240).to_parquet(tmp_path / "checkins.parquet")
    return tmp_path


def test_rows_are_split_by_time_and_scored_targets_are_known_from_training(tmp_path):
    rows = [
        ("u1", "p1", 0),
        ("u1", "p2", 1),
        ("u1", "p1", 2),
        ("u1", "p2", 3),
        ("u1", "p1", 4),
        ("u1", "p2", 5),
        ("u1", "p1", 6),
        ("u1", "p2", 7),
        ("u1", "p1", 8),
        ("u1", "p2", 9),
    ]
    built = build_rows(PROTOCOLS["calgary"], _folder(tmp_path, rows))
    assert built.num_rows == {"train": 8, "val": 1, "test": 1}
    assert built.poi_ids == ["p1", "p2"]
    assert built.requests["test"].row_ids.tolist() == [f"u1|{1338508800 + 9 * 3600}|p2"]


def test_history_is_strictly_earlier_and_reaches_into_validation(tmp_path):
    rows = [("u1", f"p{hour % 2}", hour) for hour in range(9)] + [("u1", "p1", 9), ("u1", "p0", 9)]
    built = build_rows(PROTOCOLS["calgary"], _folder(tmp_path, rows))
    last = built.requests["test"].take(slice(-1, None))
    assert last.stops.tolist() == [9]  # of 10 rows before it one has its very second


def test_collapsed_repeats_and_short_trajectories_are_left_out(tmp_path):
    rows = [("u1", "p1", 0), ("u1", "p1", 1), ("u1", "p2", 2), ("u2", "p1", 0)]
    built = build_rows(PROTOCOLS["calgary"], _folder(tmp_path, rows))
    assert sum(built.num_rows.values()) == 2  # the repeat collapses, u2's trajectory has one check-in


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"checkins\.parquet"):
        build_rows(PROTOCOLS["calgary"], tmp_path)


def test_a_corrupt_file_is_named(tmp_path):
    (tmp_path / "checkins.parquet").write_bytes(b"not parquet")
    with pytest.raises(CorruptInputError, match=r"checkins\.parquet"):
        build_rows(PROTOCOLS["calgary"], tmp_path)


@needs_data
@pytest.mark.parametrize(
    ("protocol", "folder", "num_rows", "kernel_acc1", "kernel_mrr"),
    [
        ("nyc-table6", "fsq_nyc", 1351, 0.3620, 0.4823),
        ("nyc-table6-all", "fsq_nyc", 7685, 0.3340, 0.4710),
        ("nyc-lim-all", "fsq_nyc", 7924, 0.3438, 0.4752),
        ("charlotte", "fsq_charlotte", 381, 0.1916, 0.2588),
        ("calgary", "fsq_calgary", 353, 0.3768, 0.4983),
        ("gowalla-nyc", "gowalla_nyc", 2902, 0.1323, 0.1881),
    ],
)
def test_published_rows_and_baselines_are_reproduced(protocol, folder, num_rows, kernel_acc1, kernel_mrr):
    built = build_rows(PROTOCOLS[protocol], DATA / folder)
    requests = built.requests["test"]
    assert len(requests) == num_rows
    assert digest_rows(requests.row_ids) == PROTOCOLS[protocol].digest
    counts = count_training(built.training_visits, num_pois=len(built.poi_ids))
    ranks = rank_targets(score_kernel(requests, counts), requests.targets)
    assert exact_mean(hit_values(ranks, 1)) == pytest.approx(kernel_acc1, abs=0.0015)
    assert exact_mean(reciprocal_values(ranks)) == pytest.approx(kernel_mrr, abs=0.001)


@needs_data
def test_popularity_and_visit_counter_reproduce_table6_to_the_last_digit():
    built = build_rows(PROTOCOLS["nyc-table6"], DATA / "fsq_nyc")
    requests = built.requests["test"]
    counts = count_training(built.training_visits, num_pois=len(built.poi_ids))
    expected = {score_popularity: (0.0096, 0.1170, 0.0211), score_visits: (0.2457, 0.8179, 0.3925)}
    for score, figures in expected.items():
        ranks = rank_targets(score(requests, counts), requests.targets)
        found = (*(exact_mean(hit_values(ranks, k)) for k in (1, 100)), exact_mean(reciprocal_values(ranks)))
        assert [round(value, 4) for value in found] == list(figures)
