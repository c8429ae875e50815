"""Refuses files that do not belong in the repository: larger than 250 kB, or holding what looks like a
secret.

Called by pre-commit with the files of the commit; lock files are exempt from the size limit.
"""

import re
import sys
from pathlib import Path

MAX_BYTES = 250_000
SECRETS = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a cloud access key": re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
    "a password in a URL": re.compile(rb"://[^/\s:@]+:[^/\s:@{}$]+@"),
}


def find_problems(path: Path) -> list[str]:
    """Returns what is wrong with one file, in words; empty if nothing is."""
    content = path.read_bytes()
    problems = [f"holds {name}" for name, pattern in SECRETS.items() if pattern.search(content)]
    if len(content) > MAX_BYTES and path.suffix != ".lock":
        problems.append(f"has {len(content)} bytes, more than {MAX_BYTES}")
    return problems


def main(paths: list[str]) -> int:
    """Prints the problems of all files and returns 1 if there are any."""
    found = [f"{path}: {problem}" for path in paths for problem in find_problems(Path(path))]
    sys.stderr.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
