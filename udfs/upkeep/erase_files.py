"""Removes users from files outside the tables: audits, Data Docs, reports, explanations, run artefacts.

An explanation is about one user and is removed. So are samples that a training has left in Arrow files, where ids lie
side by side and cannot be found as words. In every other text (an audit that quotes a repeated key, a page of the
Data Docs) the id is replaced by `[erased]` and the rest stays. An ambiguous id (digits only, or short) counts only
where the text marks it as a user's. Files that a model is loaded by are left alone.
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
OF_MODELS = ("bundle.json", "config.json", "checksums.json", "probe.json", "training.json", "MLmodel")
"""Files that a model or a training is loaded by. They hold no user; an id that is one of their words stays there."""
OF_TRAINING = ("training/*/*/scratch*/**/*.arrow", "training/*/*/not-finite-step-*.arrow")
"""Samples that a training which was killed, or ended by a bad batch, has left in files."""


@dataclass(frozen=True)
class FoundFiles:
    """Files that hold users.

    Attributes:
        explanations: files about one of the users.
        samples: histories of users that a training has left, whoever they are.
        texts: text files that name one.
        others: binary files that hold an id; their format is unknown.
    """

    explanations: list[Path] = field(default_factory=list)
    samples: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.explanations) + len(self.samples) + len(self.texts) + len(self.others)


def find_files(folders: Sequence[Path], users: Sequence[str]) -> FoundFiles:
    """Searches the bytes of all files in the folders."""
    files, explanation_name, pattern = FoundFiles(), _file_pattern(users), id_pattern(users)
    files.samples.extend(
        path for folder in folders for place in OF_TRAINING for path in sorted(folder.glob(place))
    )
    for path in _files(folders):
        if path.name in OF_MODELS or path.suffix == ".safetensors" or path in files.samples:
            continue
        if explanation_name.fullmatch(path.name):
            files.explanations.append(path)
            continue
        content = path.read_bytes()
        if pattern and pattern.search(content):
            (files.others if b"\0" in content else files.texts).append(path)
    return files


def erase_files(files: FoundFiles, users: Sequence[str]) -> None:
    """Deletes explanations and samples, and redacts the texts; other binary files stay, for people to inspect."""
    pattern = id_pattern(users)
    for path in (*files.explanations, *files.samples):
        path.unlink(missing_ok=True)
    assert pattern is not None, "somebody is to be erased"
    for path in files.texts:
        write_whole(path, pattern.sub(_redact, path.read_bytes()))
    LOGGER.info("%d explanations removed, %d texts blackened", len(files.explanations), len(files.texts))


def _redact(match: re.Match[bytes]) -> bytes:
    return (match.groupdict().get("said") or b"") + ERASED


def _file_pattern(users: Sequence[str]) -> re.Pattern[str]:
    """Returns the pattern of an explanation's file name: day, user in file-name characters, time."""
    names = "|".join(re.escape(re.sub(r"[^\w.-]", "_", user)) for user in users)
    return re.compile(rf"\d{{4}}-\d\d-\d\d-(?:{names})-\d+\.\w+")


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in folder.rglob("*") if path.is_file())
