"""Documents that stand in a corpus twice."""

import numpy as np
import pytest

from flaxbert.config import DedupConfig
from flaxbert.data.corpus import Document
from flaxbert.data.deduplication import find_duplicates
from flaxbert.errors import ConfigError


def text(seed, size=200):
    return [f"w{number}" for number in np.random.default_rng(seed).integers(0, 5000, size)]


def documents(*texts):
    return [Document((" ".join(words),), f"row {number}") for number, words in enumerate(texts)]


def test_the_same_words_are_found_whatever_blanks_and_capitals():
    first = text(0)
    shouted = [word.upper() for word in first]
    spaced = [Document((" ".join(first[:50]), "  ".join(first[50:])), "row 9")]
    found = find_duplicates(
        [*documents(first, text(1), shouted), *spaced, *documents(text(1)[:-1])], DedupConfig(exact=True)
    )
    assert found.exact == {2, 3}
    assert found.near == frozenset()
    assert found.num_documents == 5


def test_near_copies_are_found_and_others_stay():
    first, second = text(0), text(1)
    changed = [*first[:100], "other", *first[101:]]  # 5 of 196 sequences differ: Jaccard 0.95
    half = [*first[:100], *second[:100]]
    texts = documents(first, second, changed, half, *(text(seed) for seed in range(2, 60)))
    assert find_duplicates(texts, DedupConfig(near=True)).all == {2}
    copied = find_duplicates([*texts, *documents(first)], DedupConfig(near=True))
    assert (copied.near, copied.exact) == ({2, len(texts)}, set())
    assert find_duplicates(texts, DedupConfig(exact=True)).all == set()
    assert find_duplicates(texts, DedupConfig()).all == set()


def test_near_copies_of_texts_without_blanks_are_found():
    sentences = [f"第{number}天，狐狸走过了第{number * 7}座桥。" for number in range(12)]
    other = [f"有{number}只母鸡在第{number * 5}个院子里睡觉。" for number in range(12)]
    texts = [Document(tuple(lines), "row") for lines in (sentences, other, [*sentences[:-1], "完了。"])]
    assert find_duplicates(texts, DedupConfig(near=True, threshold=0.7)).near == {2}


def test_estimates_find_most_of_what_is_near():
    originals = [text(seed, 300) for seed in range(40)]
    copies = [[*words[:10], "x", *words[11:]] for words in originals]
    found = find_duplicates(documents(*originals, *copies), DedupConfig(near=True))
    assert all(number >= 40 for number in found.near)
    assert len(found.near) >= 39


def test_short_texts_are_compared_word_for_word_only():
    texts = documents(["yes", "it", "is"], ["yes", "it", "was"], ["yes", "it", "is"])
    assert find_duplicates(texts, DedupConfig(exact=True, near=True)).all == {2}


def test_bad_options():
    with pytest.raises(ConfigError, match="threshold is 0"):
        DedupConfig(threshold=0.0)
    with pytest.raises(ConfigError, match="at least 16"):
        DedupConfig(num_permutations=2)
