"""Erasure; the bench `make bench-erasure` searches a whole city, these are the parts that it does not reach."""

from pathlib import Path

import pytest

from conf.tables import TABLES
from etl.erasure import user_tables
from tests.udfs.town import DAY_2, Town
from udfs.erase_files import erase_files, find_files
from udfs.read_release import read_release

NO_USERS = {"raw_pois", "blocks", "categories", "poi_index", "poi_vectors", "poi_embeddings", "table_statistics",
            "releases", "withdrawals"}  # fmt: skip


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


@pytest.mark.spark
def test_an_erased_user_is_gone_and_a_second_run_changes_nothing(published_twice: Town) -> None:
    town = published_twice
    options = {"user": ["u1"], "users": None}

    done = town.run("erase", DAY_2, **options)

    users = read_release(town.spark, town.root, "user_embeddings").collect()
    assert {row["user_id"] for row in users} == {"u2", "u3"}
    assert done.notes["withdrawn"] == [1, 2]
    assert town.run("erase", DAY_2, **options).tables == {}
    assert town.run("rollback", DAY_2).notes["release_id"] == 5  # releases 3 and 4 are 1 and 2 without u1
    assert {row["user_id"] for row in read_release(None, town.root, "user_embeddings").to_pylist()} == {
        "u2",
        "u3",
    }
