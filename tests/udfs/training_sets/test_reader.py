"""Training sets hold what was known at each request: equal to an oracle that goes through plain rows one by one."""

from collections import Counter
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import MissingBackfillError, MissingInputError, MixedModelsError, NoReleaseError, SchemaError
from tests.udfs.training_sets.world import CANDIDATE, NEW, OLD, Answer, ask_oracle, build_world, make_shown
from udfs.training_sets.reader import read_training_set
from udfs.training_sets.views import FEATURE_COLUMNS

CLOCKS = [("published", ""), ("day", ""), ("day", CANDIDATE)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("team #1, süd?") / "warehouse")


def answer_of(row):
    found = {name: row[name] for name in FEATURE_COLUMNS if name != "score"}
    for name in ("user_embedding", "poi_embedding"):
        found[name] = None if found[name] is None else tuple(found[name])
    return Answer(**found)


@pytest.mark.parametrize(("clock", "model"), CLOCKS)
def test_every_row_has_the_features_that_the_oracle_finds(world, clock, model):
    shown = make_shown(world, 3_000)

    found = read_training_set(None, world.root, shown, clock=clock, model=model, allow_mixed=True)

    assert found.select(shown.column_names).equals(shown)
    answers = [answer_of(row) for row in found.to_pylist()]
    assert answers == [ask_oracle(world, row, clock, model) for row in shown.to_pylist()]
    kinds = Counter(answer.model_version for answer in answers)
    assert set(kinds) == ({None, OLD, NEW} if not model else {None, CANDIDATE})
    assert sum(answer.click_logit is not None for answer in answers) > (0 if clock == "day" else -1)


@pytest.mark.spark
@pytest.mark.parametrize(("clock", "model"), CLOCKS)
def test_spark_finds_the_same(spark, world, clock, model):
    shown = make_shown(world, 400)
    numbered = shown.append_column("row", pa.array(range(shown.num_rows)))
    frame = spark.createDataFrame(numbered.to_pandas().astype(object).where(lambda x: x.notna(), None),
                                  "request_id string, user_id string, poi_id string, request_ts_ms bigint, "
                                  "label bigint, row bigint")  # fmt: skip

    by_arrow = read_training_set(None, world.root, numbered, clock=clock, model=model, allow_mixed=True)
    by_spark = read_training_set(spark, world.root, frame, clock=clock, model=model, allow_mixed=True)

    rows = sorted((row.asDict() for row in by_spark.collect()), key=lambda row: row["row"])
    assert by_spark.columns == by_arrow.column_names
    assert rows == by_arrow.to_pylist()


def test_a_set_of_two_models_is_refused_and_one_of_one_model_is_not(world):
    shown = make_shown(world, 300)

    with pytest.raises(MixedModelsError, match=f"rows of {OLD}") as caught:
        read_training_set(None, world.root, shown, clock="day")
    assert set(caught.value.rows_by_model) == {OLD, NEW}

    early = shown.filter(
        pa.compute.less(shown["request_ts_ms"], int(date(2026, 1, 17).strftime("%s")) * 1000)
    )
    assert set(read_training_set(None, world.root, early, clock="day")["model_version"].to_pylist()) == {
        None,
        OLD,
    }


def test_files_timestamps_and_ids_of_other_kinds_are_read(world, tmp_path):
    shown = make_shown(world, 200)
    expected = read_training_set(None, world.root, shown, allow_mixed=True)
    padded = pa.array([None if user is None else f" {user}\t" for user in shown["user_id"].to_pylist()])
    times = shown["request_ts_ms"].cast(pa.timestamp("ms", "UTC"))
    other = shown.set_column(1, "user_id", padded).set_column(3, "request_ts_ms", times)
    pq.write_table(other, tmp_path / "shown.parquet")

    found = read_training_set(None, world.root, tmp_path / "shown.parquet", allow_mixed=True)

    assert found.to_pylist() == expected.to_pylist()


def test_what_cannot_be_answered_is_an_error_that_says_so(world, tmp_path):
    shown = make_shown(world, 5)
    with pytest.raises(MissingBackfillError, match="m/9 has no row"):
        read_training_set(None, world.root, shown, clock="day", model="m/9")
    with pytest.raises(ValueError, match="clock='day'"):
        read_training_set(None, world.root, shown, model=CANDIDATE)
    with pytest.raises(NoReleaseError):
        read_training_set(None, str(tmp_path), shown)
    with pytest.raises(MissingInputError, match="nowhere"):
        read_training_set(None, world.root, "nowhere.parquet")
    with pytest.raises(SchemaError, match="'user_id'"):
        read_training_set(None, world.root, shown.drop_columns(["user_id"]))
    with pytest.raises(SchemaError, match="'score'"):
        read_training_set(None, world.root, shown.append_column("score", shown["label"]))


def test_no_rows_in_are_no_rows_out(world):
    found = read_training_set(None, world.root, make_shown(world, 5).slice(0, 0))
    assert found.num_rows == 0
    assert found.column_names[-len(FEATURE_COLUMNS) :] == list(FEATURE_COLUMNS)
