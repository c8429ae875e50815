"""Sessions: Java, Spark and what they are started with."""
