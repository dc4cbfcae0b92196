"""Losses per example in float32, and the weighted sums that steps add up.

A loss function returns the weighted sum of losses and the sum of the weights of a batch. Their quotient is the loss; sums of
micro batches and devices add up, so accumulation and meshes give the loss of the whole batch exactly.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxbert.architecture import resolve_task
from flaxbert.config import IGNORED_LABEL
from flaxbert.core.sharding import TENSOR
from flaxbert.core.traced_mesh import ways
from flaxbert.errors import ConfigError, ShapeError, nearest

HIDDEN_SCORE = -1e30
"""Score of padding where an answer is chosen among tokens."""

Forward = Callable[..., Any]
"""``forward(params, batch, dropout_key=key or None)``, returns a ``ModelOutput``."""

LossFunction = Callable[[Any, Mapping[str, Any]], tuple[jax.Array, jax.Array]]
"""``loss(output, batch) -> (weighted sum, sum of weights)``, both float32 scalars, for a ``ModelOutput``."""


@jax.custom_vjp
def negative_log_likelihood(
    logits: Float[Array, "*batch labels"], labels: Int[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Returns ``-log softmax(logits)[label]`` and ``logsumexp(logits)`` of every position.

    The backward pass keeps only the scores and recomputes their softmax, which matters for scores over a vocabulary.

    Args:
      logits: float32 scores.
      labels: Labels in range.
    """
    log_partition = jax.scipy.special.logsumexp(logits, axis=-1)
    return log_partition - _pick(logits, labels), log_partition


def _pick(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the score of each label."""
    if ways(TENSOR) == 1:
        return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    # Scores over ``tensor`` are summed instead of gathered: XLA's partitioner (jaxlib 0.10.2) ends the process on such a gather inside of manual axes.
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    return jnp.sum(jnp.where(classes == labels[..., None], logits, jnp.float32(0.0)), axis=-1)


def _likelihood_forward(logits: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
    loss, log_partition = negative_log_likelihood(logits, labels)
    return (loss, log_partition), (logits, labels, log_partition)


def _likelihood_backward(residuals: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    logits, labels, log_partition = residuals
    from_loss, from_partition = cotangents
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    probabilities = jnp.exp(logits - log_partition[..., None])
    gradient = probabilities * (from_loss + from_partition)[..., None]
    return gradient - jnp.where(classes == labels[..., None], from_loss[..., None], jnp.float32(0.0)), None


negative_log_likelihood.defvjp(_likelihood_forward, _likelihood_backward)


def cross_entropy(
    logits: Float[Array, "*batch labels"],
    labels: Int[Array, "*batch"],
    *,
    label_smoothing_rate: float = 0.0,
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Returns the weighted cross entropy of every position and its weight.

    With ``w`` the class weights, ``y`` the label, ``K`` labels and ``s`` the smoothing rate, as torch's
    ``CrossEntropyLoss``: ``(1 - s) * w[y] * -log p[y] + s / K * sum_k w[k] * -log p[k]``, with weight ``w[y]``.

    Args:
      logits: float32 scores.
      labels: Labels; ``-100`` is ignored (loss and weight 0).
      label_smoothing_rate: Share of the target mass that is spread over all labels, in [0, 1).
      class_weights: Weight per label; empty weighs all alike.
    """
    known = labels != IGNORED_LABEL
    targets = jnp.where(known, labels, jnp.zeros_like(labels))
    losses, log_partition = negative_log_likelihood(logits, targets)
    weights = jnp.ones_like(losses)
    table = jnp.asarray(class_weights, jnp.float32) if class_weights else None
    if table is not None:
        weights = jnp.take(table, targets)
        losses = losses * weights
    if label_smoothing_rate > 0:
        mass = jnp.float32(logits.shape[-1]) if table is None else jnp.sum(table)
        summed = jnp.sum(logits, axis=-1) if table is None else jnp.sum(logits * table, axis=-1)
        share = jnp.float32(label_smoothing_rate / logits.shape[-1])
        losses = jnp.float32(1.0 - label_smoothing_rate) * losses + share * (mass * log_partition - summed)
    zero = jnp.float32(0.0)
    return jnp.where(known, losses, zero), jnp.where(known, weights, zero)


def logistic_losses(logits: Float[Array, "*batch"], targets: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Returns ``-t log sigmoid(x) - (1 - t) log (1 - sigmoid(x))`` of every score, without overflow.

    Args:
      logits: float32 scores ``x``.
      targets: Targets ``t`` in [0, 1].
    """
    return jnp.maximum(logits, jnp.float32(0.0)) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def binary_cross_entropy(
    logits: Float[Array, "batch labels"],
    labels: Float[Array, "batch labels"],
    *,
    label_smoothing_rate: float = 0.0,
    class_weights: Sequence[float] = (),
) -> Float[Array, "batch"]:
    """Returns the mean over labels of the binary cross entropy of every example, as torch's ``BCEWithLogitsLoss``.

    Args:
      logits: float32 scores.
      labels: 1 where a label holds, else 0.
      label_smoothing_rate: Targets become ``label * (1 - s) + s / 2``.
      class_weights: Factor of the loss of each label; empty weighs all alike.
    """
    targets = labels.astype(jnp.float32)
    if label_smoothing_rate > 0:
        targets = targets * jnp.float32(1.0 - label_smoothing_rate) + jnp.float32(label_smoothing_rate / 2)
    losses = logistic_losses(logits, targets)
    if class_weights:
        losses = losses * jnp.asarray(class_weights, jnp.float32)
    return jnp.mean(losses, axis=-1)


def squared_error(logits: Float[Array, "batch labels"], labels: Float[Array, "..."]) -> Float[Array, "batch"]:
    """Returns the mean over outputs of the squared error of every example.

    Args:
      logits: float32 predictions.
      labels: Targets ``[batch]`` for one output, else ``[batch, labels]``.
    """
    targets = jnp.reshape(labels.astype(jnp.float32), logits.shape)
    return jnp.mean(jnp.square(logits - targets), axis=-1)


def _weighted_sums(losses: jax.Array, weights: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    example_weight = batch.get("example_weight")
    if example_weight is not None:
        shape = (-1,) + (1,) * (losses.ndim - 1)
        rows = jnp.reshape(example_weight.astype(jnp.float32), shape)
        # Rows of weight 0 only fill the batch; whatever their loss is, it must not reach the sum.
        losses = jnp.where(rows != 0, losses * rows, jnp.float32(0.0))
        weights = weights * rows
    return jnp.sum(losses), jnp.sum(weights)


def _read_labels(output: Any, batch: Mapping[str, Any], per_token: bool, whole_numbers: bool) -> tuple[Any, Any]:
    logits, labels = output.logits.astype(jnp.float32), batch.get("labels")
    if labels is None:
        raise ShapeError(f"The batch has no 'labels', which training needs; it has {sorted(batch)}.")
    if whole_numbers:
        expected = "[batch, length]" if per_token else "[batch]"
        if tuple(labels.shape) != tuple(logits.shape[:-1]) or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ShapeError(
                f"The labels are {labels.dtype}{list(labels.shape)} for scores {list(logits.shape)}; "
                f"this task needs whole numbers {expected}."
            )
    elif labels.size != logits.size:
        raise ShapeError(f"The labels have shape {list(labels.shape)}, but the scores {list(logits.shape)}.")
    return logits, labels


def _cross_entropy_sums(
    output: Any, batch: Mapping[str, Any], *, per_token: bool, rate: float, class_weights: tuple[float, ...]
) -> tuple[jax.Array, jax.Array]:
    logits, labels = _read_labels(output, batch, per_token, whole_numbers=True)
    losses, weights = cross_entropy(logits, labels, label_smoothing_rate=rate, class_weights=class_weights)
    return _weighted_sums(losses, weights, batch)


def _binary_sums(
    output: Any, batch: Mapping[str, Any], *, rate: float, class_weights: tuple[float, ...]
) -> tuple[jax.Array, jax.Array]:
    logits, labels = _read_labels(output, batch, per_token=False, whole_numbers=False)
    losses = binary_cross_entropy(logits, labels, label_smoothing_rate=rate, class_weights=class_weights)
    return _weighted_sums(losses, jnp.ones_like(losses), batch)


def _squared_sums(output: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    logits, labels = _read_labels(output, batch, per_token=False, whole_numbers=False)
    losses = squared_error(logits, labels)
    return _weighted_sums(losses, jnp.ones_like(losses), batch)


def _span_sums(output: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Mean of the cross entropies of the first and the last token of an answer over all tokens that are no padding."""
    logits, labels = output.logits.astype(jnp.float32), batch.get("labels")
    if labels is None:
        raise ShapeError(f"The batch has no 'labels', which training needs; it has {sorted(batch)}.")
    if labels.shape != (logits.shape[0], 2) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ShapeError(
            f"The labels are {labels.dtype}{list(labels.shape)} for scores {list(logits.shape)}; this task needs the "
            "whole numbers of the first and the last token, [batch, 2]."
        )
    scores = jnp.swapaxes(logits, 1, 2)
    mask = batch.get("attention_mask")
    if mask is not None:
        scores = jnp.where(mask[:, None, :] > 0, scores, jnp.float32(HIDDEN_SCORE))
    losses, weights = cross_entropy(scores, labels)
    return _weighted_sums(jnp.mean(losses, axis=1), jnp.mean(weights, axis=1), batch)


_PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def _rows(rate: float, weights: tuple[float, ...]) -> LossFunction:
    return functools.partial(_cross_entropy_sums, per_token=False, rate=rate, class_weights=weights)


def _tokens(rate: float, weights: tuple[float, ...]) -> LossFunction:
    return functools.partial(_cross_entropy_sums, per_token=True, rate=rate, class_weights=weights)


def _labels(rate: float, weights: tuple[float, ...]) -> LossFunction:
    return functools.partial(_binary_sums, rate=rate, class_weights=weights)


def _plain(name: str, loss: LossFunction) -> Callable[[float, tuple[float, ...]], LossFunction]:
    def build(rate: float, weights: tuple[float, ...]) -> LossFunction:
        if weights or rate:
            raise ConfigError(f"train.class_weights and train.label_smoothing_rate do not apply to {name}.")
        return loss

    return build


LOSSES: dict[str, Callable[[float, tuple[float, ...]], LossFunction]] = {
    "sequence-classification": _rows,
    "sequence-classification/multi_label_classification": _labels,
    "sequence-classification/regression": _plain("regression", _squared_sums),
    "next-sentence-prediction": _rows,
    "relation-classification": _rows,
    "multiple-choice": _rows,
    "token-classification": _tokens,
    "fill-mask": _tokens,
    "question-answering": _plain("question answering", _span_sums),
}
"""Builders ``(label_smoothing_rate, class_weights) -> loss`` by task, or by task and problem type."""


def loss_for(
    task: str,
    problem_type: str = "",
    *,
    num_labels: int = 0,
    label_smoothing_rate: float = 0.0,
    class_weights: Sequence[float] = (),
) -> LossFunction:
    """Chooses the loss of a task.

    Args:
      task: Task name or alias.
      problem_type: single_label_classification (also where empty), multi_label_classification or regression; read for
        sequence-classification only.
      num_labels: Outputs of the classifier, to check the class weights; 0 does not check.
      label_smoothing_rate: Share of the target mass that is spread over all labels, in [0, 1).
      class_weights: Weight per label, in label order; empty weighs all alike.

    Returns:
      The loss function.

    Raises:
      ConfigError: The task has no loss, the problem type is unknown, or smoothing or class weights do not fit.
    """
    canonical, weights = resolve_task(task), tuple(float(weight) for weight in class_weights)
    problem = problem_type or "single_label_classification"
    if problem not in _PROBLEM_TYPES:
        raise ConfigError(
            f"Unknown problem_type '{problem}'; choose one of {', '.join(_PROBLEM_TYPES)}."
            + nearest(problem, _PROBLEM_TYPES)
        )
    if weights and num_labels and len(weights) != num_labels:
        raise ConfigError(f"train.class_weights has {len(weights)} entries, but there are {num_labels} labels.")
    if any(not 0 <= weight < float("inf") for weight in weights) or (weights and not any(weights)):
        raise ConfigError(f"train.class_weights is {weights}; weights are finite, not negative and not all 0.")
    build = LOSSES.get(f"{canonical}/{problem}") or LOSSES.get(canonical)
    if build is None:
        known = ", ".join(name for name in LOSSES if "/" not in name)
        raise ConfigError(f"The task '{canonical}' has no training loss; train {known}.")
    return build(label_smoothing_rate, weights)
