"""Feature jobs: the model on Spark's workers, one file per feature table."""
