"""Search: reranking, sparse vectors and late interaction against plain computations of the same model."""

import numpy as np
import pytest

import flaxbert
from flaxbert.errors import ConfigError
from flaxbert.retrieval import encode_sparse, encode_tokens, late_interaction, rerank
from flaxbert.weights.save import save_checkpoint
from tests.weights.tiny import CONFIG, change_config, random_params, write_tiny

TEXTS = ["a fine film", "bad", "the film was bad bad ."]


def folder_of(tmp_path, task, **changes):
    config = CONFIG.replace(labels=(), num_labels=1, **changes)
    return write_tiny(tmp_path / "model", task=task, config=config)


def test_texts_are_ordered_by_the_score_of_the_pair(tmp_path):
    model = flaxbert.load(folder_of(tmp_path, "sequence-classification"))
    logits = np.asarray(model.predict_logits([("fine film", text) for text in TEXTS]))[:, 0]
    ranked = rerank(model, "fine film", TEXTS, batch_size=2)
    assert [entry.index for entry in ranked] == np.argsort(-logits).tolist()
    np.testing.assert_allclose([entry.score for entry in ranked], 1 / (1 + np.exp(np.sort(-logits))), rtol=1e-5)
    assert [entry.text for entry in ranked] == [TEXTS[entry.index] for entry in ranked]
    (best,) = rerank(
        model, "fine film", TEXTS, top_k=1
    )  # all in one batch: another program, whose sums may be rounded otherwise
    assert (best.index, best.text) == (ranked[0].index, ranked[0].text)
    assert best.score == pytest.approx(ranked[0].score, rel=1e-5)
    assert rerank(model, "fine film", []) == []


@pytest.mark.parametrize(
    "extra",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_the_activation_of_the_folder_is_used(extra, tmp_path):
    folder = folder_of(tmp_path, "sequence-classification")
    change_config(folder, **extra)
    model = flaxbert.load(folder)
    logits = np.asarray(model.predict_logits([("fine", text) for text in TEXTS]))[:, 0]
    np.testing.assert_allclose([entry.score for entry in rerank(model, "fine", TEXTS)], -np.sort(-logits), rtol=1e-5)


def test_sparse_vectors_are_the_largest_scores_of_the_tokens(tmp_path):
    model = flaxbert.load(folder_of(tmp_path, "fill-mask"))
    vectors = encode_sparse(model, TEXTS, batch_size=2)
    for text, vector in zip(TEXTS, vectors, strict=True):
        logits = np.asarray(model.predict_logits([text])[0], np.float64)
        expected = np.log1p(np.maximum(logits, 0)).max(axis=0)
        np.testing.assert_array_equal(vector.indices, np.flatnonzero(expected > 0))
        np.testing.assert_allclose(vector.values, expected[expected > 0], rtol=1e-4, atol=1e-5)
    dense = np.zeros((2, CONFIG.vocab_size))
    for row in (0, 1):
        dense[row, vectors[row].indices] = vectors[row].values
    assert vectors[0].dot(vectors[1]) == pytest.approx(float(dense[0] @ dense[1]), rel=1e-5)


def test_words_of_a_sparse_vector_are_readable(tmp_path):
    model = flaxbert.load(folder_of(tmp_path, "fill-mask"))
    vector = encode_sparse(model, ["a fine film"])[0]
    known = [index for index in vector.indices.tolist() if index < 13]
    best = max(known, key=lambda index: vector.values[vector.indices.tolist().index(index)])
    words = vector.words(model.tokenizer, most=len(vector.indices))
    assert [weight for _, weight in words] == sorted(vector.values.tolist(), reverse=True)
    assert model.tokenizer.convert_ids_to_tokens(best) in [word for word, _ in words]


def test_late_interaction_sums_the_best_match_of_each_token(tmp_path):
    model = flaxbert.load(folder_of(tmp_path, "late-interaction", projection_size=5))
    queries, texts = encode_tokens(model, ["fine", "bad film"]), encode_tokens(model, TEXTS)
    assert [len(vectors) for vectors in queries] == [3, 4]
    for vectors in (*queries, *texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    scores = late_interaction(queries, texts)
    for row, query in enumerate(queries):
        for column, text in enumerate(texts):
            assert scores[row, column] == pytest.approx(sum(max(q @ t for t in text) for q in query), rel=1e-5)


def test_models_for_something_else_are_refused(tmp_path):
    folder = write_tiny(tmp_path / "model")
    model = flaxbert.load(folder)
    with pytest.raises(ConfigError, match="one output, but this one has 3 labels"):
        rerank(model, "a", TEXTS)
    with pytest.raises(ConfigError, match="takes a model for 'fill-mask'"):
        encode_sparse(model, TEXTS)
    with pytest.raises(ConfigError, match="takes a model for 'late-interaction'"):
        encode_tokens(model, TEXTS)
    change_config(
        folder_of(tmp_path / "one", "sequence-classification"), sbert_ce_default_activation_function="torch.nn.Tanh"
    )
    with pytest.raises(ConfigError, match="activation is Tanh"):
        rerank(flaxbert.load(tmp_path / "one" / "model"), "a", TEXTS)
    config = CONFIG.replace(labels=(), num_labels=1)
    bare = save_checkpoint(
        tmp_path / "bare", config=config, task="sequence-classification", params=random_params(config)
    )
    with pytest.raises(ConfigError, match="no tokenizer"):
        rerank(flaxbert.load(bare), "a", TEXTS)
