"""Checks for a Java that Spark runs on (`python -m etl.spark.java`), and sets the locale for its file names.

Standard library only, so that it runs before anything is installed.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conf.errors import JavaMissingError

JAVA_VERSIONS = (17, 21)
LOCALE_VARIABLES = ("LC_ALL", "LC_CTYPE", "LANG")
"""What decides the encoding of file names; the first that is set and not empty counts."""
UTF8_LOCALE = "C.UTF-8"
MODULE_WARNING = b"WARNING: Using incubator modules"
_STDERR = threading.Lock()


def check_java() -> None:
    """Raises JavaMissingError unless JAVA_HOME or PATH leads to a Java that Spark 4.1 runs on."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None:
        raise JavaMissingError(found="there is no java on PATH and JAVA_HOME is not set")
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise JavaMissingError(found=f"{java} does not run ({error})") from error
    match = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
    if match is None or int(match.group(1)) not in JAVA_VERSIONS:
        version = match.group(1) if match else "unknown"
        raise JavaMissingError(found=f"{java} is of version {version}")


@contextmanager
def utf8_locale() -> Iterator[None]:
    """Ensures that a JVM started within the block runs in a UTF-8 locale; an existing UTF-8 locale is kept.

    Java takes the encoding of file names from the locale (`sun.jnu.encoding`), and no option changes it. Bare
    containers and schedulers use the POSIX locale, in which Java cannot open a file with an umlaut in its name.
    """
    variable = next((name for name in LOCALE_VARIABLES if os.environ.get(name)), "LC_CTYPE")
    before = os.environ.get(variable)
    if re.search(r"utf-?8", before or "", re.IGNORECASE):
        yield
        return
    # LANG sets more than the encoding; LC_CTYPE takes precedence over it.
    changed = "LC_CTYPE" if variable == "LANG" else variable
    before = os.environ.get(changed)
    os.environ[changed] = UTF8_LOCALE
    try:
        yield
    finally:
        if before is None:
            del os.environ[changed]
        else:
            os.environ[changed] = before


@contextmanager
def without_module_warning() -> Iterator[None]:
    """Drops one line from the stderr of a JVM that is started within the block; all its other lines pass.

    Spark starts Java with an incubator module for its linear algebra, and Java has no switch for the warning about it.
    The JVM writes to a pipe, which a thread copies to the real stderr for as long as the JVM lives.
    """
    with _STDERR:  # two threads that redirect it at once would restore each other's pipe
        read_end, write_end = os.pipe()
        stderr, copied_to = os.dup(2), os.dup(2)
        os.dup2(write_end, 2)
        os.close(write_end)
        copy = threading.Thread(
            target=_copy_lines, args=(read_end, copied_to), daemon=True, name="stderr of Java"
        )
        copy.start()
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _copy_lines(source: int, target: int) -> None:
    with os.fdopen(source, "rb", buffering=0) as lines:
        for line in lines:
            if not line.startswith(MODULE_WARNING):
                os.write(target, line)
    os.close(target)


def main() -> int:
    """Prints what is missing, if anything, and returns the exit code."""
    try:
        check_java()
    except JavaMissingError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
