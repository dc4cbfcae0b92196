"""What kind of model clients are told that they talk to."""

from typing import Any

from flaxbert.serve.functions import SPARSE, VECTORS
from flaxbert.serve.operations.classification import SEQUENCE_TASKS, label_names
from flaxbert.serve.operations.work import Subject


def model_type(subject: Subject) -> dict[str, Any]:
    """Returns the type of a model as ``/info`` of text-embeddings-inference has it, and ours for what it lacks.

    Args:
      subject: The model.
    """
    model = subject.model
    if VECTORS in subject.functions:
        modes = model.pooling.modes if model.pooling is not None else ("mean",)
        return {"embedding": {"pooling": "+".join(modes)}}
    if SPARSE in subject.functions:
        return {"embedding": {"pooling": "splade"}}
    names = label_names(subject) if model.task in SEQUENCE_TASKS else model.config.label_names
    labels = {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if model.task in SEQUENCE_TASKS:
        return {"reranker" if model.config.num_labels == 1 else "classifier": labels}
    return {model.task: labels if model.task == "token-classification" else {}}
