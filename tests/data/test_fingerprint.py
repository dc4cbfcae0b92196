"""Fingerprints of examples: the numbers are right, and they tell examples apart."""

import dataclasses

import numpy as np

from flaxbert.data.fingerprint import fingerprint
from flaxbert.data.tokenization import TokenizedExamples

EXAMPLES = TokenizedExamples(
    input_ids=np.asarray([2, 7, 3, 2, 1, 1, 8, 3], np.int32),
    token_type_ids=None,
    offsets=np.asarray([0, 3, 8]),
    truncated=np.asarray([False, True]),
    labels=np.asarray([0, 1], np.int32),
)


def test_numbers_of_a_fingerprint():
    found = fingerprint(EXAMPLES, 1, {"bad": 3, "good": 1}, "train.tsv")
    assert (found["num_examples"], found["num_tokens"], found["source"]) == (2, 8, "train.tsv")
    assert found["unknown_rate"] == 0.25
    assert found["truncated_rate"] == 0.5
    assert found["labels"] == {"bad": 0.75, "good": 0.25}
    assert (found["lengths"]["0.5"], found["lengths"]["0.25"]) == (4.0, 3.5)


def test_other_tokens_borders_or_labels_have_other_digests():
    others = [
        dataclasses.replace(EXAMPLES, labels=np.asarray([1, 0], np.int32)),
        dataclasses.replace(EXAMPLES, offsets=np.asarray([0, 4, 8])),
        dataclasses.replace(EXAMPLES, input_ids=EXAMPLES.input_ids + 1),
        dataclasses.replace(EXAMPLES, labels=None),
    ]
    digests = {fingerprint(one, None, {}, "")["sha256"] for one in (EXAMPLES, *others)}
    assert len(digests) == 5
    assert fingerprint(EXAMPLES, None, {}, "x")["sha256"] in digests


def test_scripts_of_texts_are_there_only_where_texts_are_given():
    found = fingerprint(EXAMPLES, 1, {}, "", [["a film", "фильм"]])
    assert found["scripts"] == {"Latin": 0.5, "Cyrillic": 0.5}
    assert "scripts" not in fingerprint(EXAMPLES, 1, {}, "")
