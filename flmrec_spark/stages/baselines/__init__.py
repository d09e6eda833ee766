"""Simple recommenders, each fitted on history alone: what the model must beat, and strategies of jobs/score.py."""
