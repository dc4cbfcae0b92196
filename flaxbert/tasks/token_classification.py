"""Token classification: entities in a text, or a label for every word."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flaxbert.config import IGNORED_LABEL, DataConfig
from flaxbert.data.columns import LabelSet, count_labels
from flaxbert.data.entity_tags import (
    Span,
    decode_strict,
    decode_tags,
    encode_spans,
    is_entity_tag,
    scheme_of,
    split_tag,
    tag_names,
)
from flaxbert.data.sources import as_texts, is_table_file
from flaxbert.data.tagged import TaggedTexts, find_words, is_conll, read_tagged
from flaxbert.data.windows import Windows
from flaxbert.errors import ConfigError, DataError
from flaxbert.evaluation.alignment import align
from flaxbert.evaluation.entities import count_spans, entity_report, precision_recall_f1, span_f1
from flaxbert.evaluation.metrics import METRICS, compute_metrics, mean_loss
from flaxbert.evaluation.report import ClassificationReport, classification_report
from flaxbert.tasks.base import Encoded, Outputs, Scored, Setting, Task, cut_texts, one_line, softmax


@dataclasses.dataclass(frozen=True)
class Entity:
    """A part of a text with a label.

    Attributes:
      text: The part itself.
      label: Its label.
      start: Its first character in the whole text.
      end: The character after its last.
      score: Mean probability of the tags of its words.
    """

    text: str
    label: str
    start: int
    end: int
    score: float


@dataclasses.dataclass(frozen=True)
class TaggedText:
    """What a tagger says of a text.

    Attributes:
      text: The text.
      entities: Its entities, or its words where these are labelled singly.
      tags: The tag of every word.
    """

    text: str
    entities: tuple[Entity, ...]
    tags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Placed:
    """The token that speaks for every word: its first piece, in the window that shows most around it.

    Attributes:
      text: Number of each word's text.
      word: Number of the word in its text.
      window: Number of the window.
      token: Number of the token in the window.
      labels: Number of each word's tag, or None.
    """

    text: Int[np.ndarray, "placed"]
    word: Int[np.ndarray, "placed"]
    window: Int[np.ndarray, "placed"]
    token: Int[np.ndarray, "placed"]
    labels: Int[np.ndarray, "placed"] | None


def place_words(windows: Windows, examples: TaggedTexts) -> Placed:
    """Finds the token that speaks for every word.

    Args:
      windows: The texts as windows of tokens.
      examples: The texts with their words.

    Returns:
      The places of all words that some token stands for, text by text.
    """
    best: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    for window, text in enumerate(windows.text_of.tolist()):
        place = windows.window(window)
        inside = np.flatnonzero(windows.in_text[place])
        starts, ends = examples.words[text][:, 0], examples.words[text][:, 1]
        spans = windows.spans[place][inside]
        characters = examples.texts[int(text)]
        first = np.array([s + (characters[s].isspace() and s + 1 < e) for s, e in spans.tolist()], np.int64)
        words = np.searchsorted(starts, first, side="right") - 1
        for order, (token, word, start) in enumerate(zip(inside.tolist(), words.tolist(), first.tolist(), strict=True)):
            if word < 0 or start >= ends[word]:
                continue
            context = min(order, len(inside) - 1 - order)
            before = best.get((text, word))
            # The first piece is the one that starts first; of windows that show it, that with most around it speaks.
            if before is None or (start, -context) < before[:2]:
                best[text, word] = (start, -context, window, token)
    keys = sorted(best)
    columns = np.array([[*key, *best[key][2:]] for key in keys], np.int64).reshape(-1, 4)
    return Placed(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3], None)


class TokenClassification(Task):
    """Entities in a text, or a label for every word."""

    name = "token-classification"
    scores_tokens = True

    def read(
        self, source: object, setting: Setting, *, split: str = "train", limit: int = 0, labelled: bool = True
    ) -> TaggedTexts:
        """See ``Task.read``."""
        return read_tagged(source, setting.data, setting.options, split=split, limit=limit, labelled=labelled)

    def reads_lines(self, path: str, config: DataConfig) -> bool:
        """See ``Task.reads_lines``; a file of words must be called conll by ``data_format`` or its ending."""
        return not (is_table_file(path) or (is_conll(path, config) and not path.endswith((".txt", ".txt.gz"))))

    def inputs(self, texts: Any, pairs: Any = None) -> TaggedTexts:
        """See ``Task.inputs``."""
        first, second = as_texts(texts)
        if pairs is not None or second is not None:
            raise DataError("A tagger takes single texts, not pairs.")
        return TaggedTexts(first, [find_words(text) for text in first], None, None, "inputs")

    def find_labels(self, examples: Any, setting: Setting, known: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
        """See ``Task.find_labels``."""
        given = tuple(setting.data.labels)
        if examples.tags is not None:
            found = sorted({tag for tags in examples.tags for tag in tags})
            return given or tuple(known) or tuple(found), ""
        if given and not all(is_entity_tag(name) for name in given):
            given = tag_names(given, setting.options.model_scheme)
        if given or known:
            return given or tuple(known), ""
        labels = sorted({label for spans in examples.entities for label, _, _ in spans})
        if not labels:
            raise DataError(f"{examples.name}: there is no entity in the examples, so there is nothing to learn.")
        return tag_names(labels, setting.options.model_scheme), ""

    def encode(self, tokenizer: Any, examples: Any, setting: Setting, *, labelled: bool = True) -> Encoded:
        """See ``Task.encode``."""
        windows = cut_texts(tokenizer, examples.texts, None, setting, examples.where)
        placed = place_words(windows, examples)
        if not labelled:
            return Encoded(examples, windows.tokens, placed)
        tags = _tags_of(examples, setting)
        _warn_lost(examples, placed, tags, _blank(setting.labels))
        names = LabelSet(setting.labels)
        pairs = zip(placed.text.tolist(), placed.word.tolist(), strict=True)
        numbers = np.array(
            [names.number(tags[int(text)][int(word)], examples.where_word(text, word)) for text, word in pairs],
            np.int64,
        )
        labels = np.full(len(windows.tokens.input_ids), IGNORED_LABEL, np.int32)
        labels[windows.tokens.offsets[placed.window] + placed.token] = numbers
        features = dataclasses.replace(windows.tokens, token_values={"labels": labels})
        return Encoded(examples, features, dataclasses.replace(placed, labels=numbers))

    def decode(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> list[TaggedText]:
        """See ``Task.decode``."""
        examples, placed = encoded.examples, encoded.details
        logits = _word_logits(placed, outputs, len(setting.labels))
        best = logits.argmax(axis=1)
        tags, certain = _spread(examples, placed, best, softmax(logits).max(axis=1), setting.labels)
        return [
            _tagged(examples.texts[index], examples.words[index], tags[index], certain[index])
            for index in range(len(examples))
        ]

    def score(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> Scored:
        """See ``Task.score``."""
        examples, placed = encoded.examples, encoded.details
        if placed.labels is None:
            raise DataError("The examples have no tags, so that nothing can be measured; check task.tag_column.")
        names = setting.labels
        logits, best, truth = align("token", _word_logits(placed, outputs, len(names)), placed.labels)
        if examples.tags is not None:
            return _score_single_labels(self.name, logits, best, truth, names)
        tags, _ = _spread(examples, placed, best, best, names)
        labels = _entity_labels(names)
        predicted = [decode_tags(sentence) for sentence in tags]
        counts = count_spans(predicted, examples.entities, labels)
        strict = [decode_strict(sentence, scheme_of(names)) for sentence in tags]
        strict_counts = count_spans(strict, examples.entities, labels)
        precision, recall, f1 = precision_recall_f1(*counts.sum(axis=(0, 1)).tolist())
        accuracy = float(np.mean(best == truth))
        metrics = {
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "f1_strict": precision_recall_f1(*strict_counts.sum(axis=(0, 1)).tolist())[2],
            "accuracy": accuracy,
            "loss": mean_loss("token", logits, truth) or 0.0,
        }
        rows = counts.sum(axis=1)
        return Scored(metrics, (rows, rows), {"f1": span_f1}, lambda: entity_report(counts, labels, accuracy))

    def metric_names(self, setting: Setting) -> dict[str, bool]:
        """See ``Task.metric_names``."""
        if setting.labels and not all(is_entity_tag(name) for name in setting.labels):
            return {**{name: entry.higher_is_better for name, entry in METRICS["token"].items()}, "loss": False}
        names = ("f1", "precision", "recall", "f1_strict", "accuracy")
        return {**dict.fromkeys(names, True), "loss": False}

    def decision(self, prediction: TaggedText, setting: Setting) -> tuple[str, ...]:
        """See ``Task.decision``."""
        return prediction.tags

    def summary(self, encoded: Encoded, setting: Setting) -> dict[str, int]:
        """See ``Task.summary``."""
        return count_labels(encoded.details.labels, LabelSet(setting.labels), "single_label_classification")

    def describe(self, examples: Any, index: int, prediction: Any) -> dict[str, Any]:
        """See ``Task.describe``."""
        return {"text": prediction.text, "entities": [dataclasses.asdict(entity) for entity in prediction.entities]}

    def lines(self, examples: Any, index: int, prediction: Any) -> Iterator[str]:
        """See ``Task.lines``."""
        yield f"# {one_line(prediction.text)}"
        for entity in prediction.entities:
            yield f"{entity.start}\t{entity.end}\t{entity.label}\t{entity.score:.4f}\t{one_line(entity.text)}"


def _entity_labels(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(split_tag(name)[1] for name in names if name != "O"))


def _tags_of(examples: TaggedTexts, setting: Setting) -> Sequence[Sequence[str]]:
    """Returns the tags of all words in the scheme of the model."""
    if examples.tags is not None:
        return examples.tags
    if examples.entities is None:
        raise ConfigError("The examples have no tags, but they are needed; name task.tag_column or task.span_column.")
    known = set(_entity_labels(setting.labels))
    scheme = scheme_of(setting.labels)
    tags = []
    for index, spans in enumerate(examples.entities):
        unknown = next((span for span in spans if span[0] not in known), None)
        if unknown is not None:
            LabelSet(tuple(sorted(known))).number(unknown[0], examples.where_word(index, unknown[1]))
        tags.append(encode_spans(spans, len(examples.words[index]), scheme))
    return tags


def _blank(names: Sequence[str]) -> str:
    return "O" if "O" in names else names[0]


def _warn_lost(examples: TaggedTexts, placed: Placed, tags: Sequence[Sequence[str]], blank: str) -> None:
    """Warns of words with a tag of their own that no token stands for."""
    seen = set(zip(placed.text.tolist(), placed.word.tolist(), strict=True))
    lost = [
        (text, word)
        for text, several in enumerate(tags)
        for word, tag in enumerate(several)
        if tag != blank and (text, word) not in seen
    ]
    if lost:
        warnings.warn(
            f"{examples.where_word(*lost[0])}: the tokenizer drops all characters of this word, so that the model never sees it and "
            f"gives it the tag {blank}; so it is with {len(lost)} words that have another tag.",
            stacklevel=3,
        )


def _word_logits(placed: Placed, outputs: Outputs, num_labels: int) -> np.ndarray:
    rows = [np.asarray(outputs[w])[t] for w, t in zip(placed.window.tolist(), placed.token.tolist(), strict=True)]
    return np.stack(rows).astype(np.float32) if rows else np.zeros((0, num_labels), np.float32)


def _spread(
    examples: TaggedTexts, placed: Placed, best: np.ndarray, scores: np.ndarray, names: Sequence[str]
) -> tuple[list[list[str]], list[list[float]]]:
    """Returns tags and scores by text; O for words that no token stands for."""
    blank = _blank(names)
    tags = [[blank] * len(words) for words in examples.words]
    certain = [[0.0] * len(words) for words in examples.words]
    for text, word, number, score in zip(
        placed.text.tolist(), placed.word.tolist(), best.tolist(), scores.tolist(), strict=True
    ):
        tags[text][word] = names[number]
        certain[text][word] = float(score)
    return tags, certain


def _tagged(text: str, words: np.ndarray, tags: Sequence[str], scores: Sequence[float]) -> TaggedText:
    if all(is_entity_tag(tag) for tag in tags):
        spans: list[Span] = decode_tags(tags)
    else:
        spans = [(tag, place, place + 1) for place, tag in enumerate(tags)]
    entities = [
        Entity(
            text=text[int(words[first, 0]) : int(words[end - 1, 1])],
            label=label,
            start=int(words[first, 0]),
            end=int(words[end - 1, 1]),
            score=float(np.mean(scores[first:end])),
        )
        for label, first, end in spans
    ]
    return TaggedText(text, tuple(entities), tuple(tags))


def _score_single_labels(
    task: str, logits: np.ndarray, best: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> Scored:
    values = compute_metrics(task, "", logits, truth, names)
    metrics = {name: value for name, value in values.items() if not name.startswith("f1/")}

    def report() -> ClassificationReport | None:
        return classification_report(task, "", logits, truth, names)

    return Scored(metrics, (best, truth), {name: name for name in METRICS["token"]}, report)
