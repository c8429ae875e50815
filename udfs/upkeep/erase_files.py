"""Takes users out of the files beside the tables: audits, Data Docs, reports, explanations, run artefacts.

An explanation is of one user and is removed. In every other text (an audit that quotes a repeated key, a page of the
Data Docs) the id is replaced by `[erased]` and the rest stays. An id that could be any number or word (digits only, or
short) counts only where the text says that it is a user's.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conf.files import write_whole
from etl.delta.erasure import id_pattern

LOGGER = logging.getLogger(__name__)
ERASED = b"[erased]"


@dataclass(frozen=True)
class FoundFiles:
    """Files that tell of users.

    Attributes:
        explanations: files about one of the users.
        texts: files whose text names one.
        others: files of another kind that hold an id; nothing is known of their form.
    """

    explanations: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.explanations) + len(self.texts) + len(self.others)


def find_files(folders: Sequence[Path], users: Sequence[str]) -> FoundFiles:
    """Looks through all files of folders, byte for byte."""
    found, named, pattern = FoundFiles(), _file_pattern(users), id_pattern(users)
    for path in _files(folders):
        if named.fullmatch(path.name):
            found.explanations.append(path)
            continue
        content = path.read_bytes()
        if pattern and pattern.search(content):
            (found.others if b"\0" in content else found.texts).append(path)
    return found


def erase_files(found: FoundFiles, users: Sequence[str]) -> None:
    """Removes the explanations and blackens the texts; files of another kind are left, for people to look at."""
    pattern = id_pattern(users)
    for path in found.explanations:
        path.unlink()
    assert pattern is not None, "somebody is to be erased"
    for path in found.texts:
        write_whole(path, pattern.sub(_blacken, path.read_bytes()))
    LOGGER.info("%d explanations removed, %d texts blackened", len(found.explanations), len(found.texts))


def _blacken(found: re.Match[bytes]) -> bytes:
    return (found.groupdict().get("said") or b"") + ERASED


def _file_pattern(users: Sequence[str]) -> re.Pattern[str]:
    """Returns what matches the name of an explanation: day, user with letters for file names, time."""
    names = "|".join(re.escape(re.sub(r"[^\w.-]", "_", user)) for user in users)
    return re.compile(rf"\d{{4}}-\d\d-\d\d-(?:{names})-\d+\.\w+")


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in folder.rglob("*") if path.is_file())
