"""Sentence vectors of the real all-MiniLM-L6-v2 against sentence-transformers, and its published quality."""

import csv
import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr

import flaxbert
from tests.parity.oracle import Case, load_torch

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::flaxbert.data.tokenization.TruncationWarning"),
]

STSB_DEV_SPEARMAN = 86.72
"""What torch gives on the dev split of STS-B (Spearman times 100)."""

SENTENCES = [
    "A man is playing a guitar.",
    "The weather in Lisbon was lovely, wasn't it?",
    "12 % of 3,400 kg; see §4.2!",
    "naïve café – 東京 and Ελλάδα",
    "word",
    " ".join(["many words stand in this long text about nothing at all"] * 40),
]


def _sentence_transformer(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the test extra")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def _worst_cosine(first, second):
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in (first, second)]
    return float(np.min(np.sum(unit[0] * unit[1], axis=1)))


def test_embeddings_equal_sentence_transformers(minilm_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _sentence_transformer(minilm_path).encode(SENTENCES)
    ours = flaxbert.load(minilm_path).encode(SENTENCES)
    assert _worst_cosine(ours, theirs) >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-5)


def test_saved_folder_gives_the_same_in_sentence_transformers(minilm_path, tmp_path):
    model = flaxbert.load(minilm_path)
    folder = model.save(tmp_path / "saved")
    reference = model.encode(SENTENCES)
    saved = _sentence_transformer(folder)
    assert saved.max_seq_length == 256
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = saved.encode(SENTENCES)
    assert _worst_cosine(reference, theirs) >= 0.99999
    np.testing.assert_array_equal(flaxbert.load(folder).encode(SENTENCES), reference)
    load_torch(folder, Case("MiniLM", task="feature-extraction"))


@pytest.mark.parametrize("include_prompt", [pytest.param(True, marks=pytest.mark.slow), False])
def test_prompts_equal_those_of_sentence_transformers(minilm_path, tmp_path, include_prompt):
    model = flaxbert.load(minilm_path)
    pooling = model.pooling.replace(prompts={"query": "Represent this question: "}, include_prompt=include_prompt)
    model = model.replace(pooling=pooling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = _sentence_transformer(model.save(tmp_path / "saved")).encode(SENTENCES, prompt_name="query")
    assert _worst_cosine(model.encode(SENTENCES, prompt_name="query"), theirs) >= 0.99999


@pytest.mark.slow
def test_quality_on_stsb_is_the_published_one(minilm_path, test_data):
    with (test_data / "stsb" / "sts-dev.csv").open(encoding="utf-8") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 1500
    model = flaxbert.load(minilm_path)
    first, second = (model.encode([row[column] for row in rows], batch_size=64) for column in (5, 6))
    found = 100 * spearmanr(np.sum(first * second, axis=1), [float(row[4]) for row in rows]).statistic
    assert found == pytest.approx(STSB_DEV_SPEARMAN, abs=0.1)
