"""The process that Spark forks its Python workers from, with torch and the model code already imported.

Spark's own daemon (`pyspark.daemon`) imports neither, so every worker would do it again, seconds each, and once more
after every idle minute, when Spark ends its workers. Forked from here they start at
once and share the memory. Named by the property `spark.python.daemon.module`; Spark runs it as
`python -m udfs.worker_daemon pyspark.worker`.

Nothing here may start a thread: threads do not survive a fork. Importing does not, computing does.
"""

from pyspark import daemon

import udfs.features.poi_candidates
import udfs.features.poi_embeddings
import udfs.features.ranking_scores
import udfs.features.user_embeddings  # noqa: F401

if __name__ == "__main__":
    daemon.manager()
