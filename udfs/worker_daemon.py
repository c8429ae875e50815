"""The process from which Spark forks its Python workers, with torch and the model code already imported.

Spark's own daemon (`pyspark.daemon`) imports neither. Every worker would then spend seconds on the imports, and again
after every idle minute, when Spark ends its workers. Workers forked from here start at once and share the memory. The
property `spark.python.daemon.module` names this module; Spark runs it as `python -m udfs.worker_daemon pyspark.worker`.

Nothing here may start a thread, since threads do not survive a fork. Imports start none; computations do.
"""

from pyspark import daemon

import udfs.features.poi_candidates
import udfs.features.poi_embeddings
import udfs.features.ranking_scores
import udfs.features.user_embeddings  # noqa: F401

if __name__ == "__main__":
    daemon.manager()
