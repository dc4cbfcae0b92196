"""Labels and scores of texts and pairs, reranking, and zero-shot classification."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.retrieval import activate_scores
from flaxbert.serve.drift_windows import MOST_OF_A_REQUEST, Outcome
from flaxbert.serve.errors import RequestError
from flaxbert.serve.functions import LOGITS, MASK_TASKS, MASKED, NUM_SLOTS
from flaxbert.serve.operations.masks import mask_rows
from flaxbert.serve.operations.work import Subject, Truncation, Work, columns_of, encode
from flaxbert.serve.rows import Row, rows_of
from flaxbert.tasks.base import Encoded, softmax
from flaxbert.tasks.registry import get_task

SEQUENCE_TASKS = frozenset({"sequence-classification", "next-sentence-prediction"})

NLI_TEMPLATE = "This example is {}."
CLOZE_TEMPLATE = "This example is about {}."


def require_classifier(subject: Subject) -> None:
    """Refuses a model that does not label texts.

    Args:
      subject: The model.

    Raises:
      RequestError: It is for another task.
    """
    if subject.model.task not in SEQUENCE_TASKS:
        raise RequestError("backend", f"The model is for {subject.model.task}, which labels no texts.")


def label_names(subject: Subject) -> Sequence[str]:
    """Returns the labels of a classifier in the order of their numbers.

    Args:
      subject: The model.
    """
    if subject.model.task == "next-sentence-prediction":
        return ("is_next", "is_not_next")
    return subject.model.config.label_names


def classify(
    subject: Subject,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    truncation: Truncation = Truncation(),
    *,
    raw_scores: bool = False,
) -> Work:
    """Scores of all labels, as ``Model.predict`` gives them.

    Args:
      subject: The model.
      texts: The texts.
      pairs: Second texts, or None.
      truncation: What happens to texts that are too long.
      raw_scores: Whether scores are logits instead of probabilities.

    Returns:
      Work whose answer is, for each text, a list of ``{"label", "score"}``, best first.

    Raises:
      RequestError: The model is no classifier.
    """
    require_classifier(subject)
    features = encode(subject, texts, pairs, truncation)
    task, setting, names = get_task(subject.model.task), subject.setting(), label_names(subject)

    def finish(results: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        if raw_scores:
            rows: Sequence[Mapping[str, float]] = [dict(zip(names, row.tolist(), strict=True)) for row in results]
        else:
            rows = [p.scores for p in task.decode(Encoded(None, features), np.stack(results), setting)]
        return [
            [{"label": name, "score": score} for name, score in sorted(row.items(), key=lambda item: -item[1])]
            for row in rows
        ]

    return Work(LOGITS, rows_of(features), finish, columns_of(texts, pairs), _outcome(subject, raw_scores))


def watched_labels(subject: Subject) -> Sequence[str]:
    """Returns the labels whose shares tell how the answers of a model are distributed; none where it chooses no labels.

    Args:
      subject: The model.
    """
    config = subject.model.config
    if subject.model.task == "token-classification":
        return config.label_names
    if subject.model.task not in SEQUENCE_TASKS or config.problem_type == "regression":
        return ()
    names = label_names(subject)
    return names if len(names) > 1 else ()


def _outcome(subject: Subject, raw_scores: bool) -> Callable[[Any], Outcome] | None:
    """Returns what reads labels and confidences from the answers of ``classify``."""
    if not watched_labels(subject):
        return None
    several = subject.model.config.problem_type == "multi_label_classification"
    least = 0.0 if raw_scores else 0.5  # a logit of 0 is a probability of one half

    def outcome(answer: list[list[dict[str, Any]]]) -> Outcome:
        rows = answer[:MOST_OF_A_REQUEST]
        best = [row[0] for row in rows]
        chosen = [entry for row in rows for entry in row if entry["score"] >= least] if several else best
        return Outcome([e["label"] for e in chosen], () if raw_scores else [e["score"] for e in best])

    return outcome


def rerank(
    subject: Subject,
    query: str,
    texts: Sequence[str],
    truncation: Truncation = Truncation(),
    *,
    raw_scores: bool = False,
    return_text: bool = False,
) -> Work:
    """Texts in the order in which they answer a query, as ``retrieval.rerank`` gives them.

    Args:
      subject: The model.
      query: The query.
      texts: The texts.
      truncation: What happens to pairs that are too long.
      raw_scores: Whether scores are logits.
      return_text: Whether the answer repeats the texts.

    Returns:
      Work whose answer is a list of ``{"index", "score"}``, best first.

    Raises:
      RequestError: The model is no cross-encoder.
    """
    model = subject.model
    if model.task != "sequence-classification" or model.config.num_labels != 1:
        raise RequestError("backend", "The model is no cross-encoder: it has not one score for a pair of texts.")
    queries = [query] * len(texts)
    features = encode(subject, queries, texts, truncation)

    def finish(results: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        scores = np.asarray(results, np.float64).reshape(-1)
        if not raw_scores:
            scores = activate_scores(model.config.extra, scores)
        order = np.argsort(-scores, kind="stable")
        return [
            {"index": int(place), "score": float(scores[place]), **({"text": texts[place]} if return_text else {})}
            for place in order
        ]

    return Work(LOGITS, rows_of(features), finish, columns_of(queries, texts))


def zero_shot(
    subject: Subject,
    texts: Sequence[str],
    labels: Sequence[str],
    truncation: Truncation = Truncation(),
    *,
    multi_label: bool = False,
    template: str | None = None,
) -> Work:
    """How well labels that the model never saw fit texts: by a model of entailment (Yin et al., 2019), or by what a masked
    language model puts in the place of the label (Schick and Schütze, 2021).

    Args:
      subject: The model.
      texts: The texts.
      labels: The labels, in words.
      truncation: What happens to texts that are too long.
      multi_label: Whether each label is judged alone; needs a model of entailment.
      template: Sentence with ``{}`` where the label stands.

    Returns:
      Work whose answer is, for each text, a list of ``{"label", "score"}``, best first.

    Raises:
      RequestError: The model can do neither, or an argument is wrong.
    """
    if not labels or len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        raise RequestError("validation", "candidate_labels must be different words, at least one.")
    cloze = subject.model.task in MASK_TASKS and MASKED in subject.functions
    template = template or (CLOZE_TEMPLATE if cloze else NLI_TEMPLATE)
    if template.count("{}") != 1:
        raise RequestError("validation", "hypothesis_template must hold {} once, where the label stands.")
    if cloze:
        if multi_label:
            raise RequestError("validation", "multi_label needs a model of entailment; this one fills masks.")
        return _by_cloze(subject, texts, labels, truncation, template)
    return _by_entailment(subject, texts, labels, truncation, template, multi_label)


def _entailment(subject: Subject) -> tuple[int, int | None]:
    """Returns the numbers of the labels that mean yes and no."""
    if subject.model.task == "sequence-classification" and subject.model.config.num_labels > 1:
        names = [name.lower() for name in subject.model.config.label_names]
        yes = next((place for place, name in enumerate(names) if name.startswith("entail")), None)
        if yes is not None:
            return yes, next((place for place, name in enumerate(names) if name.startswith("contra")), None)
    raise RequestError(
        "backend",
        "Zero-shot classification needs a model of entailment (a label 'entailment') or one that fills masks.",
    )


def _ranked(labels: Sequence[str], scores: np.ndarray) -> list[dict[str, Any]]:
    order = np.argsort(-scores, kind="stable")
    return [{"label": labels[place], "score": float(scores[place])} for place in order]


def _by_entailment(
    subject: Subject,
    texts: Sequence[str],
    labels: Sequence[str],
    truncation: Truncation,
    template: str,
    multi_label: bool,
) -> Work:
    yes, no = _entailment(subject)
    premises = [text for text in texts for _ in labels]
    hypotheses = [template.replace("{}", label) for _ in texts for label in labels]
    features = encode(subject, premises, hypotheses, truncation)

    def finish(results: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        logits = np.stack(results).astype(np.float64).reshape(len(texts), len(labels), -1)
        if multi_label or len(labels) == 1:
            against = logits[..., no] if no is not None else np.delete(logits, yes, axis=-1).max(axis=-1)
            scores = softmax(np.stack([against, logits[..., yes]], axis=-1))[..., 1]
        else:
            scores = softmax(logits[..., yes])
        return [_ranked(labels, row) for row in scores]

    return Work(LOGITS, rows_of(features), finish, columns_of(premises, hypotheses))


def _by_cloze(
    subject: Subject, texts: Sequence[str], labels: Sequence[str], truncation: Truncation, template: str
) -> Work:
    with subject.tokenizers.borrow() as tokenizer:
        words = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"] for label in labels]
        mask = tokenizer.mask_token
    longest = max(len(ids) for ids in words)
    if longest > NUM_SLOTS or not all(words):
        raise RequestError("validation", f"A label may have 1 to {NUM_SLOTS} tokens with a model that fills masks.")
    sizes = sorted({len(ids) for ids in words})
    rows: list[Row] = []
    for text in texts:
        for size in sizes:
            sentence = f"{text} {template.replace('{}', ' '.join([mask] * size))}"
            found, _ = mask_rows(subject, [sentence], truncation)
            rows.extend(found)

    def finish(results: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        answers = []
        for place in range(len(texts)):
            by_size = dict(zip(sizes, results[place * len(sizes) : (place + 1) * len(sizes)], strict=True))
            logs = {size: _log_softmax(scores[:size]) for size, scores in by_size.items()}
            means = [
                math.fsum(logs[len(ids)][slot, number] for slot, number in enumerate(ids)) / len(ids) for ids in words
            ]
            answers.append(_ranked(labels, softmax(np.asarray(means))))
        return answers

    return Work(MASKED, rows, finish, columns_of(texts))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
