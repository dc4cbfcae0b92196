"""Parts of texts: entities, and answers to questions."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.config import TaskConfig
from flaxbert.serve.drift_windows import MOST_OF_A_REQUEST, Outcome
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import LOGITS
from flaxbert.serve.operations.work import Subject, Work, columns_of, encode_task
from flaxbert.tasks.registry import get_task

WATCHED_WORDS = 8
"""Words (and entities) of a text that are watched, spread over it: neighbours say the same, so that all would look like more than they tell."""

_NOTHING = {"answer": "", "score": 1.0, "start": 0, "end": 0}
"""What is answered where the network named no part of the context at all."""


def tag(subject: Subject, texts: Sequence[str]) -> Work:
    """Entities of texts, as ``Model.predict`` finds them; long texts are read in windows.

    Args:
      subject: The model.
      texts: The texts.

    Returns:
      Work whose answer is, for each text, a list of ``{"entity_group", "score", "word", "start", "end"}``.

    Raises:
      RequestError: The model finds no entities.
    """
    if subject.model.task != "token-classification":
        raise RequestError("backend", f"The model is for {subject.model.task}, which finds no entities.")
    _refuse_empty(texts)
    task = get_task("token-classification")
    encoded, rows = encode_task(subject, task.inputs(list(texts)))

    watched: list[str] = []

    def finish(results: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        tagged = task.decode(encoded, results, subject.setting())
        for text in tagged[:MOST_OF_A_REQUEST]:
            watched.extend(_some_of(text.tags))
        return [
            [
                {"entity_group": e.label, "score": e.score, "word": e.text, "start": e.start, "end": e.end}
                for e in text.entities
            ]
            for text in tagged
        ]

    def outcome(answer: list[list[dict[str, Any]]]) -> Outcome:
        return Outcome(watched, [found["score"] for text in answer[:MOST_OF_A_REQUEST] for found in _some_of(text)])

    return Work(LOGITS, rows, finish, columns_of(texts), outcome)


def answer(
    subject: Subject,
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    top_k: int = 1,
    max_answer_length: int = 0,
    allow_none: bool = True,
) -> Work:
    """Answers to questions, as ``Model.predict`` finds them; long contexts are read in windows.

    Args:
      subject: The model.
      questions: The questions.
      contexts: Where each one's answer stands.
      top_k: Answers for each question.
      max_answer_length: Most tokens of an answer; 0: as the task's options say.
      allow_none: Whether the answer may be that there is none.

    Returns:
      Work whose answer is, for each question, a list of ``{"answer", "score", "start", "end"}``, best first.

    Raises:
      RequestError: The model answers no questions.
    """
    if subject.model.task != "question-answering":
        raise RequestError("backend", f"The model is for {subject.model.task}, which answers no questions.")
    _refuse_empty(questions)
    _refuse_empty(contexts)
    options = TaskConfig()
    changes: dict[str, Any] = {"num_best": max(options.num_best, top_k)}
    if max_answer_length:
        changes["max_answer_length"] = max_answer_length
    options = dataclasses.replace(options, **changes)
    task = get_task("question-answering")
    encoded, rows = encode_task(subject, task.inputs(list(questions), list(contexts)), options)

    def finish(results: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        found = task.decode(encoded, results, subject.setting(options))
        return [_best(prediction, top_k, allow_none) for prediction in found]

    def outcome(answers: list[list[dict[str, Any]]]) -> Outcome:
        best = [several[0] for several in answers[:MOST_OF_A_REQUEST] if several[0] != _NOTHING]
        return Outcome((), [entry["score"] for entry in best])

    return Work(LOGITS, rows, finish, columns_of(questions, contexts), outcome)


def _best(prediction: Any, top_k: int, allow_none: bool) -> list[dict[str, Any]]:
    answers = [{"answer": c.text, "score": c.score, "start": c.start, "end": c.end} for c in prediction.candidates]
    if allow_none and not prediction.text:
        answers.insert(0, {"answer": "", "score": prediction.score, "start": 0, "end": 0})
    return answers[:top_k] or [dict(_NOTHING)]


def _some_of(entries: Sequence[Any]) -> Sequence[Any]:
    step = -(-len(entries) // WATCHED_WORDS) or 1
    return entries[(step - 1) // 2 :: step]


def _refuse_empty(texts: Sequence[str]) -> None:
    for place, text in enumerate(texts):
        if not text.strip():
            raise RequestError("validation", f"Input {place} is empty.")
