"""Files that jobs leave for other jobs are whole, or named as damaged."""

import os
from pathlib import Path

import pytest

from conf.errors import CorruptInputError
from conf.files import read_json, write_json


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"

    write_json(path, {"x": [1, None, "ü"]})

    assert read_json(path, expected="a test") == {"x": [1, None, "ü"]}
    assert [found.name for found in path.parent.iterdir()] == ["b.json"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.json"
    write_json(path, {"x": 1})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"x": 2})

    assert read_json(path, expected="a test") == {"x": 1}


@pytest.mark.parametrize("text", ['{"x": 1', "", "[1]", "null"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)

    with pytest.raises(CorruptInputError, match=r"b\.json cannot be read as the record of a training"):
        read_json(path, expected="the record of a training")
