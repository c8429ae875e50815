"""Is there a Java that Spark runs on? `python -m etl.java` answers.

Standard library only, so that it can be asked before anything is installed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conf.errors import JavaMissingError

JAVA_VERSIONS = (17, 21)


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
