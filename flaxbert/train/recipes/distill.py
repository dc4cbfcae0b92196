"""Distillation from start to end: teacher and student, one stage or two, scores beside the teacher's, the model's folder."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from flaxbert.config import DistillConfig, TrainConfig
from flaxbert.config.distillation import INTERMEDIATE_TERMS, PREDICTION_TERMS
from flaxbert.core.arrays import Params
from flaxbert.core.files import whole_file
from flaxbert.core.sharding import batch_share, param_shardings, shard
from flaxbert.core.trees import count_parameters, leaf_names
from flaxbert.errors import ConfigError
from flaxbert.families import get_family
from flaxbert.model import Model
from flaxbert.registry.registration import check_registration
from flaxbert.train.callbacks import Callback
from flaxbert.train.checkpoint import CheckpointStore
from flaxbert.train.distillation import DistillationObjective
from flaxbert.train.goodput import TimeLedger
from flaxbert.train.loop import LoopResult
from flaxbert.train.losses import loss_for
from flaxbert.train.recipes.distillation_setup import (
    ABOUT_TEACHERS,
    Start,
    check_fit,
    examples_of,
    load_teachers,
    prepare_student,
    stage_source,
    stored_outputs,
)
from flaxbert.train.recipes.distillation_stage import (
    DISTILLATION_LOSS,
    DistillationEvaluator,
    DistillationStage,
)
from flaxbert.train.recipes.evaluator import MUST_AGREE, Evaluator
from flaxbert.train.recipes.forwards import make_projections, student_part
from flaxbert.train.recipes.layer_mapping import mapped_layers
from flaxbert.train.recipes.outcome import FinetuneResult, build_callbacks, run_info, score, write_outcome
from flaxbert.train.recipes.plan import class_weights
from flaxbert.train.recipes.pruned import finish_pruning, least_step, prune_while_training
from flaxbert.train.recipes.resume import MustAgree
from flaxbert.train.recipes.run import TrainingRun, find_checkpoint, to_host
from flaxbert.train.recipes.setup import Prepared, Say, count_steps, describe, make_pipeline, say_on_first
from flaxbert.train.throughput import MeasuredCallbacks

INTERMEDIATE = "intermediate"
"""Folder of the first of two stages."""

RESULT_FILE = "distillation.json"
"""Scores of teacher and student, in the folder of the run."""

_LEARNED = (
    "optimizer",
    "batch_size",
    "target_batch_size",
    "num_steps",
    "num_epochs",
    "schedule",
    "learning_rate",
    "freeze",
)
_MUST_AGREE: MustAgree = (*MUST_AGREE, *ABOUT_TEACHERS, ("intermediate", (*_LEARNED, "seed")))


@dataclasses.dataclass(frozen=True)
class DistillResult(FinetuneResult):
    """What a distillation gives back.

    Attributes:
      teacher: Metrics of the first teacher on the held-out examples.
    """

    teacher: Mapping[str, float] = dataclasses.field(default_factory=dict)


def distill(config: DistillConfig, say: Say = say_on_first, extra_callbacks: Sequence[Callback] = ()) -> DistillResult:
    """Trains a student to do what a teacher does.

    A run that was interrupted goes on where its newest good checkpoint stands, in the stage that it was in. The folder of the run
    then holds the student with its card, checkpoints, metrics and plots, as after fine-tuning; ``student/`` the student before
    training, and ``intermediate/`` the first of two stages.

    Args:
      config: The run.
      say: Where lines for the user go.
      extra_callbacks: Who else is told what happens.

    Returns:
      The student, its metrics before and after and the teacher's, and why training ended.

    Raises:
      FlaxbertError: Bad config, data, model, mesh, memory or loss; each message says where and how to mend it.
    """
    check_registration(config.output.register, config.output.registry)
    teachers = load_teachers(config)
    prepared, start = prepare_student(config, teachers[0], say)
    check_fit(config, prepared, teachers, start)
    say(describe(prepared))
    run = _Distillation(config, prepared, teachers, start, say, tuple(extra_callbacks))
    if config.distillation.has_two_stages:
        learned = run.first_stage()
        if learned is None:
            return run.stopped()
        prepared = dataclasses.replace(prepared, model=prepared.model.replace(params=learned))
    return dataclasses.replace(run, prepared=prepared).last_stage()


@dataclasses.dataclass(frozen=True)
class _Distillation:
    config: DistillConfig
    prepared: Prepared
    teachers: tuple[Model, ...]
    start: Start
    say: Say
    extra_callbacks: tuple[Callback, ...]

    @property
    def folder(self) -> pathlib.Path:
        return pathlib.Path(self.config.output.folder)

    def stage(self, terms: Mapping[str, float], train: TrainConfig) -> DistillationStage:
        """Returns a stage with its own training options."""
        config, model = self.config, self.prepared.model
        settings = dataclasses.replace(self.prepared.config, train=train)
        pipeline = make_pipeline(settings, self.prepared.data, batch_share(self.prepared.mesh))
        prepared = dataclasses.replace(
            self.prepared,
            config=settings,
            pipeline=pipeline,
            steps_per_epoch=pipeline.steps_per_epoch,
            total_steps=count_steps(settings, pipeline.steps_per_epoch),
        )
        weights = class_weights(prepared) if "hard" in terms else ()
        hard = None
        if "hard" in terms:
            hard = loss_for(
                model.task,
                model.config.problem_type,
                label_smoothing_rate=train.label_smoothing_rate,
                class_weights=weights,
            )
        objective = DistillationObjective(
            config=config.distillation,
            terms=terms,
            task=model.task,
            problem_type=model.config.problem_type if model.task == "sequence-classification" else "",
            hard=hard,
            layer_map=mapped_layers(config.distillation, model, self.teachers[0], self.start.origin),
            class_weights=weights,
            teacher_heads=self.start.origin.heads,
            teacher_weights=(config.teacher.weight, *(other.weight for other in config.teacher.others)),
        )
        compares_outputs = bool({"soft", "logit"} & terms.keys())
        outputs = stored_outputs(config, prepared, self.teachers, self.say) if compares_outputs else None
        needed = self.teachers if compares_outputs else self.teachers[:1]
        if outputs is not None or terms.keys() == {"hard"}:
            needed = ()
        return DistillationStage(prepared, needed, objective, stage_source(prepared, outputs))

    def is_last(self, stage: DistillationStage) -> bool:
        """Returns whether nothing is learned after a stage, so that it may prune."""
        inside = self.config.distillation.terms(INTERMEDIATE_TERMS)
        return not self.config.distillation.has_two_stages or stage.objective.terms != inside

    def train(
        self,
        stage: DistillationStage,
        folder: pathlib.Path,
        metric: tuple[str, bool],
        evaluator: Any,
        store: CheckpointStore,
        callbacks: MeasuredCallbacks,
        fixed: Any,
    ) -> tuple[dict[str, float], LoopResult, int, Params]:
        """Trains a stage to its end."""
        from flaxbert.data.pipeline import StepPipeline

        prepared, settings = stage.prepared, self.config.to_dict()
        newest = find_checkpoint(store, prepared.config.train, settings, _MUST_AGREE, self.say)
        sliced = bool(self.start.origin.heads)
        seed = prepared.config.train.seed
        projections = make_projections(prepared.model, self.teachers[0], stage.objective, seed, sliced)
        job = stage.job(fixed, projections)
        if self.is_last(stage):
            job = prune_while_training(job, prepared.model.config, self.config.prune, self.say)
        run = TrainingRun(
            job=job,
            pipeline=StepPipeline(stage.source),
            steps_per_epoch=prepared.steps_per_epoch,
            evaluate=evaluator,
            metric=metric,
            config=settings,
            info=functools.partial(run_info, prepared),
            store=store,
            callbacks=callbacks,
            say=self.say,
            networks=stage.networks(),
            least_step=least_step(job),
        )
        return run.complete(newest)

    def first_stage(self) -> Params | None:
        """Trains what is inside, unless that is done; returns the student's parameters, or None where it was asked to stop."""
        from flaxbert.model import load

        folder, config = self.folder / INTERMEDIATE, self.config
        done = folder / "model"
        if (done / RESULT_FILE).is_file():
            if config.train.resume == "never":
                raise ConfigError(
                    f"{done} holds the first stage of an earlier run, and train.resume is 'never'; choose another output.folder, or "
                    "train.resume auto to go on."
                )
            self.start.check_settings(done / RESULT_FILE, _MUST_AGREE)
            self.say(f"The first stage is done: its student is in {done}.")
            scanned = self.prepared.model.execution.scan_layers
            return load(done, scan_layers=scanned).params
        terms = config.distillation.terms(INTERMEDIATE_TERMS)
        stage = self.stage(terms, dataclasses.replace(config.intermediate, resume=config.train.resume))
        self.say(f"First stage, {stage.prepared.total_steps} steps: {_describe_terms(terms)}.")
        fixed = stage.place_teachers()
        evaluator = DistillationEvaluator(stage, fixed)
        output = dataclasses.replace(config.output, folder=str(folder))
        with CheckpointStore(
            folder / "checkpoints", keep=config.intermediate.keep_checkpoints, higher_is_better=False
        ) as store:
            callbacks = build_callbacks(output, DISTILLATION_LOSS, folder, self.extra_callbacks, TimeLedger())
            try:
                metric = (DISTILLATION_LOSS, False)
                arguments = (stage, folder, metric, evaluator.metrics, store, callbacks, fixed)
                before, result, step, params = self.train(*arguments)
                callbacks.on_end(
                    {
                        "step": step,
                        "reason": result.reason,
                        "seconds": result.seconds,
                        "metrics": {},
                        "metrics_before": before,
                    }
                )
            finally:
                callbacks.close()
        if result.reason == "preempted":
            return None
        student = stage.prepared.model.replace(params=to_host(student_part(params)))
        if jax.process_index() == 0:
            document = {"config": config.to_dict(), "before": before, "history": result.progress.history}
            student.save(done, overwrite=True, files={RESULT_FILE: json.dumps(document, indent=1) + "\n"})
        return student.params

    def last_stage(self) -> DistillResult:
        """Trains what comes out (or everything at once), scores the student and writes its folder."""
        config, names = self.config, (*INTERMEDIATE_TERMS, *PREDICTION_TERMS)
        terms = config.distillation.terms(PREDICTION_TERMS if config.distillation.has_two_stages else names)
        train = config.train
        if config.distillation.has_two_stages and train.resume == "must":  # the first stage is what was there
            train = dataclasses.replace(train, resume="auto")
        stage = self.stage(terms, train)
        prepared = stage.prepared
        self.say(f"{prepared.total_steps} steps: {_describe_terms(terms)}.")
        teacher = self.teacher_metrics()
        fixed = stage.place_teachers()
        evaluator = Evaluator(prepared)
        ledger = TimeLedger()
        with CheckpointStore(
            self.folder / "checkpoints", keep=config.train.keep_checkpoints, higher_is_better=prepared.metric[1]
        ) as store:
            callbacks = build_callbacks(config.output, prepared.metric[0], self.folder, self.extra_callbacks, ledger)
            try:
                evaluate = lambda params: evaluator.metrics(student_part(params))
                arguments = (stage, self.folder, prepared.metric, evaluate, store, callbacks, fixed)
                before, result, step, params = self.train(*arguments)
                return self._finish(
                    prepared, evaluator, student_part(params), (before, result, step), callbacks, teacher
                )
            finally:
                callbacks.close()

    def teacher_metrics(self) -> dict[str, float]:
        """Returns the first teacher's metrics on the held-out examples."""
        teacher, prepared = self.teachers[0], self.prepared
        leaf_axes = get_family(teacher.config.family).parameter_axes(leaf_names(teacher.params))
        params = shard(teacher.params, param_shardings(teacher.params, leaf_axes, prepared.mesh))
        splits = {**prepared.data.splits, "validation": examples_of(teacher, prepared, "validation")}
        data = dataclasses.replace(prepared.data, splits=splits)
        return Evaluator(dataclasses.replace(prepared, model=teacher, data=data)).metrics(params)

    def stopped(self) -> DistillResult:
        """Returns what a run gives back that was asked to stop in its first stage."""
        return DistillResult(self.prepared.model, self.folder, "preempted", 0, {}, {}, {}, [])

    def _finish(
        self,
        prepared: Prepared,
        evaluator: Evaluator,
        params: Params,
        ending: tuple[dict[str, float], LoopResult, int],
        callbacks: MeasuredCallbacks,
        teacher: Mapping[str, float],
    ) -> DistillResult:
        before, result, step = ending
        history = result.progress.history
        if result.reason == "preempted":
            callbacks.on_end({"step": result.step, "reason": result.reason, "seconds": result.seconds, "metrics": {}})
            model = prepared.model.replace(params=to_host(params))
            return DistillResult(model, self.folder, result.reason, step, before, {}, {}, history)
        scores = score(prepared, lambda split: evaluator.score(params, split))
        summary = {
            "before": before,
            "step": step,
            "reason": result.reason,
            "seconds": result.seconds,
            "history": history,
        }
        architecture = prepared.model.config
        extra = {**architecture.extra, **scores.changes}
        model = prepared.model.replace(params=to_host(params), config=architecture.replace(extra=extra))
        if self.config.prune.is_on:
            model, pruned = finish_pruning(model, self.config.prune)
            self.say(pruned)
        shown = dataclasses.replace(prepared, config=dataclasses.replace(self.config, train=prepared.config.train))
        found = write_outcome(shown, model, scores, summary, callbacks, self.say)
        fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        finished = DistillResult(**fields, teacher=teacher)
        self._report(finished, prepared.metric)
        return finished

    def _report(self, result: DistillResult, metric: tuple[str, bool]) -> None:
        """Says and writes how the student does beside its teacher."""
        name, higher = metric
        own, theirs = result.after[name], result.teacher[name]
        sizes = count_parameters(result.model.params), count_parameters(self.teachers[0].params)
        kept = f"{own / theirs:.1%} of the teacher's {name}" if higher and theirs > 0 else f"{name}"
        self.say(
            f"The student has {kept}: {own:.4f}, the teacher {theirs:.4f}; {sizes[0]:,} parameters, the teacher {sizes[1]:,}."
        )
        document = {
            "metric": name,
            "student": dict(result.after),
            "teacher": dict(result.teacher),
            "num_parameters": {"student": sizes[0], "teacher": sizes[1]},
        }
        if jax.process_index() == 0:
            with whole_file(self.folder / RESULT_FILE) as place:
                place.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _describe_terms(terms: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in terms.items())
