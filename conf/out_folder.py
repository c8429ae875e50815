"""Output folders for people: a job replaces the whole content, and only files that one of our jobs wrote.

`.spacetime-gr.json` in the folder lists the files that a job wrote. Any other file there belongs to somebody
else, and then nothing is written at all.
"""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from conf.errors import FolderInUseError, SettingsError
from conf.files import write_whole

MANIFEST, LOCK, UNFINISHED = ".spacetime-gr.json", ".spacetime-gr.lock", ".unfinished-"
OWN = {MANIFEST, f"{MANIFEST}.tmp", LOCK}
DRAFT = f".{MANIFEST}."
"""What the list of files begins with while it is written."""


def check_out_folder(out: Path) -> None:
    """Checks that a job may fill the folder: it is absent, empty, or holds only files that a job wrote.

    Raises:
        SettingsError: it holds anything else, is a file, or its list of files cannot be read.
    """
    if out.exists() and not out.is_dir():
        raise _refusal(f"{out} is a file")
    unknown = sorted(name for name in _found(out) - _listed(out) - OWN if not name.startswith(DRAFT))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise _refusal(
            f"{out} holds {unknown[0]}{more}, which no job wrote there; give a new folder, or move these files away"
        )


@contextlib.contextmanager
def fill_out_folder(out: Path, job: str) -> Iterator[Path]:
    """Yields a working folder; when the block ends, its content replaces the files that a job wrote to `out` before.

    The working folder lies in `out`, so that nothing outside is touched and `out` may be a mount. If the block fails,
    `out` is unchanged; the next run removes the remains of a killed one.

    Args:
        out: the folder.
        job: name recorded in the list of files.

    Raises:
        SettingsError: as `check_out_folder`.
        FolderInUseError: another run is filling the folder at this moment.
    """
    check_out_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        check_out_folder(out)
        _remove(out, {path for path in _listed(out) if path.startswith(UNFINISHED)})
        _prune(out, {f"{path.name}/any" for path in out.glob(f"{UNFINISHED}*")})
        before, fresh = _listed(out), set[str]()
        work = out / f"{UNFINISHED}{uuid.uuid4().hex}"
        # Listed before it exists: a killed run leaves no unknown files.
        _list(out, job, before, work.name)
        work.mkdir()
        try:
            yield work
            check_out_folder(out)
            fresh = _found(work)
            _list(out, job, before | fresh, work.name)
            _remove(out, before)
            for entry in sorted(work.iterdir()):
                _move(entry, out / entry.name)
            work.rmdir()
            _list(out, job, fresh)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            _prune(out, before | fresh)
            _list(out, job, (before | fresh) & _found(out))
            raise


def _found(folder: Path, below: str = "") -> set[str]:
    """Returns the files below a folder as relative paths; a link counts as a file, an empty folder as nothing."""
    names: set[str] = set()
    if not folder.is_dir():
        return names
    for entry in os.scandir(folder):
        path = f"{below}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            names |= _found(Path(entry.path), f"{path}/")
        else:
            names.add(path)
    return names


def _listed(out: Path) -> set[str]:
    """Returns the files in the folder's list, and all files in the working folder that the list names."""
    path = out / MANIFEST
    if not path.is_file():
        return set()
    try:
        content = json.loads(path.read_text())
        files, unfinished = set(content["files"]), content.get("unfinished")
    except (ValueError, KeyError, TypeError) as error:
        raise _refusal(f"the list of files {path} cannot be read ({error}); give a new folder") from error
    if unfinished and unfinished.startswith(UNFINISHED):
        files |= _found(out / unfinished, f"{unfinished}/")
    return files


def _list(out: Path, job: str, files: set[str], unfinished: str | None = None) -> None:
    content = {"job": job, "files": sorted(files), "unfinished": unfinished}
    write_whole(out / MANIFEST, json.dumps(content, indent=1) + "\n")


def _remove(out: Path, files: set[str]) -> None:
    """Removes listed files, and the folders that this leaves empty."""
    for name in files & _found(out):
        (out / name).unlink()
    _prune(out, files)


def _prune(out: Path, files: set[str]) -> None:
    """Removes the folders of listed files that are empty."""
    folders = {parent for name in files for parent in Path(name).parents} - {Path()}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):  # not empty, or not there
            (out / folder).rmdir()


def _move(entry: Path, target: Path) -> None:
    """Renames; a folder that still exists, because it got a file meanwhile, receives the new files in addition."""
    if not target.exists():
        entry.rename(target)
    elif entry.is_dir() and target.is_dir():
        for child in sorted(entry.iterdir()):
            _move(child, target / child.name)
        entry.rmdir()
    else:
        raise _refusal(f"{target} was put there while the job ran; move it away")


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    with (out / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(folder=str(out)) from error
        yield


def _refusal(problem: str) -> SettingsError:
    return SettingsError(where="the command line", key="--out", problem=problem)
