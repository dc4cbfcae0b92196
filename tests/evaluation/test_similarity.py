"""Sentence encoders on scored pairs."""

import numpy as np
import pytest

from flaxbert.config import DataConfig
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.similarity import judge_pairs, similarity
from flaxbert.model import load
from flaxbert.weights.sentence_transformers import SentencePooling
from tests.weights.tiny import write_tiny

FIRST = ["fine", "bad film", "the film", "was bad", "a film"]
SECOND = ["a fine film", "bad", "films", "fine", "the film ."]
COLUMNS = DataConfig(max_length=0, text_column="a", text_pair_column="b", label_column="score")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("model") / "tiny"), task="sentence-similarity")


def rows(scores):
    return [{"a": a, "b": b, "score": score} for a, b, score in zip(FIRST, SECOND, scores, strict=True)]


def test_similarities_are_what_their_names_say():
    first, second = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [1.0, 0.0]])
    np.testing.assert_allclose(similarity(first, second), [24 / 25, 0.0])
    np.testing.assert_allclose(similarity(first, second, "dot"), [24.0, 0.0])
    np.testing.assert_allclose(similarity(first, second, "euclidean"), [-np.sqrt(2), -1.0])
    np.testing.assert_allclose(similarity(first, second, "manhattan"), [-2.0, -1.0])
    with pytest.raises(ConfigError, match="'hamming'"):
        similarity(first, second, "hamming")


def test_a_model_agrees_with_its_own_similarities_in_any_units(model):
    vectors = [model.encode(texts) for texts in (FIRST, SECOND)]
    own = similarity(*vectors)
    judged = judge_pairs(model, COLUMNS, rows((5 * own + 1).tolist()), batch_size=2)
    assert (judged.num_examples, judged.primary, judged.higher_is_better) == (5, "spearman", True)
    assert judged.scored.metrics["spearman"] == pytest.approx(1.0)
    assert judged.scored.metrics["pearson"] == pytest.approx(1.0)
    np.testing.assert_allclose(judged.decisions, own, atol=1e-6)  # batches of other shapes round otherwise
    assert judge_pairs(model, COLUMNS, rows((-own).tolist())).scored.metrics["spearman"] == pytest.approx(-1.0)


def test_the_folder_s_own_similarity_is_used(model):
    distances = model.replace(pooling=SentencePooling(similarity="manhattan"))
    assert all(value < 0 for value in judge_pairs(distances, COLUMNS, rows([1, 2, 3, 4, 5])).decisions)


def test_what_is_no_scored_pair_is_refused(model):
    with pytest.raises(ConfigError, match="text_pair_column"):
        judge_pairs(model, DataConfig(), rows([1, 2, 3, 4, 5]))
    with pytest.raises(DataError, match="not a finite number"):
        judge_pairs(model, COLUMNS, rows(["near"] * 5))
