"""Apache DataFusion Comet below Spark's plans, for those who set `spark.accelerator: comet`; off by default.

Comet runs what it can of a physical plan natively, on Arrow batches, and leaves the rest to Spark: results stay the
same. It needs one more jar, which `python -m etl.jars --accelerator comet` fetches once, and memory outside the heap.
What it is worth on this project's plans is measured by `make bench-comet`.
"""

from pathlib import Path

from conf.errors import MissingInputError
from conf.settings import SparkSettings

COMET_COORDINATE = "org.apache.datafusion:comet-spark-spark4.1_2.13:1.2.0"
"""Built for this minor version of Spark."""
COMET_EXTENSION = "org.apache.comet.CometSparkSessionExtensions"
COMET_PROPERTIES = {
    "spark.plugins": "org.apache.spark.CometPlugin",
    "spark.shuffle.manager": "org.apache.spark.sql.comet.execution.shuffle.CometShuffleManager",
    # Comet takes no memory but this.
    "spark.memory.offHeap.enabled": "true",
}


def comet_jar(ivy_dir: str | Path) -> Path:
    """Returns where Ivy puts Comet's jar, whether or not it is there."""
    group, artifact, version = COMET_COORDINATE.split(":")
    return Path(ivy_dir).absolute() / "jars" / f"{group}_{artifact}-{version}.jar"


def accelerator_jars(settings: SparkSettings) -> list[Path]:
    """Returns the jars that the accelerator in force needs on the class path.

    Raises:
        MissingInputError: they have not been fetched.
    """
    if settings.accelerator == "none":
        return []
    jar = comet_jar(settings.ivy_dir)
    if not jar.is_file():
        raise MissingInputError(
            what="Comet's jar",
            where=str(jar),
            needed_by="spark.accelerator: comet",
            remedy="Fetch it once with: python -m etl.jars --accelerator comet; or set spark.accelerator to none.",
        )
    return [jar]


def accelerator_properties(settings: SparkSettings) -> dict[str, str]:
    """Returns the Spark properties of the accelerator in force; as much memory outside the heap as in it."""
    if settings.accelerator == "none":
        return {}
    return {**COMET_PROPERTIES, "spark.memory.offHeap.size": settings.driver_memory}
