"""Relation classification: how two marked entities of a text belong together."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flaxbert.config import DataConfig
from flaxbert.data.columns import LabelSet, count_labels
from flaxbert.data.relations import Relations, mark_all, read_relations
from flaxbert.data.sources import as_texts
from flaxbert.data.windows import first_windows
from flaxbert.errors import DataError
from flaxbert.evaluation.alignment import align
from flaxbert.evaluation.metrics import mean_loss
from flaxbert.evaluation.relations import relation_f1
from flaxbert.evaluation.report import classification_report
from flaxbert.tasks.base import Encoded, Outputs, Scored, Setting, Task, cut_texts, one_line
from flaxbert.tasks.sequence_classification import Prediction, predictions_from_logits, stack_rows

MARKERS_KEY = "entity_markers"
"""Key of ``config.json`` under which a model keeps how entities were marked in its training."""


class RelationClassification(Task):
    """How two marked entities of a text belong together."""

    name = "relation-classification"

    def read(
        self, source: object, setting: Setting, *, split: str = "train", limit: int = 0, labelled: bool = True
    ) -> Relations:
        """See ``Task.read``."""
        symbols = setting.options.entity_markers == "symbols"
        return read_relations(source, setting.data, symbols=symbols, split=split, limit=limit, labelled=labelled)

    def inputs(self, texts: Any, pairs: Any = None) -> Relations:
        """See ``Task.inputs``: texts with the tags <e1> and <e2>."""
        first, second = as_texts(texts)
        if pairs is not None or second is not None:
            raise DataError(
                "A relation stands in one text, with its entities in the tags <e1> and <e2>; pairs have none."
            )
        return mark_all(first, None, [f"input {index}" for index in range(len(first))], "inputs", symbols=True)

    def reads_lines(self, path: str, config: DataConfig) -> bool:
        """See ``Task.reads_lines``."""
        return config.format != "semeval"

    def find_labels(self, examples: Any, setting: Setting, known: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
        """See ``Task.find_labels``."""
        found = sorted({setting.data.label_map.get(label, label) for label in examples.raw_labels or ()})
        names = tuple(setting.data.labels) or tuple(known) or tuple(found)
        if len(names) < 2:
            raise DataError(
                f"{examples.name}: there is only the relation {', '.join(names) or 'none'}; two are needed."
            )
        relation_f1(names)
        return names, ""

    def encode(self, tokenizer: Any, examples: Any, setting: Setting, *, labelled: bool = True) -> Encoded:
        """See ``Task.encode``."""
        symbols = setting.extra.get(MARKERS_KEY, setting.options.entity_markers) == "symbols"
        if symbols != examples.symbols:  # the model was trained on texts marked in the other way
            examples = mark_all(examples.marked, examples.raw_labels, examples.places, examples.name, symbols)
        windows = first_windows(cut_texts(tokenizer, examples.texts, None, setting, examples.where, stride=0))
        mask = np.zeros(len(windows.tokens.input_ids), np.int32)
        for index in range(len(examples)):
            place = windows.window(index)
            spans, inside = windows.spans[place], windows.in_text[place]
            for number, (start, end) in enumerate(examples.entities[index].tolist(), start=1):
                held = inside & (spans[:, 0] < end) & (spans[:, 1] > start)
                if not held.any():
                    raise DataError(
                        f"{examples.where(index)}: the entity {examples.names[index][number - 1]!r} is not within the first "
                        f"{setting.max_length} tokens; raise data.max_length, or shorten the text."
                    )
                mask[place][held] = number
        features = dataclasses.replace(windows.tokens, token_values={"entity_mask": mask})
        if not labelled:
            return Encoded(examples, features)
        if examples.raw_labels is None:
            raise DataError(f"{examples.name}: the relations are not known; name data.label_column.")
        names, renamed = LabelSet(setting.labels), setting.data.label_map
        numbers = [
            names.number(renamed.get(label, label), examples.where(index))
            for index, label in enumerate(examples.raw_labels)
        ]
        return Encoded(examples, features.with_labels(np.array(numbers, np.int32)))

    def decode(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> list[Prediction]:
        """See ``Task.decode``."""
        return predictions_from_logits(setting.labels, "", stack_rows(outputs, len(setting.labels)))

    def score(self, encoded: Encoded, outputs: Outputs, setting: Setting) -> Scored:
        """See ``Task.score``."""
        labels = encoded.features.labels
        if labels is None:
            raise DataError("The examples have no relations, so that nothing can be measured; check data.label_column.")
        names, official = setting.labels, relation_f1(setting.labels)
        logits, predictions, truth = align("single_label", np.asarray(outputs), labels)
        metrics = {
            "f1_macro": official(predictions, truth),
            "accuracy": float(np.mean(predictions == truth)),
            "loss": mean_loss("single_label", logits, truth) or 0.0,
        }
        return Scored(
            metrics=metrics,
            rows=(predictions, truth),
            statistics={"f1_macro": official, "accuracy": "accuracy"},
            make_report=lambda: classification_report("sequence-classification", "", logits, truth, names),
            changes={MARKERS_KEY: "symbols" if encoded.examples.symbols else "none"},
        )

    def metric_names(self, setting: Setting) -> dict[str, bool]:
        """See ``Task.metric_names``; f1_macro is the official one, over relations with direction."""
        return {"f1_macro": True, "accuracy": True, "loss": False}

    def summary(self, encoded: Encoded, setting: Setting) -> dict[str, int]:
        """See ``Task.summary``."""
        return count_labels(encoded.features.labels, LabelSet(setting.labels), "single_label_classification")

    def describe(self, examples: Any, index: int, prediction: Any) -> dict[str, Any]:
        """See ``Task.describe``."""
        first, second = examples.names[index]
        described = {"text": examples.marked[index], "entity1": first, "entity2": second}
        return {**described, "label": prediction.label, "score": prediction.score, "scores": prediction.scores}

    def lines(self, examples: Any, index: int, prediction: Any) -> Iterator[str]:
        """See ``Task.lines``."""
        first, second = (one_line(name) for name in examples.names[index])
        yield f"{prediction.label}\t{prediction.score:.4f}\t{first}\t{second}\t{one_line(examples.marked[index])}"
