"""Deciding about the labels of a classifier: kept, renamed, reordered, or newly drawn."""

import dataclasses
from collections.abc import Sequence

from flaxbert.architecture import ModelConfig
from flaxbert.errors import ConfigError, nearest

CLASSIFIER_TASKS = ("sequence-classification", "token-classification", "relation-classification")
"""Tasks with labels."""

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
"""What a classifier's outputs can mean."""


@dataclasses.dataclass(frozen=True)
class LabelPlan:
    """What happens to the classifier.

    Attributes:
      config: Architecture with the final labels and problem type.
      keeps_classifier: Whether the checkpoint's classifier is used.
      order: Old position of each label where the classifier has to be reordered.
      notes: What was decided.
    """

    config: ModelConfig
    keeps_classifier: bool = True
    order: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def _check(task: str, labels: Sequence[str], problem_type: str | None) -> None:
    if problem_type and problem_type not in PROBLEM_TYPES:
        raise ConfigError(
            f"Unknown problem_type '{problem_type}'; known are {', '.join(PROBLEM_TYPES)}."
            + nearest(problem_type, PROBLEM_TYPES)
        )
    if labels and task not in CLASSIFIER_TASKS:
        raise ConfigError(f"labels were given, but a model for '{task}' has no classifier.")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"The label '{twice[0]}' is given twice in {list(labels)}.")


def plan_labels(
    config: ModelConfig,
    task: str,
    labels: Sequence[str] | None,
    problem_type: str | None,
    stored_labels: int | None,
    declares_labels: bool,
) -> LabelPlan:
    """Decides about labels, problem type and classifier.

    Args:
      config: Architecture as the checkpoint says.
      task: Canonical task name.
      labels: Names asked for; None or empty keeps the checkpoint's.
      problem_type: Problem type asked for; None or empty keeps the checkpoint's.
      stored_labels: Outputs of the checkpoint's classifier; None where it has none for this task.
      declares_labels: Whether the checkpoint's config says how many labels there are.

    Returns:
      The final config, and what to do with the classifier.

    Raises:
      ConfigError: Labels for a task without classifier, a label twice, or an unknown problem type.
    """
    labels = tuple(labels or ())
    _check(task, labels, problem_type)
    if task not in CLASSIFIER_TASKS:
        return LabelPlan(config)
    asked = len(labels) or (1 if problem_type == "regression" else 0)
    if not asked:
        count = config.num_labels if declares_labels or stored_labels is None else stored_labels
        config = config.replace(num_labels=count, labels=config.labels if len(config.labels) == count else ())
        return LabelPlan(_with_problem_type(config, task, problem_type or config.problem_type))
    old = config.labels
    same_number = stored_labels == asked
    kind = problem_type or (config.problem_type if same_number else "")
    config = _with_problem_type(config.replace(num_labels=asked, labels=labels), task, kind)
    if stored_labels is None:
        return LabelPlan(config)
    if not same_number:
        note = f"The classifier has {stored_labels} labels, {asked} are asked for; it is newly initialised."
        return LabelPlan(config, keeps_classifier=False, notes=(note,))
    if not labels or old == labels or not old:
        return LabelPlan(config.replace(labels=labels or (old if len(old) == asked else ())))
    if set(old) == set(labels):
        note = f"The classifier's labels {', '.join(old)} are reordered to {', '.join(labels)}."
        return LabelPlan(config, order=tuple(old.index(label) for label in labels), notes=(note,))
    note = f"The classifier is kept; its labels {', '.join(old)} are now called {', '.join(labels)}."
    return LabelPlan(config, notes=(note,))


def _with_problem_type(config: ModelConfig, task: str, problem_type: str) -> ModelConfig:
    if task != "sequence-classification":
        return config.replace(problem_type="")
    if not problem_type and config.num_labels == 1:
        problem_type = "regression"
    return config.replace(problem_type=problem_type)
