"""Pre-training beside a teacher that fills in words: the student, its projections and what it is compared by (Sanh et al., 2019)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxbert.architecture import Execution
from flaxbert.config import PretrainConfig, StudentConfig
from flaxbert.config.distillation import INTERMEDIATE_TERMS, PREDICTION_TERMS
from flaxbert.core.trees import stack_layers
from flaxbert.data.prepared import PreparedCorpus
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError
from flaxbert.model import Model
from flaxbert.train.distillation import DistillationObjective
from flaxbert.train.objectives import PretrainingLoss
from flaxbert.train.recipes.forwards import distillation_forward, make_projections
from flaxbert.train.recipes.layer_mapping import check_inside, mapped_layers
from flaxbert.train.recipes.pretraining_networks import Networks, check_positions, load_network
from flaxbert.train.recipes.student import StudentOrigin, make_student
from flaxbert.train.recipes.teachers import load_each
from flaxbert.train.recipes.tokenizer_match import difference_of_tokenizers

_TASK = "fill-mask"


def taught_networks(
    config: PretrainConfig, corpora: Sequence[PreparedCorpus], tokenizer: Any, row_length: int
) -> Networks:
    """Makes or loads a student and loads its teachers.

    Args:
      config: The run, with ``teacher.path``.
      corpora: Texts that a sliced student is fitted to.
      tokenizer: The tokenizer of the corpora.
      row_length: Tokens of the longest row.

    Returns:
      The student, perhaps with learned projections, and its teachers.

    Raises:
      ConfigError: A teacher fills in no words or reads other tokens, or student and teacher can not be compared.
      WeightsError: One can not be loaded.
    """
    teachers = _load_teachers(config, tokenizer, row_length)
    source, origin = config.model, StudentOrigin()
    if source.path:
        student = load_network(source.path, source, _TASK, tokenizer, config.train.seed)
        check_positions(student.config, source.path, row_length)
    else:
        examples = (
            _texts(config.student, corpora[0], tokenizer, row_length) if config.student.init == "sliced" else None
        )
        student, origin = make_student(config.student, teachers[0], config.train.seed, examples)
        execution = Execution(source.precision, source.attention, source.scan_layers, source.remat)
        params = stack_layers(student.params) if source.scan_layers else student.params
        student = student.replace(params=params, execution=execution, tokenizer=tokenizer)
    check_inside(config.distillation, student, teachers[0], origin)
    objective = DistillationObjective(
        config=config.distillation,
        terms=config.distillation.terms((*INTERMEDIATE_TERMS, *PREDICTION_TERMS)),
        task=_TASK,
        problem_type="",
        hard=PretrainingLoss(),
        layer_map=mapped_layers(config.distillation, student, teachers[0], origin),
        teacher_heads=origin.heads,
        teacher_weights=(config.teacher.weight, *(other.weight for other in config.teacher.others)),
    )
    projections = make_projections(student, teachers[0], objective, config.train.seed, bool(origin.heads))
    run = distillation_forward(student, teachers, objective)
    return Networks({"model": student}, {**student.params, **projections}, run, objective, teachers)


def _load_teachers(config: PretrainConfig, tokenizer: Any, row_length: int) -> tuple[Model, ...]:
    teachers = []
    for path, teacher in load_each(config.teacher, _TASK):
        if teacher.account is not None and teacher.account.initialized:
            raise ConfigError(
                f"The teacher {path} has no head that fills in words ({teacher.account.initialized[0]} is missing), so it can teach nothing on raw "
                "text; name a pre-trained model, or distil a task (flaxbert distill)."
            )
        difference = difference_of_tokenizers(teacher.tokenizer, tokenizer)
        if difference:
            raise ConfigError(
                f"The corpora were prepared with another tokenizer than that of the teacher {path} ({difference}); prepare them with "
                f"prepare.tokenizer {path}."
            )
        check_positions(teacher.config, path, row_length)
        teachers.append(teacher)
    return tuple(teachers)


def _texts(config: StudentConfig, corpus: PreparedCorpus, tokenizer: Any, row_length: int) -> TokenizedExamples:
    """Returns the beginnings of the first documents of a corpus as the network takes them."""
    rows = []
    for number in range(min(len(corpus), config.calibration_examples)):
        own = corpus.document(number).input_ids[: row_length - 2]
        rows.append(np.concatenate([[tokenizer.cls_token_id], own, [tokenizer.sep_token_id]]).astype(np.int32))
    return TokenizedExamples(
        input_ids=np.concatenate(rows),
        token_type_ids=None,
        offsets=np.cumsum([0, *(len(row) for row in rows)]),
        truncated=np.zeros(len(rows), np.bool_),
        pad_token_id=int(tokenizer.pad_token_id or 0),
    )
