"""What a student is compared with a teacher by, as pure functions in float32, without weights or sums.

Each returns one number for every example or token; ``train.distillation`` weighs and adds them up. Teacher's arrays are constants
to the caller's gradient: nothing here stops gradients.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxbert.train.losses import HIDDEN_SCORE, logistic_losses

SMALLEST_LENGTH = 1e-12
"""Vectors are divided by no length below this."""


def teacher_probabilities(
    logits: Sequence[Float[Array, "*batch labels"]], weights: Sequence[float], temperature: Float[Array, "..."]
) -> Float[Array, "*batch labels"]:
    """Returns ``sum_k w[k] softmax(z_k / T)`` of several teachers, with the weights scaled to sum 1 (Hinton et al., 2015, section 2).

    Args:
      logits: Scores of each teacher.
      weights: Weight of each teacher.
      temperature: Temperature ``T`` above 0, a scalar or of a shape that broadcasts to the scores.
    """
    total = sum(weights)
    shares = [jnp.float32(weight / total) for weight in weights]
    return sum(
        (share * jax.nn.softmax(scores / temperature, axis=-1) for share, scores in zip(shares, logits, strict=True)),
        start=jnp.zeros((), jnp.float32),
    )


def soft_target_losses(
    logits: Float[Array, "*batch labels"],
    probabilities: Float[Array, "*batch labels"],
    temperature: Float[Array, "..."],
) -> Float[Array, "*batch"]:
    """Returns ``T**2 * KL(p || softmax(z / T))`` (Hinton et al., 2015, section 2).

    The factor keeps the size of the gradient where the temperature changes; the divergence has the gradient of the cross entropy
    and is 0 where the student agrees.

    Args:
      logits: Scores ``z`` of the student.
      probabilities: What the teacher gives at the same temperature.
      temperature: As for ``teacher_probabilities``.
    """
    return jnp.square(jnp.squeeze(temperature, -1) if jnp.ndim(temperature) else temperature) * _divergence(
        probabilities, jax.nn.log_softmax(logits / temperature, axis=-1)
    )


def _divergence(probabilities: jax.Array, log_student: jax.Array) -> jax.Array:
    """Returns ``sum p (log p - log q)`` over the last axis, where ``0 log 0`` is 0."""
    positive = probabilities > 0
    log_teacher = jnp.log(jnp.where(positive, probabilities, jnp.float32(1.0)))
    terms = jnp.where(positive, probabilities * (log_teacher - log_student), jnp.float32(0.0))
    return jnp.sum(terms, axis=-1)


def top_soft_target_losses(
    logits: Float[Array, "*batch labels"],
    ids: Int[Array, "*batch kept"],
    probabilities: Float[Array, "*batch kept"],
) -> Float[Array, "*batch"]:
    """Returns the divergence over the kept labels and one more for all others together.

    With ``r = 1 - sum p`` and ``s = 1 - sum_kept softmax(z)``: ``sum p (log p - log softmax(z)) + r (log r - log s)``, a lower
    bound of the divergence over all labels.

    Args:
      logits: Scores ``z`` of the student.
      ids: Labels that were kept of the teacher.
      probabilities: What the teacher gives to them.
    """
    log_student = jax.nn.log_softmax(logits, axis=-1)
    kept = jnp.take_along_axis(log_student, ids, axis=-1)
    smallest = jnp.float32(1e-7)  # float32 can not tell a smaller rest from rounding
    rest = jnp.maximum(1.0 - jnp.sum(probabilities, axis=-1), jnp.float32(0.0))
    rest = jnp.where(rest < smallest, jnp.float32(0.0), rest)
    student_rest = jnp.maximum(1.0 - jnp.sum(jnp.exp(kept), axis=-1), smallest)
    both = jnp.concatenate([probabilities, rest[..., None]], axis=-1)
    return _divergence(both, jnp.concatenate([kept, jnp.log(student_rest)[..., None]], axis=-1))


def soft_logistic_losses(
    logits: Float[Array, "batch labels"],
    probabilities: Float[Array, "batch labels"],
    temperature: Float[Array, "..."],
) -> Float[Array, "batch"]:
    """Returns ``T**2`` times the mean over labels of the divergence of two coins, ``sigmoid(z / T)`` from ``p``.

    Args:
      logits: Scores ``z`` of the student, one for each label.
      probabilities: ``sigmoid`` of the teacher's scores over the temperature, perhaps a mean over teachers.
      temperature: As for ``teacher_probabilities``.
    """
    cross = logistic_losses(logits / temperature, probabilities)
    entropy = -(_times_log(probabilities) + _times_log(1.0 - probabilities))
    return jnp.mean(jnp.square(temperature) * (cross - entropy), axis=-1)


def _times_log(values: jax.Array) -> jax.Array:
    positive = values > 0
    return jnp.where(positive, values * jnp.log(jnp.where(positive, values, jnp.float32(1.0))), jnp.float32(0.0))


def squared_differences(
    student: Float[Array, "*batch width"], teacher: Float[Array, "*batch width"]
) -> Float[Array, "*batch"]:
    """Returns the mean over the last axis of the squared difference (logits: Ba and Caruana, 2014; hidden states: Jiao et al., 2020,
    equations 8 and 9).

    Args:
      student: Vectors of the student.
      teacher: Vectors of the teacher.
    """
    return jnp.mean(jnp.square(student.astype(jnp.float32) - teacher.astype(jnp.float32)), axis=-1)


def cosine_distances(
    student: Float[Array, "*batch width"], teacher: Float[Array, "*batch width"]
) -> Float[Array, "*batch"]:
    """Returns ``1 - cos(s, t)`` (Sanh et al., 2019, section 3).

    Args:
      student: Vectors of the student.
      teacher: Vectors of the teacher.
    """
    return 1.0 - jnp.sum(_normalized(student) * _normalized(teacher), axis=-1)


def patient_losses(
    student: Float[Array, "*batch width"], teacher: Float[Array, "*batch width"]
) -> Float[Array, "*batch"]:
    """Returns ``|| s / |s| - t / |t| ||**2`` (Sun et al., 2019, equation 7).

    Args:
      student: First tokens' vectors of the student.
      teacher: Those of the teacher.
    """
    return jnp.sum(jnp.square(_normalized(student) - _normalized(teacher)), axis=-1)


def _normalized(vectors: jax.Array) -> jax.Array:
    vectors = vectors.astype(jnp.float32)
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, jnp.float32(SMALLEST_LENGTH**2)))


def relation_scores(
    left: Float[Array, "batch heads length head_dim"], right: Float[Array, "batch heads length head_dim"]
) -> Float[Array, "batch heads length length"]:
    """Returns ``left right^T / sqrt(head_dim)`` in float32.

    Args:
      left: One vector for each row of the result: queries, for attention scores.
      right: One for each column: keys, for attention scores.
    """
    width = left.shape[-1]
    products = jnp.einsum("bhqd,bhkd->bhqk", left, right, preferred_element_type=jnp.float32)
    return products.astype(jnp.float32) * jnp.float32(width**-0.5)


def attention_score_losses(
    student: Float[Array, "batch heads length length"],
    teacher: Float[Array, "batch heads length length"],
    visible: Bool[Array, "batch #length length"],
) -> Float[Array, "batch length"]:
    """Returns for every query the mean over heads and visible keys of the squared difference of scores (Jiao et al., 2020, equation 7).

    Args:
      student: Scores before softmax, as many heads as the teacher's.
      teacher: Scores before softmax.
      visible: Which tokens each one sees: no padding, and none of other texts in its row.
    """
    keys = visible[:, None].astype(jnp.float32)
    squared = jnp.sum(jnp.square(student - teacher) * keys, axis=-1) / jnp.maximum(jnp.sum(keys, axis=-1), 1.0)
    return jnp.mean(squared, axis=1)


def relation_losses(
    student: Float[Array, "batch heads length length"],
    teacher: Float[Array, "batch heads length length"],
    visible: Bool[Array, "batch #length length"],
) -> Float[Array, "batch length"]:
    """Returns for every token the mean over heads of ``KL(softmax(teacher) || softmax(student))`` over visible tokens (Wang et al., 2020,
    equations 4 and 6; 2021, equation 4).

    Args:
      student: Scaled products of the student, as many heads as the teacher's.
      teacher: Those of the teacher.
      visible: Which tokens each one sees: no padding, and none of other texts in its row.
    """
    keys = visible[:, None]
    hide = lambda scores: jnp.where(keys, scores, jnp.float32(HIDDEN_SCORE))
    divergence = _divergence(jax.nn.softmax(hide(teacher), axis=-1), jax.nn.log_softmax(hide(student), axis=-1))
    return jnp.mean(divergence, axis=1)


def split_relation_heads(
    vectors: Float[Array, "batch heads length head_dim"], num_heads: int
) -> Float[Array, "batch relation_heads length relation_dim"]:
    """Returns the vectors of all heads side by side, cut into another number of heads (Wang et al., 2021, section 3.1).

    Args:
      vectors: Queries, keys or values.
      num_heads: Relation heads; must divide the width of all heads together.
    """
    batch, heads, length, width = vectors.shape
    flat = jnp.swapaxes(vectors, 1, 2).reshape(batch, length, num_heads, heads * width // num_heads)
    return jnp.swapaxes(flat, 1, 2)
