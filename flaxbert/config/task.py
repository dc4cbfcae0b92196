"""Options that belong to single tasks, beyond what texts, labels and batches are."""

import dataclasses
from typing import Literal

from flaxbert.errors import ConfigError

IGNORED_LABEL = -100
"""Label of tokens that take no part in loss and metrics: padding, special tokens, all but the first piece of a word."""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What single tasks read beyond texts and labels; a task that does not name an option ignores it.

    Attributes:
      token_column: Token classification: name or position of the words. Empty: position 0 of CoNLL files, else tokens.
      tag_column: The same for their tags. Empty: the last position of CoNLL files, else ner_tags or tags.
      span_column: The same for a list of spans ``{start, end, label}`` of characters beside a text. Empty: entities or spans.
      tag_scheme: How the data writes entities as tags: iob1, iob2 or iobes, whose faults are errors; tags for labels of single words such as parts of speech. Empty: found out, read as conlleval does.
      model_scheme: How a new tagger writes entities: iob2 or iobes.
      stride: Tokens that the windows of a text longer than data.max_length share (token classification, question answering); quarter: a quarter of a window, less where a question leaves little room.
      question_column: Question answering and multiple choice: name of the question.
      context_column: Question answering: name of the text that holds the answer; multiple choice: of a text before the question, where there is one.
      answers_column: Question answering: name of the answers, ``{text, answer_start}`` or a list of them.
      max_answer_length: Question answering: most tokens of an answer.
      num_best: Question answering: candidates that a prediction holds.
      null_threshold: Question answering: no answer is given where its score is above the best answer's by more than this; model takes what fine-tuning found best, 0 where nothing was.
      choice_columns: Multiple choice: names of the choices, one column each. Empty: ending0, ending1…, choice0, choice1… or a list in choices or endings.
      entity_markers: Relation classification: symbols puts $ and # around the two entities (Wu and He, 2019); none leaves the text as it is.
    """

    token_column: str = ""
    tag_column: str = ""
    span_column: str = ""
    tag_scheme: Literal["", "iob1", "iob2", "iobes", "tags"] = ""
    model_scheme: Literal["iob2", "iobes"] = "iob2"
    stride: int | Literal["quarter"] = "quarter"
    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    max_answer_length: int = 30
    num_best: int = 5
    null_threshold: float | Literal["model"] = "model"
    choice_columns: tuple[str, ...] = ()
    entity_markers: Literal["symbols", "none"] = "symbols"

    def __post_init__(self) -> None:
        for field, least in (("stride", 0), ("max_answer_length", 1), ("num_best", 1)):
            value = getattr(self, field)
            if field == "stride" and value == "quarter":
                continue
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"task.{field} is {value}, but must be a whole number of at least {least}.")
