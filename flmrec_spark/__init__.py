"""Fine-Tuning-FLM: recommendations from a fine-tuned language model, refreshed in a lakehouse.

columns, config, prompts, metrics    plain Python
lm                                   the model, its training and its scorer; never imports pyspark
tables                               Delta tables: schemas and commits; never imports torch
stages                               DataFrame in, DataFrame out
job                                  what every job starts with: arguments, session, run record
"""

__version__ = "0.1.0"
