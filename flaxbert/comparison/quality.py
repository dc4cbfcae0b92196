"""How good models are on the same labelled examples, and whether they differ by more than chance."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from flaxbert.architecture import TASK_HEADS
from flaxbert.comparison.folders import ModelFolder
from flaxbert.config import DataConfig, TaskConfig
from flaxbert.errors import ConfigError
from flaxbert.evaluation.bootstrap import Interval, bootstrap_interval
from flaxbert.evaluation.metrics import METRICS
from flaxbert.evaluation.score import Judged, judge
from flaxbert.evaluation.similarity import judge_pairs
from flaxbert.model import Model
from flaxbert.tasks.registry import TASKS

SAME = "share of the same decisions"
"""Name of the agreement of labels, tags, answers and choices."""

CORRELATED = "Spearman correlation of the outputs"
"""Name of the agreement of numbers."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good a model is.

    Attributes:
      num_examples: Number of examples.
      metrics: The task's metrics by name.
      primary: The metric that stands first.
      higher_is_better: Whether more of it is better.
      interval: Its bootstrap interval, or None where it has none.
      difference: The model's metric minus the reference's with the interval from paired draws; None for the reference.
      agreement_name: What the agreement is, ``SAME`` or ``CORRELATED``; empty for the reference.
      agreement: Agreement with the reference, whatever is right; None for the reference.
    """

    num_examples: int
    metrics: Mapping[str, float]
    primary: str
    higher_is_better: bool
    interval: Interval | None
    difference: Interval | None = None
    agreement_name: str = ""
    agreement: float | None = None


def judge_model(model: Model, config: DataConfig, source: str, task: TaskConfig, batch_size: int) -> Judged:
    """Runs a model on labelled examples, or on scored pairs where it makes sentence vectors.

    Args:
      model: The model.
      config: Columns and format.
      source: The examples.
      task: What the task needs beyond texts and labels.
      batch_size: Most texts computed together.

    Returns:
      Metrics, rows for intervals, and decisions.
    """
    if not TASK_HEADS[model.task]:
        return judge_pairs(model, config, source, batch_size=batch_size)
    return judge(model, config, source, batch_size=batch_size, options=task)


def quality_of(judged: Judged, reference: Judged | None = None, num_resamples: int = 1000) -> Quality:
    """Returns the quality of a model with intervals, and against the reference where one is given.

    Args:
      judged: What the model made of the examples.
      reference: What the reference made of the same examples.
      num_resamples: Draws of an interval.

    Raises:
      ConfigError: The two do not stand for the same examples.
    """
    scored, metric = judged.scored, judged.primary
    statistic = scored.statistics.get(metric)
    interval = None
    if statistic is not None:
        interval = bootstrap_interval(*scored.rows, statistic, num_resamples=num_resamples)
    whole = Quality(judged.num_examples, scored.metrics, metric, judged.higher_is_better, interval)
    if reference is None:
        return whole
    theirs, truth = reference.scored.rows
    if len(theirs) != len(scored.rows[0]) or judged.num_examples != reference.num_examples:
        raise ConfigError(
            f"it was scored on {len(scored.rows[0])} rows of {judged.num_examples} examples and the reference on "
            f"{len(theirs)} of {reference.num_examples}, so that they can not be drawn in pairs."
        )
    difference = None
    if statistic is not None:
        difference = bootstrap_interval(theirs, truth, statistic, other=scored.rows[0], num_resamples=num_resamples)
    name, agreement = agree(judged, reference)
    return dataclasses.replace(whole, difference=difference, agreement_name=name, agreement=agreement)


def agree(first: Judged, second: Judged) -> tuple[str, float]:
    """Returns what the agreement of two models is and how large: of decisions their share that is the same, tags of texts word by
    word; of numbers their rank correlation.

    Args:
      first: One model.
      second: The other, on the same examples.
    """
    mine, theirs = first.decisions, second.decisions
    if all(isinstance(decision, float) for decision in (*mine, *theirs)):
        return CORRELATED, METRICS["regression"]["spearman"].function(np.asarray(mine), np.asarray(theirs))
    pairs = list(zip(mine, theirs, strict=True))
    if all(_is_tags(a) and _is_tags(b) and len(a) == len(b) for a, b in pairs) and any(a for a, _ in pairs):
        pairs = [pair for a, b in pairs for pair in zip(a, b, strict=True)]
    return SAME, float(np.mean([a == b for a, b in pairs]))


def _is_tags(decision: object) -> bool:
    return isinstance(decision, tuple) and all(isinstance(entry, str) for entry in decision)


def check_quality(reference: ModelFolder) -> None:
    """Refuses to measure the quality of a model that no labelled examples are read for.

    Args:
      reference: The model.

    Raises:
      ConfigError: Its task has no labels, or it has no tokenizer.
    """
    if TASK_HEADS[reference.task] and reference.task not in TASKS:
        raise ConfigError(
            f"The quality of '{reference.name}' can not be measured: it is for '{reference.task}', and labelled examples are read "
            f"for {', '.join(TASKS)} and sentence encoders. Leave out --examples to compare all else."
        )
    if not reference.has_tokenizer:
        raise ConfigError(
            f"'{reference.name}' has no tokenizer, so that no examples can be read; leave out --examples."
        )


def why_not_judged(model: ModelFolder, reference: ModelFolder) -> str:
    """Returns why the quality of a model can not be held against that of the reference; empty where it can.

    Args:
      model: The model.
      reference: The reference.
    """
    mine, theirs = model.config, reference.config
    if not model.has_tokenizer:
        return "it has no tokenizer."
    if not TASK_HEADS[model.task] and not TASK_HEADS[reference.task]:
        return ""  # both make sentence vectors, which have no labels
    if model.task != reference.task:
        return f"it is for {model.task}, the reference for {reference.task}."
    kinds = [config.problem_type or "single_label_classification" for config in (mine, theirs)]
    if kinds[0] != kinds[1]:
        return f"its problem type is {kinds[0]}, the reference's {kinds[1]}."
    names_labels = model.task in TASKS and TASKS[model.task].names_labels and kinds[0] != "regression"
    if names_labels and set(mine.label_names) != set(theirs.label_names):
        return f"its labels are {', '.join(mine.label_names)}, the reference's {', '.join(theirs.label_names)}."
    return ""


def reference_labels(model: ModelFolder, reference: ModelFolder) -> tuple[str, ...] | None:
    """Returns the order that a model's labels have to be brought into, or None where it has the reference's already.

    Args:
      model: A model that ``why_not_judged`` lets through.
      reference: The reference.
    """
    names = reference.config.label_names
    same_set = set(model.config.label_names) == set(names)
    return names if same_set and model.config.label_names != names and model.task == reference.task else None
