"""Reranking, sparse and late-interaction vectors against sentence-transformers, which reads the very folders that we write."""

import warnings

import numpy as np
import pytest

import flaxbert
from flaxbert.errors import WeightsError
from flaxbert.retrieval import encode_sparse, encode_tokens, late_interaction, rerank
from tests.weights.tiny import CONFIG, write_tiny

pytestmark = pytest.mark.parity

QUERIES = ["fine film", "bad ."]
TEXTS = ["a fine film", "bad", "the film was bad bad"]


@pytest.fixture(name="theirs")
def sentence_transformers_module():
    return pytest.importorskip("sentence_transformers", reason="needs the test extra")


def save(tmp_path, task, **changes):
    config = CONFIG.replace(labels=(), num_labels=1, **changes)
    model = flaxbert.load(write_tiny(tmp_path / "start", task=task, config=config))
    return model, str(model.save(tmp_path / "model"))


def test_a_cross_encoder_gives_the_same_scores(theirs, tmp_path):
    model, folder = save(tmp_path, "sequence-classification")
    reader = theirs.CrossEncoder(folder, device="cpu")
    for query in QUERIES:
        scores = reader.predict([(query, text) for text in TEXTS])
        ours = {entry.index: entry.score for entry in rerank(model, query, TEXTS)}
        np.testing.assert_allclose([ours[index] for index in range(len(TEXTS))], scores, atol=1e-5)


def test_sparse_vectors_are_those_of_a_sparse_encoder(theirs, tmp_path):
    model, folder = save(tmp_path, "fill-mask")
    expected = theirs.SparseEncoder(folder, device="cpu").encode(TEXTS).to_dense().numpy()
    for row, vector in zip(expected, encode_sparse(model, TEXTS), strict=True):
        dense = np.zeros_like(row)
        dense[vector.indices] = vector.values
        np.testing.assert_allclose(dense, row, atol=1e-5 * row.max())


def test_token_vectors_and_their_scores_are_those_of_a_multi_vector_encoder(theirs, tmp_path):
    model, folder = save(tmp_path, "late-interaction", projection_size=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = theirs.MultiVectorEncoder(folder, device="cpu", prompts={"query": "", "document": ""})
    reader[0].query_expansion = None  # each query as long as it is
    documents = [np.asarray(vectors) for vectors in reader.encode_document(TEXTS)]
    queries = [np.asarray(vectors) for vectors in reader.encode_query(QUERIES)]
    ours = encode_tokens(model, QUERIES), encode_tokens(model, TEXTS)
    for expected, found in zip([*queries, *documents], [*ours[0], *ours[1]], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    scores = [[(query @ text.T).max(axis=1).sum() for text in documents] for query in queries]
    np.testing.assert_allclose(late_interaction(*ours), scores, atol=1e-4)


def reread(theirs, kind, folder, tmp_path):
    """What their class writes of our folder, loaded by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(theirs, kind)(folder, device="cpu").save_pretrained(str(tmp_path / "theirs"))
    return flaxbert.load(tmp_path / "theirs")


def test_what_they_write_is_read(theirs, tmp_path):
    model, folder = save(tmp_path / "colbert", "late-interaction", projection_size=5)
    again = reread(theirs, "MultiVectorEncoder", folder, tmp_path / "colbert")
    assert (again.task, again.account.initialized) == ("late-interaction", ())
    assert set(again.account.unused) == {"pooler.dense.bias", "pooler.dense.weight"}  # they draw a pooler and keep it
    for ours, theirs_read in zip(encode_tokens(model, TEXTS), encode_tokens(again, TEXTS), strict=True):
        np.testing.assert_array_equal(ours, theirs_read)
    model, folder = save(tmp_path / "splade", "fill-mask")
    again = reread(theirs, "SparseEncoder", folder, tmp_path / "splade")
    assert again.task == "fill-mask"
    assert [v.values.tolist() for v in encode_sparse(again, TEXTS)] == [
        v.values.tolist() for v in encode_sparse(model, TEXTS)
    ]


@pytest.mark.parametrize("activation", ["Identity", "Sigmoid"])
def test_the_activation_that_a_cross_encoder_declares_is_used_and_kept(theirs, activation, tmp_path):
    import torch

    _, folder = save(tmp_path, "sequence-classification")
    reader = theirs.CrossEncoder(folder, device="cpu", activation_fn=getattr(torch.nn, activation)())
    reader.save_pretrained(str(tmp_path / "theirs"))
    scores = reader.predict([(QUERIES[0], text) for text in TEXTS])
    model = flaxbert.load(tmp_path / "theirs")
    for each in (model, flaxbert.load(model.save(tmp_path / "again"))):
        ours = {entry.index: entry.score for entry in rerank(each, QUERIES[0], TEXTS)}
        np.testing.assert_allclose([ours[index] for index in range(len(TEXTS))], scores, atol=1e-5)


def test_a_projection_that_is_more_than_a_kernel_is_refused(theirs, tmp_path):
    _, folder = save(tmp_path, "late-interaction", projection_size=5)
    reread(theirs, "MultiVectorEncoder", folder, tmp_path)
    file = tmp_path / "theirs" / "1_Dense" / "config.json"
    file.write_text(file.read_text().replace("linear.Identity", "activation.Tanh"))
    with pytest.raises(WeightsError, match="linear.weight and Tanh"):
        flaxbert.load(tmp_path / "theirs")
