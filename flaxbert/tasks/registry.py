"""The tasks that read examples and make predictions, by name."""

from flaxbert.architecture import resolve_task
from flaxbert.errors import ConfigError
from flaxbert.tasks.base import Task
from flaxbert.tasks.multiple_choice import MultipleChoice
from flaxbert.tasks.question_answering import QuestionAnswering
from flaxbert.tasks.relation_classification import RelationClassification
from flaxbert.tasks.sequence_classification import NextSentencePrediction, SequenceClassification
from flaxbert.tasks.token_classification import TokenClassification

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SequenceClassification(),
        NextSentencePrediction(),
        TokenClassification(),
        QuestionAnswering(),
        RelationClassification(),
        MultipleChoice(),
    )
}
"""The tasks by canonical name."""


def find_task(name: str) -> Task | None:
    """Returns a task, or None for those that only embed or pre-train.

    Args:
      name: Canonical name or alias.

    Raises:
      ConfigError: There is no such task at all.
    """
    return TASKS.get(resolve_task(name))


def get_task(name: str) -> Task:
    """Returns a task that reads examples and makes predictions.

    Args:
      name: Canonical name or alias.

    Raises:
      ConfigError: The task does neither, or is unknown.
    """
    task = find_task(name)
    if task is None:
        raise ConfigError(f"model.task is {name!r}, but labelled examples are read for {', '.join(TASKS)} only.")
    return task
