"""The start of a distillation: teachers, the student's first folder, and whether they fit each other."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from flaxbert.architecture import TASK_HEADS, resolve_task
from flaxbert.config import DistillationConfig, DistillConfig, ModelSource, RunConfig, StudentConfig
from flaxbert.config.distillation import INTERMEDIATE_TERMS
from flaxbert.core.arrays import is_quantized
from flaxbert.core.runtime import initialize_distributed
from flaxbert.core.trees import flatten_names
from flaxbert.data.extended_batches import ExtendedSource
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError
from flaxbert.model import Model
from flaxbert.tasks.base import Encoded
from flaxbert.tasks.load import load_examples
from flaxbert.tasks.registry import find_task
from flaxbert.train.recipes.augmentation import augment
from flaxbert.train.recipes.layer_mapping import check_inside
from flaxbert.train.recipes.resume import MustAgree, check_same_run
from flaxbert.train.recipes.setup import Prepared, Say, prepare
from flaxbert.train.recipes.student import ORIGIN_FILE, StudentOrigin, make_student
from flaxbert.train.recipes.teacher_outputs import TeacherOutputs, teacher_outputs
from flaxbert.train.recipes.teachers import load_each
from flaxbert.train.recipes.tokenizer_match import difference_of_tokenizers

RETOKENIZED_TASKS = frozenset({"sequence-classification", "next-sentence-prediction"})
"""Tasks with one score for a whole text, whose teacher may read the text as other tokens."""

STUDENT = "student"
"""Folder of the student before training, where it is made of the teacher."""

SETTINGS_FILE = "settings.json"
"""The resolved config that a student was made with, in its folder."""

_ALL = lambda kind: tuple(field.name for field in dataclasses.fields(kind))

ABOUT_TEACHERS: MustAgree = (
    ("teacher", ("path", "revision", "weight", "others", "precision")),
    (STUDENT, _ALL(StudentConfig)),
    ("distillation", _ALL(DistillationConfig)),
    ("augmentation", ("model", "revision", "copies", "probability", "num_candidates")),
)
"""Settings of teachers, student and losses that a resumed run shares with its checkpoints."""

_ABOUT_THE_STUDENT: MustAgree = (
    ("teacher", ("path", "revision")),
    (STUDENT, _ALL(StudentConfig)),
    ("data", ("train", "max_length")),
    ("train", ("seed",)),
)


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the student comes from.

    Attributes:
      folder: Its folder or hub id before training.
      origin: What it was made of; empty where it was given.
      settings: The resolved config of this run.
    """

    folder: str
    origin: StudentOrigin
    settings: Mapping[str, Any]

    def check_settings(self, file: pathlib.Path, must_agree: MustAgree) -> None:
        """Raises an error where a part of the run that is done was made with other settings.

        Args:
          file: JSON document of that part, with its ``config``.
          must_agree: Settings that may not have changed.

        Raises:
          ConfigError: A setting has changed; lists all that have.
        """
        check_same_run(json.loads(file.read_text("utf-8"))["config"], self.settings, must_agree)


def load_teachers(config: DistillConfig) -> tuple[Model, ...]:
    """Loads the teachers.

    Args:
      config: The run.

    Returns:
      The teachers, the first of which also shows what is inside.

    Raises:
      ConfigError: None is named, or one has no head for a task that is distilled.
      WeightsError: One can not be loaded.
    """
    source = config.teacher
    if not source.path:
        raise ConfigError(
            "teacher.path is empty: name a folder or hub id of a trained model, for example --teacher.path MODEL."
        )
    teachers: list[Model] = []
    for path, teacher in load_each(source):
        if find_task(teacher.task) is None or not TASK_HEADS[teacher.task]:
            raise ConfigError(
                f"The teacher {path} is a model for {teacher.task}, which has no labelled task to distil; "
                "fine-tune it first (flaxbert finetune)."
            )
        teachers.append(teacher)
        task = resolve_task(config.model.task or teachers[0].task)
        if teacher.task != task:
            raise ConfigError(f"The teacher {path} is a model for {teacher.task}, but the student one for {task}.")
    return tuple(teachers)


def _settings_for(config: DistillConfig, teacher: Model, folder: str) -> RunConfig:
    """Returns the student's run as one of fine-tuning, with the teacher's task and labels."""
    task = config.model.task or teacher.task
    problem_type = config.model.problem_type or (
        teacher.config.problem_type if teacher.task == "sequence-classification" else ""
    )
    model: ModelSource = dataclasses.replace(config.model, path=folder, task=task, problem_type=problem_type)
    data = config.data
    if (
        not data.labels
        and teacher.config.labels
        and teacher.task in ("sequence-classification", "relation-classification")
    ):
        data = dataclasses.replace(data, labels=teacher.config.labels)
    return RunConfig(model, data, config.task, config.train, config.mesh, config.output)


def prepare_student(config: DistillConfig, teacher: Model, say: Say) -> tuple[Prepared, Start]:
    """Makes or finds the student and reads the data.

    Args:
      config: The run.
      teacher: The first teacher.
      say: Where lines for the user go.

    Returns:
      The student's run, and where the student comes from.

    Raises:
      ConfigError: The student can not be made, or another one was made in this folder.
      FlaxbertError: As for ``setup.prepare``.
    """
    if not config.data.train:
        raise ConfigError("data.train is empty: name a file, folder or hub id of training examples.")
    initialize_distributed(config.mesh)
    path, origin = config.model.path, StudentOrigin()
    if not path:
        folder = pathlib.Path(config.output.folder) / STUDENT
        origin = _make_once(config, teacher, folder, say)
        path = str(folder)
    prepared = prepare(_settings_for(config, teacher, path), say)
    if config.augmentation.copies:
        prepared = augment(prepared, config.augmentation, say)
    return prepared, Start(path, origin, config.to_dict())


def _make_once(config: DistillConfig, teacher: Model, folder: pathlib.Path, say: Say) -> StudentOrigin:
    """Writes the student's first folder unless it is there; returns what the student is made of."""
    settings, file = config.to_dict(), folder / SETTINGS_FILE
    if file.is_file():
        began = any((folder.parent / name).is_dir() for name in ("checkpoints", "intermediate"))
        try:
            Start(str(folder), StudentOrigin(), settings).check_settings(file, _ABOUT_THE_STUDENT)
        except ConfigError:
            if began:
                raise
        else:
            return StudentOrigin.from_json((folder / ORIGIN_FILE).read_text("utf-8"))
    examples = _calibration_examples(config, teacher) if config.student.init == "sliced" else None
    student, origin = make_student(config.student, teacher, config.train.seed, examples)
    if jax.process_index() == 0:
        files = {ORIGIN_FILE: origin.to_json(), SETTINGS_FILE: json.dumps({"config": settings}, indent=1) + "\n"}
        student.save(folder, overwrite=True, files=files)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("flaxbert_student")
    made = "new weights" if not origin.layers else f"the teacher's layers {', '.join(map(str, origin.layers))}"
    say(f"The student is made of {made} ({config.student.init}); it is in {folder}.")
    return origin


def _calibration_examples(config: DistillConfig, teacher: Model) -> TokenizedExamples:
    settings = _settings_for(config, teacher, "")
    limit = min(
        config.student.calibration_examples, config.data.max_train_examples or config.student.calibration_examples
    )
    return load_examples(
        dataclasses.replace(settings.data, max_train_examples=limit),
        teacher.tokenizer,
        settings.model.task,
        settings.model.problem_type,
        seed=config.train.seed,
        options=config.task,
        model_max_length=teacher.max_length,
    ).train


def check_fit(config: DistillConfig, prepared: Prepared, teachers: Sequence[Model], start: Start) -> None:
    """Checks that student and teachers can be compared as the config says.

    Args:
      config: The run.
      prepared: The student's run.
      teachers: The teachers.
      start: Where the student comes from.

    Raises:
      ConfigError: They can not; says why and what would do.
    """
    student = prepared.model
    quantized = next((name for name, leaf in flatten_names(student.params).items() if is_quantized(leaf)), None)
    if quantized:
        raise ConfigError(
            f"The student {start.folder} is quantized ('{quantized}'), and codes can not be trained; start from the model before "
            "quantization and quantize the result. (A quantized teacher is fine.)"
        )
    paths = (config.teacher.path, *(other.path for other in config.teacher.others))
    for path, teacher in zip(paths, teachers, strict=True):
        _check_task(path, teacher, student)
        difference = difference_of_tokenizers(teacher.tokenizer, student.tokenizer)
        inside = config.distillation.terms(INTERMEDIATE_TERMS)
        if difference and (inside or student.task not in RETOKENIZED_TASKS):
            reason = (
                f"the term {next(iter(inside))} compares them token by token"
                if inside
                else f"{student.task} scores tokens"
            )
            raise ConfigError(
                f"The tokenizers of the teacher {path} and of the student differ ({difference}), and {reason}. Use a student with the "
                "teacher's tokenizer; where one score for a whole text is compared, tokenizers may differ."
            )
    _check_cache(config, student)
    check_inside(config.distillation, student, teachers[0], start.origin)


def _check_task(path: str, teacher: Model, student: Model) -> None:
    own, theirs = student.config, teacher.config
    if own.problem_type and theirs.problem_type and own.problem_type != theirs.problem_type:
        raise ConfigError(
            f"The teacher {path} was trained for {theirs.problem_type}, but the data is for {own.problem_type}."
        )
    if "classifier" not in TASK_HEADS[student.task] and "relation" not in TASK_HEADS[student.task]:
        return
    if own.num_labels != theirs.num_labels:
        raise ConfigError(
            f"The teacher {path} has {theirs.num_labels} labels ({', '.join(theirs.label_names)}), but the data has "
            f"{own.num_labels} ({', '.join(own.label_names)})."
        )
    if own.labels and theirs.labels and own.labels != theirs.labels:
        raise ConfigError(
            f"The teacher {path} has the labels {', '.join(theirs.labels)}, in this order, but the data {', '.join(own.labels)}; "
            "name and order them alike (data.labels, data.label_map)."
        )


def _check_cache(config: DistillConfig, student: Model) -> None:
    """Checks that what is stored of the teacher is all that is compared."""
    source, chosen = config.teacher, config.distillation
    inside = chosen.terms(INTERMEDIATE_TERMS)
    if source.cache and inside and not chosen.has_two_stages:
        raise ConfigError(
            f"teacher.cache stores what the teacher says, but the term {next(iter(inside))} looks inside of it in every step; "
            "use distillation.stages two, or no cache."
        )
    if not source.cache_top_k:
        return
    whole = student.task == "question-answering" or student.config.problem_type in (
        "multi_label_classification",
        "regression",
    )
    cooled = chosen.temperature != 1.0 or chosen.temperature_schedule != "constant"
    if not source.cache or whole or cooled or chosen.logit_weight:
        raise ConfigError(
            f"teacher.cache_top_k {source.cache_top_k} keeps the highest probabilities of one label: it needs teacher.cache, temperature 1, "
            "no logit_weight, and a task with one label."
        )


def examples_of(teacher: Model, prepared: Prepared, split: str) -> Encoded:
    """Returns the examples of a split as a teacher reads them.

    Args:
      teacher: The teacher.
      prepared: The student's run.
      split: train, validation or test.
    """
    encoded = prepared.data.splits[split]
    if not difference_of_tokenizers(teacher.tokenizer, prepared.model.tokenizer):
        return encoded
    setting = prepared.data.setting
    return prepared.data.task.encode(
        teacher.tokenizer, encoded.examples, setting.replace(max_length=min(setting.max_length, teacher.max_length))
    )


def stored_outputs(
    config: DistillConfig, prepared: Prepared, teachers: Sequence[Model], say: Say
) -> TeacherOutputs | None:
    """Returns what the teachers say of all training examples where that is stored, or where they read them as other tokens.

    Args:
      config: The run.
      prepared: The student's run.
      teachers: The teachers.
      say: Where lines for the user go.
    """
    differ = any(difference_of_tokenizers(teacher.tokenizer, prepared.model.tokenizer) for teacher in teachers)
    if not config.teacher.cache and not differ:
        return None
    return teacher_outputs(
        teachers,
        [examples_of(teacher, prepared, "train").features for teacher in teachers],
        prepared.mesh,
        config.teacher.cache,
        top_k=config.teacher.cache_top_k,
        buckets=() if differ else prepared.data.length_buckets,
        batch_size=config.train.evaluation_batch_size,
        say=say,
    )


def stage_source(prepared: Prepared, outputs: TeacherOutputs | None) -> ExtendedSource:
    """Returns the training batches of a stage.

    Args:
      prepared: The student's run.
      outputs: What the teachers say of the examples, where it is stored.
    """
    source, steps = prepared.pipeline.source, prepared.total_steps
    if outputs is None:
        return ExtendedSource(source, steps)
    by_token = prepared.data.task.scores_tokens
    arrays = {"tokens" if by_token else "rows": outputs.arrays}
    return ExtendedSource(source, steps, **arrays, identity_of_rows={"teacher_outputs": dict(outputs.identity)})
