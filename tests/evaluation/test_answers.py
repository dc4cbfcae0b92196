"""Scores of answers against cases computed by hand from the official script of SQuAD 2.0."""

import itertools

import numpy as np
import pytest

from flaxbert.evaluation.answers import (
    ALWAYS_ANSWER,
    answer_f1,
    best_scores,
    best_threshold,
    exact_match,
    normalize_answer,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Normans", "normans"),
        ("10th  and 11th\tcenturies.", "10th and 11th centuries"),
        ("a 'theatre' in an anthill", "theatre in anthill"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("Über–alles", "über–alles"),  # a dash that is no ASCII punctuation stays
        ("", ""),
    ],
)
def test_answers_are_normalised(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("the 10th century", "10th century", 1.0, 1.0),
        ("in the 10th century", "10th century", 0.0, 0.8),  # 2 of 3 predicted, 2 of 2 true words
        ("10th", "10th century", 0.0, 2 / 3),
        ("new new york", "new york", 0.0, 0.8),  # a word counts as often as both have it
        ("Rome", "Paris", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("Rome", "", 0.0, 0.0),
    ],
)
def test_matches(answer, gold, exact, f1):
    assert exact_match(answer, gold) == exact
    assert answer_f1(answer, gold) == pytest.approx(f1)


def test_the_gold_answer_that_suits_best_counts():
    rows = best_scores(["the 10th century", "", "x"], [["10th", "10th century"], [], ["the", "a b"]])
    assert rows.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]


def test_no_threshold_is_better_than_the_best():
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores, differences = generator.random(12), generator.integers(-3, 4, 12).astype(np.float64)
        has_answer = generator.random(12) < 0.5
        has_answer[0] = False
        best, threshold = best_threshold(scores, differences, has_answer)

        def reached(limit, scores=scores, differences=differences, has_answer=has_answer):
            given = differences <= limit
            return float(np.where(given, np.where(has_answer, scores, 0.0), ~has_answer).mean())

        assert reached(threshold) == pytest.approx(best)
        assert best == pytest.approx(max(map(reached, itertools.chain([-9.0], differences.tolist()))))


def test_without_unanswerable_questions_an_answer_is_always_given():
    assert best_threshold(np.array([0.5, 1.0]), np.array([3.0, -1.0]), np.ones(2, bool)) == (0.75, ALWAYS_ANSWER)
