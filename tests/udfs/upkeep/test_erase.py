"""Erasure; the bench `make bench-erasure` searches a whole city, these are the parts that it does not reach."""

import importlib
import json
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from conf.cli import main
from conf.errors import CorruptInputError, ErasureUnfinishedError
from conf.settings import Settings
from conf.tables import TABLES
from etl.__main__ import JOBS as ETL_JOBS
from etl.delta.erasure import as_frame, delete_users, find_users, user_tables
from etl.delta.erasure_plan import Plan, save_plan
from tests.udfs.feature_city import DAY_1, DAY_2, FeatureCity
from udfs.releases.reader import read_release
from udfs.upkeep.erase_files import erase_files, find_files

NO_USERS = {"raw_pois", "raw_poi_images", "poi_image_vectors", "blocks",
            "categories", "poi_index", "poi_vectors", "poi_embeddings", "table_statistics",
            "releases", "withdrawals", "erased_users", "backfills", "backfilled_poi_embeddings"}  # fmt: skip


def test_every_table_either_is_searched_or_is_known_to_hold_no_user() -> None:
    assert set(user_tables()) | NO_USERS == set(TABLES)
    assert not set(user_tables()) & NO_USERS


def test_texts_are_blackened_and_explanations_removed(tmp_path: Path) -> None:
    audit, page = tmp_path / "audit.json", tmp_path / "page.html"
    audit.write_text('{"failures": ["1 key twice, for example {\\"user_id\\":\\"47\\"}"], "rows": 47}')
    page.write_text("<b>user-12</b> user-123 user_id&quot;:&quot;47&quot; took 47 s")
    (tmp_path / "2026-03-01-47-1700000000000.png").write_bytes(b"picture")
    (tmp_path / "2026-03-47-48-1700000000000.png").write_bytes(b"another user's")
    users = ["user-12", "47"]

    erase_files(find_files([tmp_path], users), users)

    assert (
        audit.read_text()
        == '{"failures": ["1 key twice, for example {\\"user_id\\":\\"[erased]\\"}"], "rows": 47}'
    )
    assert page.read_text() == "<b>[erased]</b> user-123 user_id&quot;:&quot;[erased]&quot; took 47 s"
    assert [path.name for path in tmp_path.glob("*.png")] == ["2026-03-47-48-1700000000000.png"]
    assert not len(find_files([tmp_path], users))


def test_an_id_that_is_a_word_of_a_model_leaves_the_model_alone(tmp_path: Path) -> None:
    bundle = tmp_path / "training" / "2026-03-01" / "bundle"
    bundle.mkdir(parents=True)
    contents = {
        "bundle.json": b'{"stages": ["pretrain"]}', "model.safetensors": b'{"stages":1}', "MLmodel": b"stages: 1",
    }  # fmt: skip
    for name, content in contents.items():
        (bundle / name).write_bytes(content)
    audit = tmp_path / "audit.json"
    audit.write_text('{"failures": ["stages twice"]}')

    erase_files(find_files([tmp_path], ["stages"]), ["stages"])

    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == contents
    assert audit.read_text() == '{"failures": ["[erased] twice"]}'


def test_samples_that_a_killed_training_has_left_are_removed(tmp_path: Path) -> None:
    stage = tmp_path / "training" / "2026-03-01" / "pretrain"
    left = [stage / "scratch" / "train" / "phase0-shard1.arrow", stage / "not-finite-step-7.arrow"]
    left[0].parent.mkdir(parents=True)
    for path in left:
        path.write_bytes(b"\0u1u2u3\0")  # ids lie side by side

    found = find_files([tmp_path], ["u2"])
    assert len(found) == 2
    erase_files(found, ["u2"])

    assert not any(path.exists() for path in left)


def test_an_audit_names_users_so_that_they_are_found(tmp_path: Path) -> None:
    audit = tmp_path / "audit.json"
    audit.write_text("user 10126086: its vector has cosine 0.1, 10126086 rows")

    erase_files(find_files([tmp_path], ["10126086"]), ["10126086"])

    assert audit.read_text() == "user [erased]: its vector has cosine 0.1, 10126086 rows"


@pytest.mark.spark
def test_a_damaged_record_of_a_training_does_not_stop_an_erasure(published_twice: FeatureCity) -> None:
    city = published_twice
    record = city.artifacts / "training" / "2025-11-02" / "training.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")

    done = city.run("erase", DAY_2, user=["u1"], users=None)

    assert done.notes["after"] == {"tables": 0, "files": 0}
    assert done.notes["trainings"] == ["2025-11-02"]
    assert (record.parent / "erasures.json").is_file()


@pytest.mark.spark
def test_a_file_that_a_killed_write_has_left_is_deleted_and_a_damaged_table_is_told(
    published_twice: FeatureCity,
) -> None:
    city = published_twice
    table = Path(city.root) / "cleaned_actions"
    whole = next(table.rglob("*.parquet"))
    half = whole.with_name("part-00000-half.snappy.parquet")
    half.write_bytes(whole.read_bytes()[:200])

    done = city.run("erase", DAY_2, user=["u1"], users=None)

    assert done.notes["before"]["tables"]["cleaned_actions"]["leftovers"] == 1
    assert done.notes["after"] == {"tables": 0, "files": 0}
    assert not half.exists()

    # Not `file_uris`, which encodes the odd name of the root.
    paths = pa.table(DeltaTable(str(table)).get_add_actions()).column("path").to_pylist()
    needed = table / unquote(paths[0])
    needed.write_bytes(needed.read_bytes()[:200])
    with pytest.raises(CorruptInputError, match="latest version"):
        city.run("erase", DAY_2, user=["u2"], users=None)


def test_nothing_is_delivered_while_an_erasure_is_unfinished(tmp_path: Path, capsys) -> None:
    save_plan(str(tmp_path), Plan(["digest"], "erase-1"))

    words = ["night", "--source", "synthetic", "--day", "2026-01-20", f"--set=storage.artifacts={tmp_path}"]
    code = main("etl", "", ETL_JOBS, words)

    assert code == 3
    assert "ErasureUnfinishedError" in capsys.readouterr().out


@pytest.mark.spark
def test_an_erased_user_is_gone_and_a_second_run_changes_nothing(published_twice: FeatureCity) -> None:
    city = published_twice
    options = {"user": ["u1"], "users": None}

    done = city.run("erase", DAY_2, **options)

    users = read_release(city.spark, city.root, "user_embeddings").collect()
    assert {row["user_id"] for row in users} == {"u2", "u3"}
    assert done.notes["withdrawn"] == [1, 2]
    assert city.run("erase", DAY_2, **options).tables == {}
    assert [row["day"] for row in city.read("releases")[2:]] == [DAY_1, DAY_2]  # 1 and 2 again, without u1


class KilledError(BaseException):
    """Ends a process where it stands."""


@pytest.mark.operations("5")
@pytest.mark.spark
@pytest.mark.parametrize(
    ("step", "call"),
    [("etl.delta.retention.restart_history", 3), ("etl.delta.retention.vacuum_table", 2)],
)
def test_a_killed_erasure_is_ended_by_the_same_command(
    published_twice: FeatureCity, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    city = published_twice
    city.run("rollback", DAY_2, run_id="back")  # the current release shows versions that are not the latest
    before = vectors(city)
    options = {"user": ["u1"], "users": None}
    module, _, name = step.rpartition(".")
    real, calls = getattr(importlib.import_module(module), name), iter(range(1, call))

    def dies(*words: object, **named: object) -> object:
        if next(calls, None) is None:
            raise KilledError
        return real(*words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(step, dies)
        try:
            city.run("erase", DAY_2, run_id="first", **options)
        except KilledError:
            with pytest.raises(ErasureUnfinishedError, match="the erasure first of 1 users"):
                city.run("publish", DAY_2, run_id="meanwhile")

    done = city.run("erase", DAY_2, run_id="second", **options)

    assert vectors(city) == {user: vector for user, vector in before.items() if user != "u1"}
    assert done.notes["after"] == {"tables": 0, "files": 0}
    record = json.loads((city.artifacts / "erasures" / "first.json").read_text())
    assert record["is_complete"]
    assert record["before"]["tables"]["user_embeddings"]["rows"] == 1
    assert list(city.artifacts.glob("erasures/unfinished*")) == []


def vectors(city: FeatureCity) -> dict[str, list[float]]:
    rows = read_release(None, city.root, "user_embeddings").to_pylist()
    return {row["user_id"]: row["embedding"] for row in rows}


ODD_IDS = ("ann", "Ann", "++x++", "a.b", "ü", "7", "x" * 60, r"a\Eb", 'say "so"', "a|b")


@pytest.mark.operations("3")
@pytest.mark.spark
def test_an_id_is_taken_letter_by_letter(made: Settings, spark: object) -> None:
    city, root = FeatureCity(spark, made, Path()), made.storage.root
    rows = [
        {
            "action_id": f"{spelling}{number}",
            "user_id": written,
            "poi_id": "p",
            "record": record,
            "is_simulated": False,
        }
        for number, user in enumerate(ODD_IDS)
        for spelling, written, record in (
            ("as it is", user, f"<{user}>"),
            ("padded", f" {user}\u00a0", "padded"),
            ("damaged", f"\ufffd{user}", "damaged"),
            ("torn", None, json.dumps({"user": user, "time": "torn"})),
        )
    ]
    city.deliver(DAY_1, raw_actions=rows)

    found = {user: find_users(spark, root, "raw_actions", as_frame(spark, [user])).rows for user in ODD_IDS}
    delete_users(spark, root, "raw_actions", as_frame(spark, ODD_IDS[1:]))

    assert found == dict.fromkeys(ODD_IDS, 4)
    left = [row["user_id"] for row in city.read("raw_actions")]
    assert sorted(left, key=str) == [" ann\u00a0", None, "ann", "\ufffdann"]


@pytest.mark.spark
def test_a_number_is_found_as_records_of_a_float_have_told_it(made: Settings, spark: object) -> None:
    city, root = FeatureCity(spark, made, Path()), made.storage.root
    records = ['{"user_id":1.0126086E7}', '{"user_id":"10126086"}', '{"user_id":1.01260861E8}']
    rows = [
        {"action_id": str(number), "user_id": None, "record": record, "is_simulated": False}
        for number, record in enumerate(records)
    ]
    city.deliver(DAY_1, raw_actions=rows)

    assert find_users(spark, root, "raw_actions", as_frame(spark, ["10126086"])).rows == 2


@pytest.mark.spark
@pytest.mark.operations("6")
def test_releases_of_two_models_are_carried_from_their_own_versions(
    published_twice: FeatureCity, other_bundle: Path
) -> None:
    """Another model makes the second day again, is published and taken back; then a user is erased."""
    city = published_twice
    shown = {day: vectors(city) for day in ("second",)}
    city.run("features", DAY_2, run_id="other", model=str(other_bundle))
    city.run("audit", DAY_2, run_id="other", model=str(other_bundle))
    city.run("publish", DAY_2, run_id="other")
    assert vectors(city) != shown["second"]
    city.run("rollback", DAY_2, run_id="back")
    assert vectors(city) == shown["second"]

    city.run("erase", DAY_2, run_id="erase", user=["u1"], users=None)

    assert vectors(city) == {user: vector for user, vector in shown["second"].items() if user != "u1"}


@pytest.mark.operations("4")
@pytest.mark.spark
def test_a_list_with_a_byte_order_mark_and_strangers(
    published_twice: FeatureCity, tmp_path: Path, caplog
) -> None:
    city = published_twice
    asked = tmp_path / "users.txt"
    asked.write_bytes("\ufeffu1\r\n\u00a0u2 \r\n\r\nnobody\r\n".encode())

    done = city.run("erase", DAY_2, user=[], users=asked)

    assert set(vectors(city)) == {"u3"}
    assert done.notes["not_found"] == 1
    assert "no table holds user 'nobody'" in caplog.text
    assert "u1" not in json.dumps(done.notes)
