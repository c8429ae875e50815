"""Files for other jobs and for people, written atomically: a reader sees the whole old or the whole new file."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from conf.errors import CorruptInputError

ERASURES_FILE = "erasures.json"
"""In the folder of a training: by run of an erasure, the table versions that it read and that are gone since."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, and the folders above it; a kill leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named after the process: two processes that write the same file use different drafts.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(draft, path)


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file as `write_whole` does; keys are sorted, types that JSON lacks become text."""
    write_whole(path, json.dumps(content, indent=1, sort_keys=True, default=str) + "\n")


def digest_json(content: object, length: int = 16) -> str:
    """Returns the first hexadecimal digits of a SHA-256 of JSON with sorted keys; equal content, equal digest.

    Args:
        content: anything that JSON takes.
        length: number of digits, at most 64.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]


def read_json(path: Path, *, expected: str) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Args:
        path: an existing file.
        expected: description of the file, for the error.

    Raises:
        CorruptInputError: the file is cut short, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CorruptInputError(path=str(path), expected=expected, cause=str(error)) from error
    if not isinstance(content, dict):
        raise CorruptInputError(path=str(path), expected=expected, cause="it holds no JSON object")
    return content
