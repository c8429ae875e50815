"""What a release or a training pins stays readable bit for bit; what nothing pins goes."""

import json
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from conf.errors import CorruptInputError, ErasureUnfinishedError, ReleaseWithdrawnError
from etl.delta.erasure_plan import Plan, save_plan
from tests.udfs.feature_city import DAY_2, FeatureCity
from udfs.releases.reader import read_release

pytestmark = pytest.mark.spark
NOW = {"hours": 0.0, "keep_releases": None}


def files_of(city: FeatureCity, version: int | None = None) -> set[str]:
    """The files of a version of `user_embeddings`, or those that lie there."""
    folder = Path(city.root) / "user_embeddings"
    if version is None:
        return {str(path) for path in folder.rglob("*.parquet") if "_delta_log" not in path.parts}
    files = pa.table(DeltaTable(str(folder), version=version).get_add_actions())["path"].to_pylist()
    return {str(folder / unquote(file)) for file in files}


def test_what_is_pinned_stays_and_the_rest_goes(published_twice: FeatureCity) -> None:
    city = published_twice
    city.run("user_embeddings", DAY_2, run_id="again")  # version 3: pinned by a training
    city.run("user_embeddings", DAY_2, run_id="once more")  # version 4: pinned by nobody
    city.run("user_embeddings", DAY_2, run_id="at last")  # version 5: the latest
    training = city.artifacts / "training" / "day" / "training.json"
    training.parent.mkdir(parents=True)
    training.write_text(json.dumps({"pins": {"user_embeddings": {"version": 3}}}))
    pinned = {version: files_of(city, version) for version in (1, 2, 3, 5)}
    unpinned = files_of(city, 4) - set().union(*pinned.values())
    content = {path: Path(path).read_bytes() for files in pinned.values() for path in files}
    shown = [read_release(None, city.root, "user_embeddings", release=number) for number in (1, 2)]

    city.run("vacuum", DAY_2, **NOW)

    assert unpinned
    assert files_of(city) == set(content)
    assert {path: Path(path).read_bytes() for path in content} == content
    assert [read_release(None, city.root, "user_embeddings", release=number) for number in (1, 2)] == shown


def test_a_release_that_is_not_kept_is_withdrawn_and_says_why(published_twice: FeatureCity) -> None:
    city = published_twice

    assert city.run("vacuum", DAY_2, hours=0.0, keep_releases=1).notes["withdrawn"] == [1]

    with pytest.raises(ReleaseWithdrawnError, match="only the last 1 releases are kept"):
        read_release(None, city.root, "user_embeddings", release=1)
    assert read_release(None, city.root, "user_embeddings").num_rows == 3


def test_nothing_is_withdrawn_if_the_pins_of_a_training_are_not_known(published_twice: FeatureCity) -> None:
    city = published_twice
    record = city.artifacts / "training" / "2025-11-02" / "training.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")

    with pytest.raises(CorruptInputError, match="the record of a training"):
        city.run("vacuum", DAY_2, hours=0.0, keep_releases=1)

    assert read_release(None, city.root, "user_embeddings", release=1).num_rows > 0


def test_an_erasure_that_has_not_ended_keeps_what_it_would_carry_over(published_twice: FeatureCity) -> None:
    city = published_twice
    save_plan(str(city.artifacts), Plan(["digest"], "erase-1"))
    before = files_of(city)

    with pytest.raises(ErasureUnfinishedError):
        city.run("vacuum", DAY_2, hours=0.0, keep_releases=1)
    assert files_of(city) == before
