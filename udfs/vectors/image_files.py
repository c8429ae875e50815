"""The bytes of a delivered picture: those of the row, or those of the file that its URI names.

A catalogue comes from outside, so a URI in it may not name just any file that a worker can read: only files below
`features.image_root` are opened.
"""

import os
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from pyarrow import fs


class ImageRefusedError(Exception):
    """A picture that is left out; `reason` is its code in conf/rules.py."""

    def __init__(self, reason: str, detail: str) -> None:
        """Stores the code and what was found."""
        super().__init__(detail)
        self.reason = reason


class ImageRoot(NamedTuple):
    """Where pictures may lie, and how large a file may be.

    Attributes:
        root: folder or URI; empty = no file is opened.
        max_bytes: larger files are not read.
    """

    root: str
    max_bytes: int

    def read(self, uri: str) -> bytes:
        """Returns the bytes of a file.

        Args:
            uri: path or URI below the root, or a path relative to it.

        Raises:
            ImageRefusedError: it does not lie below the root, cannot be read, or is too large.
        """
        if not self.root:
            raise ImageRefusedError("image_not_found", f"{uri}: features.image_root is not set")
        system, top = open_root(self.root)
        try:
            path = _below(uri, self.root, top, is_local=isinstance(system, fs.LocalFileSystem))
            info = system.get_file_info(path)
            if info.type != fs.FileType.File:
                raise ImageRefusedError("image_not_found", f"{uri}: there is no such file")
            if info.size is not None and info.size > self.max_bytes:
                raise ImageRefusedError("image_too_large", f"{uri}: {info.size} bytes")
            with system.open_input_stream(path) as stream:
                content: bytes = stream.read(self.max_bytes + 1)
        except (OSError, ValueError) as error:
            raise ImageRefusedError("image_not_found", f"{uri}: {error}") from error
        return content


def open_root(root: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of the root and its path there, without a slash at its end.

    Raises:
        OSError, ValueError: a URI of no file system that pyarrow knows.
    """
    if "://" in root:
        system, path = fs.FileSystem.from_uri(root)
        return system, path.rstrip("/")
    # Taken literally: as a URI, a folder with # or % in its name would be another one.
    return fs.LocalFileSystem(), os.path.abspath(root).rstrip("/")


def _below(uri: str, root: str, top: str, *, is_local: bool) -> str:
    """Returns the path of a file below the root, as its file system writes it."""
    if "://" in uri:
        parsed = urlparse(root) if "://" in root else urlparse(f"file://{top}")
        named = urlparse(uri)
        if (named.scheme, named.netloc) != (parsed.scheme, parsed.netloc):
            raise ImageRefusedError("image_not_found", f"{uri}: not below {root}")
        # Object stores take a key as it is; only file URIs are written with percent signs.
        path = unquote(named.path) if named.scheme == "file" else named.netloc + named.path
    else:
        path = uri if os.path.isabs(uri) else f"{top}/{uri}"
    inside = os.path.normpath(path)
    if is_local:
        inside, top = os.path.realpath(inside), os.path.realpath(top)  # a link may lead elsewhere
    if not inside.startswith(f"{top}/"):
        raise ImageRefusedError("image_not_found", f"{uri}: not below {root}")
    return inside
