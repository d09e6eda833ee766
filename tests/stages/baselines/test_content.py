"""Content baselines against scikit-learn's TF-IDF and cosine."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from flmrec_spark.stages.baselines import content
from flmrec_spark.stages.baselines.world import User

TEXTS = ["red fish", "red bird", "blue fish", "old stone", "", "red red fish"]


def liking(*places: int) -> User:
    return User("u", np.array(places, dtype=np.int64), np.ones(len(places), dtype=bool))


def test_a_user_is_the_mean_of_what_they_liked() -> None:
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(TEXTS)
    mean = np.asarray(vectors[[0, 2]].mean(axis=0))
    found = content.tf_idf(TEXTS).scores(liking(2, 0))
    assert found == pytest.approx(cosine_similarity(mean, vectors)[0])
    assert found is not None and found[4] == 0.0


def test_scripts_without_spaces_are_read_by_character() -> None:
    found = content.tf_idf(["红楼梦", "红星", "活着", "alien"]).scores(liking(0))
    assert found is not None
    assert found[0] == pytest.approx(1.0)
    assert 0 < found[1] < 1
    assert found[2:].tolist() == [0.0, 0.0]


def test_without_words_or_likes_nothing_is_known() -> None:
    assert content.tf_idf(["", "..."]).scores(liking(0)) is None
    assert content.tf_idf(TEXTS).scores(liking(4)) is None
    assert content.tf_idf(TEXTS).scores(liking()) is None


def test_embeddings_are_compared_by_their_angle() -> None:
    vectors = np.array([[3.0, 0.0], [0.0, 0.5], [2.0, 2.0], [0.0, 0.0]])
    found = content.embedded(vectors).scores(liking(0))
    assert found == pytest.approx([1.0, 0.0, np.sqrt(0.5), 0.0])
