"""Question answering: the part of a text that answers a question, or that there is none."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.config import DataConfig
from flaxbert.data.sources import as_texts
from flaxbert.data.squad import GoldAnswer, Questions, read_questions
from flaxbert.data.windows import Windows
from flaxbert.errors import ConfigError, DataError, TrainingError
from flaxbert.evaluation.answers import best_scores, best_threshold
from flaxbert.tasks.base import Encoded, Outputs, Scored, Setting, Task, cut_texts, no_report, one_line, softmax

THRESHOLD_KEY = "null_score_threshold"
"""Key of ``config.json`` under which a model keeps the threshold that was best on the held-out questions."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A part of a text that may answer a question.

    Attributes:
      text: The part itself.
      start: Its first character in the text.
      end: The character after its last.
      logit: Sum of the scores of its first and last token.
      score: Probability among the candidates and no answer.
    """

    text: str
    start: int
    end: int
    logit: float
    score: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answers to a question.

    Attributes:
      text: The answer; empty where none is given.
      start: Its first character in the text, -1 for none.
      end: The character after its last, -1 for none.
      score: Probability of the answer, or of there being none.
      null_difference: Score of no answer minus that of the best candidate.
      candidates: The best candidates, the best first, whether or not one is given.
    """

    text: str
    start: int
    end: int
    score: float
    null_difference: float
    candidates: tuple[Candidate, ...]


def label_windows(windows: Windows, examples: Questions) -> Int[np.ndarray, "windows 2"]:
    """Returns the first and the last token of each window's answer; 0, 0 where the window does not hold it whole.

    Args:
      windows: Questions with the windows of their texts.
      examples: The questions; the first of several answers counts.
    """
    answers: list[Sequence[GoldAnswer]] = list(examples.answers or [])
    labels = np.zeros((len(windows.text_of), 2), np.int32)
    for window, question in enumerate(windows.text_of.tolist()):
        if not answers[question]:
            continue
        gold = answers[question][0]
        place = windows.window(window)
        inside = np.flatnonzero(windows.in_text[place])
        spans = windows.spans[place][inside]
        first = np.flatnonzero((spans[:, 0] <= gold.start) & (gold.start < spans[:, 1]))
        last = np.flatnonzero(
            (spans[:, 0] < gold.start + len(gold.text)) & (gold.start + len(gold.text) <= spans[:, 1])
        )
        if len(first) and len(last):
            labels[window] = inside[first[0]], inside[last[-1]]
    return labels


def find_candidates(
    logits: np.ndarray, inside: Int[np.ndarray, "tokens"], max_answer_length: int, num_best: int
) -> list[tuple[float, int, int]]:
    """Returns the best pairs of a first and a last token as ``(score, first, last)``, the best first.

    Args:
      logits: Scores ``[length, 2]`` of one window.
      inside: Tokens that an answer can have, rising.
      max_answer_length: Most tokens of an answer.
      num_best: Most pairs.
    """
    if not len(inside):
        return []
    starts, ends = logits[inside, 0].astype(np.float64), logits[inside, 1].astype(np.float64)
    width = min(max_answer_length, len(inside))
    padded = np.concatenate([ends, np.full(width - 1, -np.inf)])
    sums = starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, width)
    flat = sums.reshape(-1)
    count = min(num_best, flat.size)
    best = np.argpartition(-flat, count - 1)[:count]
    best = best[np.argsort(-flat[best], kind="stable")]
    pairs = [(float(flat[place]), place // width, place // width + place % width) for place in best.tolist()]
    return [(score, int(inside[first]), int(inside[last])) for score, first, last in pairs if np.isfinite(score)]


class QuestionAnswering(Task):
    """The part of a text that answers a question, or that there is none."""

    name = "question-answering"
    names_labels = False
    scores_tokens = True

    def read(
        self, source: object, setting: Setting, *, split: str = "train", limit: int = 0, labelled: bool = True
    ) -> Questions:
        """See ``Task.read``."""
        return read_questions(source, setting.data, setting.options, split=split, limit=limit, labelled=labelled)

    def reads_lines(self, path: str, config: DataConfig) -> bool:
        """See ``Task.reads_lines``; a question alone has no answer, so every file holds texts too."""
        return False

    def inputs(self, texts: Any, pairs: Any = None) -> Questions:
        """See ``Task.inputs``: questions, and the texts that they are asked of."""
        first, second = as_texts(texts)
        if pairs is not None:
            second = as_texts(pairs)[0]
        if second is None or len(second) != len(first):
            raise DataError(
                f"There are {len(first)} questions, but {len(second or ())} texts that may hold the answers; give one for each."
            )
        ids = [str(index) for index in range(len(first))]
        return Questions(ids, first, second, None, second, (), "inputs")

    def find_labels(self, examples: Any, setting: Setting, known: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
        """See ``Task.find_labels``."""
        return (), ""

    def encode(self, tokenizer: Any, examples: Any, setting: Setting, *, labelled: bool = True) -> Encoded:
        """See ``Task.encode``."""
        if labelled and examples.answers is None:
            raise ConfigError("The questions have no answers, but they are needed; name task.answers_column.")
        windows = cut_texts(tokenizer, examples.contexts, examples.questions, setting, examples.where)
        features = windows.tokens.with_labels(label_windows(windows, examples)) if labelled else windows.tokens
        return Encoded(examples, features, windows)

    def decode(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> list[Answer]:
        """See ``Task.decode``."""
        threshold = setting.options.null_threshold
        if threshold == "model":
            threshold = float(setting.extra.get(THRESHOLD_KEY, 0.0))
        windows, examples = encoded.details, encoded.examples
        found: list[dict[tuple[int, int], float]] = [{} for _ in range(len(examples))]
        nulls = np.full(len(examples), np.inf)
        for window, question in enumerate(windows.text_of.tolist()):
            place = windows.window(window)
            logits = np.asarray(outputs[window], np.float32)[: place.stop - place.start]
            if not np.isfinite(logits).all():
                raise TrainingError(f"The model's outputs are not finite, first for {examples.where(question)}.")
            nulls[question] = min(nulls[question], float(logits[0].sum()))
            inside, spans = np.flatnonzero(windows.in_text[place]), windows.spans[place]
            pairs = find_candidates(logits, inside, setting.options.max_answer_length, setting.options.num_best)
            for score, first, last in pairs:
                key = int(spans[first, 0]), int(spans[last, 1])
                found[question][key] = max(score, found[question].get(key, -np.inf))
        return [
            _choose(examples.contexts[index], found[index], float(nulls[index]), setting.options.num_best, threshold)
            for index in range(len(examples))
        ]

    def score(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> Scored:
        """See ``Task.score``; ``best_f1`` is what ``f1`` would be with the best threshold for no answer."""
        examples = encoded.examples
        if examples.answers is None or encoded.features.labels is None:
            raise DataError(
                "The questions have no answers, so that nothing can be measured; check task.answers_column."
            )
        predictions = self.decode(encoded, outputs, setting)
        golds = [[gold.text for gold in several] for several in examples.answers]
        has_answer = np.array([bool(several) for several in golds])
        given = best_scores([answer.text for answer in predictions], golds)
        always = best_scores([a.candidates[0].text if a.candidates else "" for a in predictions], golds)
        differences = np.array([answer.null_difference for answer in predictions])
        best_f1, threshold = best_threshold(always[:, 1], differences, has_answer)
        metrics = {
            "best_f1": best_f1,
            "best_exact_match": best_threshold(always[:, 0], differences, has_answer)[0],
            "f1": float(given[:, 1].mean()),
            "exact_match": float(given[:, 0].mean()),
        }
        if has_answer.any():
            metrics["has_answer_f1"] = float(given[has_answer, 1].mean())
            metrics["has_answer_exact_match"] = float(given[has_answer, 0].mean())
        if not has_answer.all():
            metrics["no_answer_f1"] = float(given[~has_answer, 1].mean())
        metrics["loss"] = _mean_loss(outputs, encoded.features.labels, encoded.features.lengths)
        rows = np.column_stack([given, always, differences, has_answer])
        statistics = {
            "best_f1": _resampled_best,
            "f1": lambda rows, _: float(rows[:, 1].mean()),
            "exact_match": lambda rows, _: float(rows[:, 0].mean()),
        }
        return Scored(metrics, (rows, rows), statistics, no_report, {THRESHOLD_KEY: threshold})

    def metric_names(self, setting: Setting) -> dict[str, bool]:
        """See ``Task.metric_names``."""
        names = ("best_f1", "best_exact_match", "f1", "exact_match")
        return {**dict.fromkeys(names, True), "loss": False}

    def decision(self, prediction: Answer, setting: Setting) -> tuple[int, int]:
        """See ``Task.decision``."""
        return prediction.start, prediction.end

    def texts(self, examples: Any) -> tuple[Sequence[str], ...]:
        """See ``Task.texts``."""
        return examples.questions, examples.contexts

    def describe(self, examples: Any, index: int, prediction: Any) -> dict[str, Any]:
        """See ``Task.describe``."""
        return {
            "id": examples.ids[index],
            "question": examples.questions[index],
            "answer": prediction.text,
            "start": prediction.start,
            "end": prediction.end,
            "score": prediction.score,
            "null_difference": prediction.null_difference,
            "candidates": [dataclasses.asdict(candidate) for candidate in prediction.candidates],
        }

    def lines(self, examples: Any, index: int, prediction: Any) -> Iterator[str]:
        """See ``Task.lines``."""
        place = f"{prediction.start}\t{prediction.end}" if prediction.text else "-\t-"
        shown = one_line(prediction.text) or "(no answer)"
        yield f"{shown}\t{prediction.score:.4f}\t{place}\t{one_line(examples.questions[index])}"


def _resampled_best(rows: np.ndarray, _: np.ndarray) -> float:
    return best_threshold(rows[:, 3], rows[:, 4], rows[:, 5] > 0)[0]


def _choose(context: str, found: dict[tuple[int, int], float], null: float, num_best: int, threshold: float) -> Answer:
    ordered = sorted(found.items(), key=lambda item: -item[1])[:num_best]
    shares = softmax(np.array([null, *(score for _, score in ordered)]))
    candidates = tuple(
        Candidate(context[start:end], start, end, score, float(share))
        for ((start, end), score), share in zip(ordered, shares[1:], strict=True)
    )
    if not candidates:
        return Answer("", -1, -1, 1.0, 0.0, ())
    difference = null - candidates[0].logit
    if difference > threshold:
        return Answer("", -1, -1, float(shares[0]), difference, candidates)
    best = candidates[0]
    return Answer(best.text, best.start, best.end, best.score, difference, candidates)


def _mean_loss(outputs: Outputs, labels: np.ndarray, lengths: np.ndarray) -> float:
    losses = []
    for row, (output, length) in enumerate(zip(outputs, lengths.tolist(), strict=True)):
        logits = np.asarray(output, np.float64)[:length]
        partition = np.log(np.exp(logits - logits.max(axis=0)).sum(axis=0)) + logits.max(axis=0)
        losses += [float(partition[end] - logits[labels[row, end], end]) for end in (0, 1)]
    return float(np.mean(losses)) if losses else 0.0
