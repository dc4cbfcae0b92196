"""Which model a run starts from, and how it is executed."""

import dataclasses
from typing import Literal

from flaxbert.config.checks import require_rate

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
PrecisionName = Literal["float32", "bfloat16", "float16"]
AttentionName = Literal["auto", "xla", "cudnn", "splash"]
RematPolicy = Literal["none", "full", "dots", "attention"]


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Which model a run starts from.

    Attributes:
      path: Folder of a checkpoint (Hugging Face or sentence-transformers layout), or an id on the hub.
      revision: Branch, tag or commit on the hub; only for ids.
      task: sequence-classification, token-classification, question-answering, relation-classification, multiple-choice, fill-mask, next-sentence-prediction or sentence-similarity. Empty: sequence-classification.
      problem_type: single_label_classification, multi_label_classification or regression. Empty: from the labels of the data.
      precision: Type that the matrix products are computed in; parameters stay float32.
      attention: Attention implementation; auto picks cudnn on NVIDIA GPUs in half precision, splash on TPUs for lengths of 1024 and more, else xla.
      scan_layers: Run the layers as one scanned loop over stacked leaves (fast compilation) instead of unrolled (fast steps on CPU).
      remat: What to recompute in the backward pass instead of keeping: none, full (everything), dots (keep matrix products), attention (recompute the attention half of every block; its weights are never kept).
      pooling: How token vectors become a sentence vector where the task needs one: cls, mean or max. Empty: as the checkpoint says.
      dropout_rate: Overrides the checkpoint's hidden dropout, in [0, 1). Negative: keep the checkpoint's.
      attention_dropout_rate: Overrides the checkpoint's attention dropout, in [0, 1). Negative: keep the checkpoint's.
      classifier_dropout_rate: Overrides the dropout before the classifier, in [0, 1). Negative: keep the checkpoint's.
      from_scratch: Start from random weights with the configuration and tokenizer found at path.
      offline: Never contact the hub; only use what is on this machine.
    """

    path: str = ""
    revision: str = ""
    task: str = ""
    problem_type: str = ""
    precision: PrecisionName = "float32"
    attention: AttentionName = "auto"
    scan_layers: bool = False
    remat: RematPolicy = "none"
    pooling: Literal["", "cls", "mean", "max"] = ""
    dropout_rate: float = -1.0
    attention_dropout_rate: float = -1.0
    classifier_dropout_rate: float = -1.0
    from_scratch: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        for field in (
            "dropout_rate",
            "attention_dropout_rate",
            "classifier_dropout_rate",
        ):
            if getattr(self, field) >= 0:
                require_rate("model", field, getattr(self, field), upper_open=True)
