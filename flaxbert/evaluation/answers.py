"""Scores of answers as the official script of SQuAD 2.0 computes them: normalisation, exact match, F1, best threshold."""

import collections
import re
import string
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

ALWAYS_ANSWER = 1e9
"""Threshold of models that have seen no question without an answer."""

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = frozenset(string.punctuation)


def normalize_answer(text: str) -> str:
    """Returns an answer without case, punctuation, articles and superfluous spaces.

    Args:
      text: The answer.

    Example:
      >>> normalize_answer("The  U.S. of A.")
      'us of'
    """
    plain = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, gold: str) -> float:
    """Returns 1.0 where two answers are equal after normalisation, else 0.0.

    Args:
      answer: Predicted answer.
      gold: True answer.
    """
    return float(normalize_answer(answer) == normalize_answer(gold))


def answer_f1(answer: str, gold: str) -> float:
    """Returns the F1 of the words that two answers share; of an empty answer, whether both are empty.

    Args:
      answer: Predicted answer.
      gold: True answer.
    """
    predicted, true = normalize_answer(answer).split(), normalize_answer(gold).split()
    if not predicted or not true:
        return float(predicted == true)
    shared = sum((collections.Counter(predicted) & collections.Counter(true)).values())
    return 2.0 * shared / (len(predicted) + len(true))


def best_scores(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> Float[np.ndarray, "questions 2"]:
    """Returns exact match and F1 of every answer with the gold answer that suits it best.

    Args:
      answers: Predicted answers; empty for no answer.
      golds: True answers; none where there is no answer. Those that are empty after normalisation do not count.
    """
    rows = []
    for answer, several in zip(answers, golds, strict=True):
        kept = [gold for gold in several if normalize_answer(gold)] or [""]
        rows.append([max(exact_match(answer, gold) for gold in kept), max(answer_f1(answer, gold) for gold in kept)])
    return np.array(rows, np.float64).reshape(-1, 2)


def best_threshold(
    scores: Float[np.ndarray, "questions"],
    null_differences: Float[np.ndarray, "questions"],
    has_answer: np.ndarray,
) -> tuple[float, float]:
    """Returns the best mean score that leaving answers out can reach, and the threshold that reaches it.

    A question is answered where its difference is at most the threshold; as ``find_best_thresh`` of the official script.

    Args:
      scores: Score of each question's answer, were it given.
      null_differences: Score of no answer minus that of the answer.
      has_answer: Whether each question has an answer.

    Returns:
      The mean score and the threshold.
    """
    if has_answer.all():
        return float(scores.mean()) if len(scores) else 0.0, ALWAYS_ANSWER
    order = np.argsort(null_differences, kind="stable")
    gains = np.where(has_answer[order], scores[order], -1.0)
    totals = np.cumsum(gains) + float((~has_answer).sum())
    # Equal differences are answered together, so that the threshold says what it is said to reach.
    sorted_differences = null_differences[order]
    last = np.append(sorted_differences[1:] != sorted_differences[:-1], True)
    totals = np.where(last, totals, -np.inf)
    place = int(np.argmax(totals))
    none = float((~has_answer).sum())
    if totals[place] <= none:
        return none / len(scores), float(sorted_differences[0]) - 1.0
    return float(totals[place]) / len(scores), float(sorted_differences[place])
