"""Folders given by `--out`: only files that a job wrote are replaced, and a failure changes nothing."""

import contextlib
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf import out_folder
from conf.errors import FolderInUseError, SettingsError
from conf.out_folder import LOCK, MANIFEST, fill_out_folder

NAMES = st.sampled_from(["a", "b c", "#", "%20", "ü", "release.json", "candidates", ".hidden", "[x]"])
FILES = st.sets(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=6)


def content_of(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): path.read_text()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, LOCK)
    }


def write(folder: Path, files: set[str], text: str) -> dict[str, str]:
    """Writes those files of a set that can lie there together, and returns what was written."""
    written = {}
    for name in sorted(files):
        path = folder / name
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            written[name] = text
    return written


@pytest.mark.operations("7")
@given(first=FILES, second=FILES, foreign=FILES)
def test_an_answer_replaces_an_earlier_one_and_nothing_else(tmp_path_factory, first, second, foreign):
    out = tmp_path_factory.mktemp("base") / "out"
    with fill_out_folder(out, "test") as work:
        write(work, first, "first")
    with fill_out_folder(out, "test") as work:
        shown = write(work, second, "second")
    assert content_of(out) == shown

    added = write(out, foreign, "foreign")
    everything = content_of(out)
    if added:
        with pytest.raises(SettingsError, match="no job wrote"), fill_out_folder(out, "test") as work:
            write(work, first, "third")
    assert content_of(out) == everything


@pytest.mark.operations("7")
@pytest.mark.parametrize("name", ["candidates/photo.jpg", "release.json", "old/link"])
def test_a_folder_of_somebody_is_refused_before_anything_is_written(tmp_path, name):
    write(tmp_path, {name}, "mine")

    with pytest.raises(SettingsError, match="no job wrote"), fill_out_folder(tmp_path, "test"):
        pass

    assert [str(found.relative_to(tmp_path)) for found in tmp_path.iterdir()] == [name.split("/")[0]]


def test_a_link_is_never_followed(tmp_path):
    out, precious = tmp_path / "out", tmp_path / "precious"
    with fill_out_folder(out, "test") as work:
        write(work, {"candidates/part"}, "old")
    write(precious, {"part"}, "mine")
    (out / "candidates" / "part").unlink()
    (out / "candidates").rmdir()
    (out / "candidates").symlink_to(precious)

    with pytest.raises(SettingsError, match="no job wrote"), fill_out_folder(out, "test"):
        pass

    assert content_of(precious) == {"part": "mine"}


def test_a_failed_job_leaves_the_folder_as_it_was(tmp_path):
    with fill_out_folder(tmp_path / "out", "test") as work:
        write(work, {"a", "b/c"}, "old")

    def fail() -> None:
        with fill_out_folder(tmp_path / "out", "test") as work:
            write(work, {"a"}, "new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert content_of(tmp_path / "out") == {"a": "old", "b/c": "old"}


class KilledError(BaseException):
    """Ends a process where it stands."""


@pytest.mark.parametrize("step", range(12))
def test_a_killed_job_can_be_repeated(tmp_path, monkeypatch, step):
    out = tmp_path / "out"
    with fill_out_folder(out, "test") as work:
        write(work, {"a", "b/c", "b/d"}, "old")
    left = iter(range(step))

    def may_die(call):
        def wrapped(*args, **kwargs):
            if next(left, None) is None:
                raise KilledError
            return call(*args, **kwargs)

        return wrapped

    # A kill runs no handler: after it, nothing of the job is called any more.
    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir", "replace"):
            patch.setattr(Path, name, may_die(getattr(Path, name)))
        patch.setattr(out_folder.shutil, "rmtree", lambda *_, **__: None)
        with contextlib.suppress(KilledError), fill_out_folder(out, "test") as work:
            write(work, {"a", "e/f"}, "new")

    with fill_out_folder(out, "test") as work:
        write(work, {"a", "g"}, "newest")
    assert content_of(out) == {"a": "newest", "g": "newest"}
    assert sorted(os.listdir(out)) == sorted([MANIFEST, LOCK, "a", "g"])


def test_two_runs_at_once_do_not_mix(tmp_path):
    with (tmp_path / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="another run"), fill_out_folder(tmp_path, "test"):
            pass
