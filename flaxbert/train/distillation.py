"""The objective of a student: weighted terms that compare it with its teachers, each a mean over the whole batch.

Every term is the mean over the examples of the batch, or over their real tokens, however the batch is cut into micro batches or
spread over devices: ``weigh`` turns the counts of the whole batch into weights of its rows, so that sums add up.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxbert.config import IGNORED_LABEL
from flaxbert.config.distillation import DistillationConfig
from flaxbert.data.extended_batches import PROGRESS
from flaxbert.errors import ShapeError
from flaxbert.nn.network import ModelOutput
from flaxbert.train import distillation_losses as compare
from flaxbert.train.losses import HIDDEN_SCORE, LossFunction

TOKEN_SHARE, LABEL_SHARE, HARD_SHARE = "token_share", "label_share", "hard_share"
"""Entries of a weighed batch: the weights of tokens, of labelled tokens and of the loss of the labels."""

TEACHER_LOGITS, TEACHER_IDS = "teacher_logits_{}", "teacher_ids_{}"
"""Entries of a batch with stored scores of a teacher, and with the labels that they belong to where not all are stored."""

_TOKEN_TASKS = frozenset({"token-classification", "fill-mask"})
_HIDDEN_TERMS = frozenset({"embedding", "hidden", "hidden_cosine", "patient"})
_ATTENTION_TERMS = frozenset({"attention", "attention_relation", "query_relation", "key_relation", "value_relation"})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DistillationOutput:
    """What student and teachers make of a batch.

    Attributes:
      student: Output of the student.
      teachers: Outputs of the teachers that run in the step, in their order; none where all that is needed is stored.
      projections: Learned kernels ``[student width, teacher width]`` by what they project: embedding, hidden.
    """

    student: ModelOutput
    teachers: tuple[ModelOutput, ...]
    projections: Mapping[str, Any]


def temperature_at(config: DistillationConfig, progress: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """Returns the temperature of the soft term.

    Args:
      config: Start, end and way between them.
      progress: Share of the run that is over, in [0, 1].
    """
    start, end = jnp.float32(config.temperature), jnp.float32(config.end_temperature)
    if config.temperature_schedule == "linear":
        return start + (end - start) * progress
    if config.temperature_schedule == "cosine":
        return end + (start - end) * (1.0 + jnp.cos(jnp.float32(jnp.pi) * progress)) / 2.0
    if config.temperature_schedule == "exponential":
        return start * jnp.power(end / start, progress)
    return jnp.broadcast_to(start, progress.shape)


@dataclasses.dataclass(frozen=True)
class DistillationObjective:
    """The weighted sum of the terms of one stage.

    Attributes:
      config: Temperatures and relations.
      terms: Weight of every term that counts.
      task: Canonical task name.
      problem_type: Of sequence classification.
      hard: The task's own loss.
      class_weights: Those of the hard term; empty weighs all labels alike.
      layer_map: Teacher's layer, from 0, of each layer of the student.
      teacher_heads: Heads of the teacher that each layer's heads are compared with; empty: all, in order.
      teacher_weights: Weight of each teacher.
    """

    config: DistillationConfig
    terms: Mapping[str, float]
    task: str
    problem_type: str
    hard: LossFunction | None
    layer_map: tuple[int, ...]
    class_weights: tuple[float, ...] = ()
    teacher_heads: tuple[tuple[int, ...], ...] = ()
    teacher_weights: tuple[float, ...] = (1.0,)

    @property
    def keeps_hidden(self) -> bool:
        """Whether hidden states are compared."""
        return bool(_HIDDEN_TERMS & self.terms.keys())

    @property
    def keeps_attention(self) -> bool:
        """Whether queries, keys or values are compared."""
        return bool(_ATTENTION_TERMS & self.terms.keys())

    @property
    def scores_tokens(self) -> bool:
        """Whether every token has a label."""
        return self.task in _TOKEN_TASKS

    def weigh(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a whole batch with the weights of its tokens and labels.

        Args:
          batch: With ``input_ids``, ``attention_mask`` (in packed rows ``segment_ids``), ``example_weight`` and, for the hard term and for tokens, ``labels``.
        """
        weighed = dict(batch)
        rows = batch["example_weight"].astype(jnp.float32)
        examples = jnp.sum(rows)

        def shared(counted: jax.Array) -> jax.Array:
            own = counted.astype(jnp.float32) * rows.reshape(-1, *(1,) * (counted.ndim - 1))
            return own * examples / jnp.maximum(jnp.sum(own), jnp.float32(1e-30))

        weighed[TOKEN_SHARE] = shared(_real_tokens(batch))
        if self.scores_tokens:
            weighed[LABEL_SHARE] = shared(batch["labels"] != IGNORED_LABEL)
        if "hard" in self.terms:
            weights = self._label_weights(batch) * rows
            scale = examples / jnp.maximum(jnp.sum(weights), jnp.float32(1e-30))
            weighed[HARD_SHARE] = jnp.broadcast_to(scale, rows.shape)
        return weighed

    def _label_weights(self, batch: Mapping[str, Any]) -> jax.Array:
        """Returns by how much the hard loss of each example counts in the task's own mean."""
        if "labels" not in batch:
            raise ShapeError(f"The batch has no 'labels', which the hard term needs; it has {sorted(batch)}.")
        labels, count = batch["labels"], batch["input_ids"].shape[0]
        if self.problem_type in ("multi_label_classification", "regression"):
            return jnp.ones((count,), jnp.float32)
        known = (labels != IGNORED_LABEL).astype(jnp.float32)
        if self.class_weights:
            known = known * jnp.take(jnp.asarray(self.class_weights, jnp.float32), jnp.maximum(labels, 0))
        known = known.reshape(count, -1)
        return jnp.mean(known, axis=1) if self.task == "question-answering" else jnp.sum(known, axis=1)

    def losses(self, output: DistillationOutput, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Returns the sum of every term over a (micro) batch, not weighted by the terms' weights.

        Args:
          output: Of student and teachers.
          batch: Its batch, weighed.
        """
        parts = _Parts(self, output, batch)
        return {name: getattr(parts, name)() for name in self.terms}

    def __call__(self, output: DistillationOutput, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Returns the weighted sum of all terms and the number of examples.

        Args:
          output: Of student and teachers.
          batch: Its batch, weighed.
        """
        found = self.losses(output, batch)
        total = sum((jnp.float32(self.terms[name]) * found[name] for name in self.terms), jnp.zeros((), jnp.float32))
        return total, jnp.sum(batch["example_weight"].astype(jnp.float32))


def _real_tokens(batch: Mapping[str, Any]) -> jax.Array:
    return (batch["segment_ids"] if "segment_ids" in batch else batch["attention_mask"]) > 0


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The terms of one batch, one method each."""

    objective: DistillationObjective
    output: DistillationOutput
    batch: Mapping[str, Any]

    @functools.cached_property
    def rows(self) -> jax.Array:
        return self.batch["example_weight"].astype(jnp.float32)

    @functools.cached_property
    def token_share(self) -> jax.Array:
        share = self.batch[TOKEN_SHARE]
        return share.reshape(-1, share.shape[-1])

    @functools.cached_property
    def visible(self) -> jax.Array:
        """Which tokens each one sees ``[rows, length or 1, length]``: the real ones, in packed rows those of its own text."""
        if "segment_ids" in self.batch:
            segments = self.batch["segment_ids"]
            return segments[:, :, None] == segments[:, None, :]
        real = _real_tokens(self.batch)
        return real.reshape(-1, 1, real.shape[-1])

    def _sum_rows(self, losses: jax.Array) -> jax.Array:
        # Rows of weight 0 only fill the batch; whatever their loss is, it must not reach the sum.
        return jnp.sum(jnp.where(self.rows != 0, losses * self.rows, jnp.float32(0.0)))

    def _sum_tokens(self, losses: jax.Array, name: str = TOKEN_SHARE) -> jax.Array:
        share = self.token_share if name == TOKEN_SHARE else self.batch[name]
        return jnp.sum(jnp.where(share != 0, losses * share, jnp.float32(0.0)))

    def _sum_scored(self, losses: jax.Array) -> jax.Array:
        return self._sum_tokens(losses, LABEL_SHARE) if self.objective.scores_tokens else self._sum_rows(losses)

    def _temperature(self, rank: int) -> jax.Array:
        config = self.objective.config
        if config.temperature_schedule == "constant":
            return jnp.float32(config.temperature)
        found = temperature_at(config, self.batch[PROGRESS])
        return found.reshape(-1, *(1,) * (rank - 1))

    def _teacher_logits(self) -> list[jax.Array]:
        """Returns the scores of all teachers, stored ones or of this step."""
        stored = [TEACHER_LOGITS.format(number) for number in range(len(self.objective.teacher_weights))]
        if stored[0] in self.batch:
            return [self.batch[name].astype(jnp.float32) for name in stored]
        return [teacher.logits.astype(jnp.float32) for teacher in self.output.teachers]

    def _ends(self, logits: jax.Array) -> jax.Array:
        """Returns the scores of an answer's ends with the tokens last and padding hidden."""
        scores = jnp.swapaxes(logits, 1, 2)
        return jnp.where(self.visible, scores, jnp.float32(HIDDEN_SCORE))

    def soft(self) -> jax.Array:
        objective, logits = self.objective, self.output.student.logits.astype(jnp.float32)
        if TEACHER_IDS.format(0) in self.batch:
            return self._soft_of_top(logits)
        teachers = self._teacher_logits()
        if objective.problem_type == "regression":
            return self._sum_rows(compare.squared_differences(logits, self._mean_logits(teachers)))
        temperature = self._temperature(logits.ndim)
        if objective.problem_type == "multi_label_classification":
            chances = self._mean_logits([jax.nn.sigmoid(scores / temperature) for scores in teachers])
            return self._sum_rows(compare.soft_logistic_losses(logits, chances, temperature))
        if objective.task == "question-answering":
            logits, teachers = self._ends(logits), [self._ends(scores) for scores in teachers]
        targets = compare.teacher_probabilities(teachers, objective.teacher_weights, temperature)
        losses = compare.soft_target_losses(logits, targets, temperature)
        return self._sum_scored(jnp.mean(losses, axis=1) if objective.task == "question-answering" else losses)

    def _soft_of_top(self, logits: jax.Array) -> jax.Array:
        total = jnp.zeros((), jnp.float32)
        for number, weight in enumerate(self.objective.teacher_weights):
            ids, kept = self.batch[TEACHER_IDS.format(number)], self.batch[TEACHER_LOGITS.format(number)]
            losses = compare.top_soft_target_losses(logits, ids, jnp.exp(kept.astype(jnp.float32)))
            total = total + jnp.float32(weight / sum(self.objective.teacher_weights)) * self._sum_scored(losses)
        return total

    def _mean_logits(self, teachers: list[jax.Array]) -> jax.Array:
        weights = self.objective.teacher_weights
        shares = [jnp.float32(weight / sum(weights)) for weight in weights]
        return sum((share * one for share, one in zip(shares, teachers, strict=True)), jnp.zeros((), jnp.float32))

    def logit(self) -> jax.Array:
        logits, teacher = self.output.student.logits.astype(jnp.float32), self._mean_logits(self._teacher_logits())
        losses = compare.squared_differences(logits, teacher)
        return self._sum_tokens(losses) if self.objective.task == "question-answering" else self._sum_scored(losses)

    def hard(self) -> jax.Array:
        loss = self.objective.hard
        if loss is None:
            raise ShapeError(f"The task {self.objective.task} has no loss of its own for the hard term.")
        total, _ = loss(self.output.student, self.batch)
        return total * self.batch[HARD_SHARE][0]

    def _projected(self, name: str, hidden: jax.Array) -> jax.Array:
        kernel = self.output.projections.get(name)
        if kernel is None:
            return hidden
        return jnp.dot(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def _mapped_states(self) -> list[tuple[jax.Array, jax.Array]]:
        student, teacher = self.output.student.hidden_states, self.output.teachers[0].hidden_states
        return [(student[own + 1], teacher[theirs + 1]) for own, theirs in enumerate(self.objective.layer_map)]

    def embedding(self) -> jax.Array:
        student = self._projected("embedding", self.output.student.hidden_states[0])
        teacher = self.output.teachers[0].hidden_states[0]
        return self._sum_tokens(compare.squared_differences(student, teacher))

    def _of_states(self, function: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        losses = (
            self._sum_tokens(function(self._projected("hidden", student), teacher))
            for student, teacher in self._mapped_states()
        )
        return sum(losses, jnp.zeros((), jnp.float32))

    def hidden(self) -> jax.Array:
        return self._of_states(compare.squared_differences)

    def hidden_cosine(self) -> jax.Array:
        return self._of_states(compare.cosine_distances)

    def patient(self) -> jax.Array:
        total = jnp.zeros((), jnp.float32)
        for student, teacher in self._mapped_states()[:-1]:
            first = self._projected("hidden", student[:, 0])
            losses = compare.patient_losses(first, teacher[:, 0])
            total = total + self._sum_rows(jnp.mean(losses.reshape(self.rows.shape[0], -1), axis=1))
        return total

    def attention(self) -> jax.Array:
        objective, total = self.objective, jnp.zeros((), jnp.float32)
        for own, theirs in enumerate(objective.layer_map):
            student, teacher = self.output.student.attention[own], self.output.teachers[0].attention[theirs]
            query, key = teacher.query, teacher.key
            if objective.teacher_heads:
                heads = jnp.asarray(objective.teacher_heads[own], jnp.int32)
                query, key = jnp.take(query, heads, axis=1), jnp.take(key, heads, axis=1)
            scores = compare.relation_scores(student.query, student.key)
            expected = compare.relation_scores(query, key)
            total = total + self._sum_tokens(compare.attention_score_losses(scores, expected, self.visible))
        return total

    def _relation(self, left: str, right: str, num_heads: int) -> jax.Array:
        config, scores = self.objective.config, []
        student = self.output.student.attention[config.relation_student_layer]
        teacher = self.output.teachers[0].attention[config.relation_teacher_layer]
        for layer in (student, teacher):
            heads = num_heads or config.relation_heads or student.query.shape[1]
            parts = (compare.split_relation_heads(getattr(layer, name), heads) for name in (left, right))
            scores.append(compare.relation_scores(*parts))
        return self._sum_tokens(compare.relation_losses(scores[0], scores[1], self.visible))

    def attention_relation(self) -> jax.Array:
        return self._relation("query", "key", self.output.student.attention[0].query.shape[1])

    def query_relation(self) -> jax.Array:
        return self._relation("query", "query", 0)

    def key_relation(self) -> jax.Array:
        return self._relation("key", "key", 0)

    def value_relation(self) -> jax.Array:
        return self._relation("value", "value", 0)
