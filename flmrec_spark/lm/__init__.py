"""The language model: segments, families, training, checkpoint and scorer. Never imports pyspark."""
