"""Fetches Delta's jars once: `python -m etl.setup.jars`. Later sessions find them in `spark.ivy_dir`, offline.

The pip wheel of Delta holds no jar. Spark's own resolver (Ivy) fetches the artefact and its dependencies;
its long output goes to a log file, which is shown only if it fails.
"""

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conf.errors import JarsMissingError, SpacetimeError
from conf.settings import load_settings
from etl.spark.java import check_java
from etl.spark.session import DELTA_COORDINATE, delta_jars

LOGGER = logging.getLogger(__name__)
OPEN_AND_CLOSE = """
import sys
from pyspark.sql import SparkSession
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
builder.config("spark.jars.packages", sys.argv[1]).config("spark.jars.ivy", sys.argv[2]).getOrCreate().stop()
"""
"""Spark resolves packages while a session starts, and offers no other documented way."""
TAIL_LINES = 30


def resolve_jars(ivy_dir: Path) -> list[Path]:
    """Makes sure that Delta's jars are in the cache and returns them; raises as `resolve`."""
    return resolve(DELTA_COORDINATE, ivy_dir, delta_jars)


def resolve(coordinate: str, ivy_dir: Path, find: Callable[[Path], list[Path]]) -> list[Path]:
    """Makes sure that the jars of an artefact are in the cache and returns them.

    Args:
        coordinate: group, artefact and version.
        ivy_dir: the cache.
        find: returns its jars in the cache; an empty list means that it has to be fetched.

    Raises:
        JavaMissingError: there is no Java to run the resolver.
        JarsMissingError: the jars are not cached and could not be fetched.
    """
    if cached := find(ivy_dir):
        return cached
    check_java()
    ivy_dir.mkdir(parents=True, exist_ok=True)
    log = ivy_dir / "resolve.log"
    LOGGER.info("fetching %s into %s, once; later runs need no network", coordinate, ivy_dir)
    with log.open("w") as sink:
        command = [sys.executable, "-c", OPEN_AND_CLOSE, coordinate, str(ivy_dir.absolute())]
        subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, check=False)
    jars = find(ivy_dir)
    if not jars:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        LOGGER.error("the end of %s:\n%s", log, tail)
        raise JarsMissingError(coordinate=coordinate, folder=ivy_dir, log=log)
    return jars


def main() -> int:
    """Fetches the jars for the settings in force and returns the exit code."""
    parser = argparse.ArgumentParser(description="Fetches the jars of Delta, once, into spark.ivy_dir.")
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    started = time.perf_counter()
    try:
        ivy_dir = Path(load_settings().spark.ivy_dir)
        jars = resolve_jars(ivy_dir)
    except SpacetimeError as error:
        LOGGER.error("error: %s", error)
        return error.exit_code
    LOGGER.info("jars: %d files, %.1f s", len(jars), time.perf_counter() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
