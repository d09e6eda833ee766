"""The vocabulary: every column and split name that more than one module uses, spelled once."""

from __future__ import annotations

USER_ID = "user_id"
ITEM_ID = "item_id"
RATING = "rating"
EVENT = "event"
TIMESTAMP = "timestamp"
SPLIT = "split"

TITLE = "title"

VALUE = "value"  # what an interaction is worth: its rating, or the worth of its event
IS_LIKED = "is_liked"
MOMENT = "moment"  # order of a user's interactions: 1, 2, ...; rows of one time share a moment
HISTORY = "history"  # array of (item_id, is_liked, value), newest first
TARGETS = "targets"  # array of (item_id, is_liked, value)
HISTORY_LENGTH = "history_length"
CANDIDATES = "candidates"
EXCLUDED = "excluded"
HELD = "user:held"  # array of item ids that a user is asked about beside their list, seen or not; no attribute's name

SCORE = "score"
PROBABILITY = "probability"
RANK = "rank"
HAS_HISTORY = "has_history"
REASON = "reason"
RUN_ID = "run_id"

TRAIN = "train"
VALID = "valid"
TEST = "test"
SPLITS = (TRAIN, VALID, TEST)

INTERACTION_COLUMNS = (USER_ID, ITEM_ID, RATING, EVENT, TIMESTAMP, SPLIT)
