"""Sessions: Java, Spark and their start-up options."""
