"""A narrower encoder out of a wide one: each of its matrices is the least squares fit to what the wide one computes.

The student keeps those directions of the teacher's residual stream along which it varies most, some heads and some feed-forward units.
Layer by layer, with the activations that the student itself has by then, its kernels are fitted so that queries,
keys, values, feed-forward units and the states after each half come as close as they can to those of the teacher's layer: the
reconstruction of channel pruning (He, Zhang and Sun, 2017, equation 1) in closed form. What earlier layers got wrong, and what was left
out between two layers, is so corrected as far as a linear map can.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from flaxbert.architecture import ModelConfig
from flaxbert.core.arrays import Params
from flaxbert.core.trees import flatten_names, unflatten_names
from flaxbert.errors import ConfigError

RIDGE = 1e-4
"""Share of the mean squared input that is added to the diagonal of a fit, against inputs that hardly differ."""

_HALVES = ("attention", "feed_forward")
_LAYER_LEAVES = {
    *(f"attention.{name}.{part}" for name in ("query", "key", "value", "output") for part in ("kernel", "bias")),
    *(f"feed_forward.{name}.{part}" for name in ("up", "down") for part in ("kernel", "bias")),
    *(f"{half}.norm.{part}" for half in _HALVES for part in ("scale", "bias")),
}
_TABLES = {f"embeddings.{name}.embedding" for name in ("word", "position", "token_type")}
_NORM = {"embeddings.norm.scale", "embeddings.norm.bias"}


@dataclasses.dataclass(frozen=True)
class Activations:
    """What a teacher computes of some texts, real tokens only, one after the other.

    Attributes:
      masks: Which tokens of each padded batch are real.
      embedded: Sums of the embedding tables' rows, ``[tokens, embed]``.
      states: Hidden states after the embeddings and every layer.
      attention: Queries, keys and values of every layer, ``[tokens, heads, head_dim]`` each.
    """

    masks: Sequence[Bool[np.ndarray, "batch length"]]
    embedded: Float[np.ndarray, "tokens embed"]
    states: Sequence[Float[np.ndarray, "tokens embed"]]
    attention: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]

    def by_row(self, values: Float[np.ndarray, "tokens ..."]) -> list[np.ndarray]:
        """Returns values of tokens as padded batches.

        Args:
          values: One entry for each real token.
        """
        parts, start = [], 0
        for mask in self.masks:
            padded = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
            padded[mask] = values[start : start + int(mask.sum())]
            start += int(mask.sum())
            parts.append(padded)
        return parts

    def mix(self, query: np.ndarray, key: np.ndarray, value: np.ndarray) -> Float[np.ndarray, "tokens attention"]:
        """Returns what softmax attention gathers, all heads side by side.

        Args:
          query: ``[tokens, heads, head_dim]``.
          key: Alike.
          value: Alike.
        """
        found = []
        for mask, *parts in zip(self.masks, *map(self.by_row, (query, key, value)), strict=True):
            q, k, v = (np.swapaxes(part, 1, 2) for part in parts)
            scores = q @ np.swapaxes(k, 2, 3) / np.sqrt(np.float32(q.shape[-1]))
            scores = np.where(mask[:, None, None, :], scores, np.float32(-1e30))
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ v
            found.append(np.swapaxes(mixed, 1, 2)[mask])
        joined = np.concatenate(found)
        return joined.reshape(len(joined), -1)


def check_can_narrow(names: Sequence[str], family: str) -> None:
    """Raises an error unless a model has BERT's blocks and embeddings, which narrowing knows.

    Args:
      names: Names of its leaves, with numbered layers.
      family: Its family, for the message.

    Raises:
      ConfigError: It has other leaves.
    """
    inside = [name for name in names if name.startswith(("encoder.", "embeddings."))]
    found = {re.sub(r"^encoder\.layers\.\d+\.", "", name) for name in inside}
    unknown = sorted(found - _LAYER_LEAVES - _TABLES - _NORM)
    missing = sorted((_LAYER_LEAVES | _NORM) - found)
    if unknown or missing:
        raise ConfigError(
            f"student.init 'sliced' knows BERT's blocks and embeddings only, but a {family} "
            f"{'has ' + unknown[0] if unknown else 'lacks ' + missing[0]}; use teacher_layers or random."
        )


def fit(
    inputs: Float[np.ndarray, "samples in_axis"], targets: Float[np.ndarray, "samples out_axis"], ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias that minimise ``|inputs kernel + bias - targets|**2 + ridge mean(inputs**2) samples |kernel|**2``.

    Args:
      inputs: What is multiplied.
      targets: What the products should be.
      ridge: Strength of the last term.
    """
    center, aim = inputs.mean(axis=0, dtype=np.float64), targets.mean(axis=0, dtype=np.float64)
    left = inputs.astype(np.float64) - center
    squares = left.T @ left
    squares[np.diag_indices_from(squares)] += max(ridge * float(np.mean(np.diag(squares))), 1e-12)
    kernel = np.linalg.solve(squares, left.T @ (targets.astype(np.float64) - aim))
    return kernel.astype(np.float32), (aim - center @ kernel).astype(np.float32)


def principal_basis(vectors: Float[np.ndarray, "samples width"], count: int) -> Float[np.ndarray, "width count"]:
    """Returns the directions along which vectors vary most, as orthonormal columns (Hotelling, 1933).

    Args:
      vectors: Samples.
      count: How many directions are wanted.
    """
    centered = vectors - vectors.mean(axis=0)
    square = (centered.T @ centered).astype(np.float64) / len(centered)
    values, directions = np.linalg.eigh(square)
    basis = directions[:, np.argsort(values)[::-1][:count]]
    signs = np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(count)])  # an eigenvector has no sign of its own
    return (basis * signs).astype(np.float32)


def _normalize(vectors: np.ndarray, epsilon: float) -> np.ndarray:
    centered = vectors - vectors.mean(axis=-1, keepdims=True)
    return centered / np.sqrt(np.mean(centered**2, axis=-1, keepdims=True) + np.float32(epsilon))


def _fit_norm(vectors: np.ndarray, targets: np.ndarray, epsilon: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns scale and bias of a norm whose results come closest to the targets, and these results."""
    inputs = _normalize(vectors, epsilon)
    center, aim = inputs.mean(axis=0), targets.mean(axis=0)
    spread = np.maximum(np.mean((inputs - center) ** 2, axis=0), 1e-12)
    scale = (np.mean((inputs - center) * (targets - aim), axis=0) / spread).astype(np.float32)
    leaves = {"scale": scale, "bias": (aim - scale * center).astype(np.float32)}
    return leaves, inputs * scale + leaves["bias"]


@dataclasses.dataclass(frozen=True)
class Narrowed:
    """A narrow student.

    Attributes:
      params: Its parameters, with the heads of the task.
      heads: Heads of the teacher that each layer's heads come from.
      states: Its last hidden states on the texts that it was fitted to.
    """

    params: Params
    heads: tuple[tuple[int, ...], ...]
    states: Float[np.ndarray, "tokens embed"]


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """How a student is cut out of a teacher.

    Attributes:
      teacher: Architecture of the teacher.
      student: Architecture of the student, of the same family.
      layers: The teacher's layer, from 0, for each layer of the student.
      activation: The activation of the feed-forward layers.
      seed: Seed of the little noise in what the teacher has no value for.
    """

    teacher: ModelConfig
    student: ModelConfig
    layers: tuple[int, ...]
    activation: Callable[[np.ndarray], np.ndarray]
    seed: int = 0

    def __call__(
        self, params: Mapping[str, Any], seen: Activations
    ) -> tuple[Narrowed, Float[np.ndarray, "embed narrow"]]:
        """Returns the student's embeddings and layers, and the directions of the teacher's residual stream that are its coordinates.

        Args:
          params: The teacher's parameters as dense arrays, with numbered layers.
          seen: What the teacher computes of the texts that the student is fitted to.
        """
        leaves = {name: np.asarray(leaf, np.float32) for name, leaf in flatten_names(params).items()}
        used = [0, *(layer + 1 for layer in self.layers)]
        samples = np.concatenate([_standard(seen.states[index]) for index in used])
        basis = principal_basis(samples, self.student.hidden_size)
        if self.student.hidden_size == self.teacher.hidden_size:
            basis = np.eye(self.teacher.hidden_size, dtype=np.float32)
        epsilon, found = self.student.layer_norm_epsilon, {}
        for name in _TABLES & leaves.keys():
            found[name] = leaves[name] @ basis
        norm, states = _fit_norm(seen.embedded @ basis, seen.states[0] @ basis, epsilon)
        found.update({f"embeddings.norm.{part}": value for part, value in norm.items()})
        heads = []
        for own, theirs in enumerate(self.layers):
            wide = _Layer(leaves, theirs, seen, self.teacher, self.activation)
            layer, states, chosen = self._layer(wide, seen, states, basis)
            found.update({f"encoder.layers.{own}.{name}": value for name, value in layer.items()})
            heads.append(chosen)
        return Narrowed(unflatten_names(found), tuple(heads), states), basis

    def _layer(
        self, wide: "_Layer", seen: Activations, states: np.ndarray, basis: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[int, ...]]:
        """Returns the leaves of one layer, the states after it and the heads that it keeps."""
        found: dict[str, np.ndarray] = {}
        chosen = wide.strongest_heads(self.student.num_attention_heads)
        projected = []
        for name, targets in zip(
            ("query", "key", "value"), wide.narrow_heads(chosen, self.student.head_dim), strict=True
        ):
            kernel, bias = fit(states, targets)
            found |= {f"attention.{name}.kernel": kernel, f"attention.{name}.bias": bias}
            projected.append((states @ kernel + bias).reshape(len(states), self.student.num_attention_heads, -1))
        mixed = seen.mix(*projected)
        states = self._half(found, "attention", "output", mixed, states, wide.attended, basis)
        units = wide.strongest_units(self.student.intermediate_size)
        kernel, bias = fit(states, wide.raised[:, units])
        found |= {"feed_forward.up.kernel": kernel, "feed_forward.up.bias": bias}
        active = self.activation(states @ kernel + bias)
        return found, self._half(found, "feed_forward", "down", active, states, wide.finished, basis), chosen

    def _half(
        self,
        found: dict[str, np.ndarray],
        half: str,
        name: str,
        inputs: np.ndarray,
        states: np.ndarray,
        aims: tuple[np.ndarray, np.ndarray],
        basis: np.ndarray,
    ) -> np.ndarray:
        """Fits the last product of a half and its norm to the teacher's sum and result; returns the student's result."""
        summed, result = aims
        kernel, bias = fit(inputs, summed @ basis - states)
        after = states + inputs @ kernel + bias
        norm, after = _fit_norm(after, result @ basis, self.student.layer_norm_epsilon)
        found |= {f"{half}.{name}.kernel": kernel, f"{half}.{name}.bias": bias}
        found |= {f"{half}.norm.{part}": value for part, value in norm.items()}
        return after


def _standard(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors of mean 0 and mean square 1 over all their entries, so that no layer weighs more than another."""
    centered = vectors - vectors.mean(axis=0)
    return centered / np.sqrt(np.mean(centered**2))


class _Layer:
    """One layer of the teacher with everything inside of it."""

    def __init__(
        self,
        leaves: Mapping[str, np.ndarray],
        number: int,
        seen: Activations,
        config: ModelConfig,
        activation: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        own = lambda name: leaves[f"encoder.layers.{number}.{name}"]
        self.query, self.key, self.value = seen.attention[number]
        self.mixed = seen.mix(self.query, self.key, self.value)
        self.output = own("attention.output.kernel")
        summed = seen.states[number] + self.mixed @ self.output + own("attention.output.bias")
        scale, bias = own("attention.norm.scale"), own("attention.norm.bias")
        self.attended = summed, _normalize(summed, config.layer_norm_epsilon) * scale + bias
        self.raised = self.attended[1] @ own("feed_forward.up.kernel") + own("feed_forward.up.bias")
        self.active, self.down = activation(self.raised), own("feed_forward.down.kernel")
        self.finished = (
            self.attended[1] + self.active @ self.down + own("feed_forward.down.bias"),
            seen.states[number + 1],
        )

    def strongest_heads(self, count: int) -> tuple[int, ...]:
        """Returns the heads that write most to the residual stream, in order."""
        heads = self.query.shape[1]
        mixed, kernels = (
            self.mixed.reshape(len(self.mixed), heads, -1),
            self.output.reshape(heads, -1, self.output.shape[1]),
        )
        strengths = [float(np.mean(np.var(mixed[:, head] @ kernels[head], axis=0))) for head in range(heads)]
        return tuple(sorted(np.argsort(strengths)[::-1][:count].tolist()))

    def strongest_units(self, count: int) -> Int[np.ndarray, "count"]:
        """Returns the feed-forward units that write most to the residual stream, in order."""
        strengths = np.var(self.active, axis=0) * np.sum(self.down**2, axis=1)
        return np.sort(np.argsort(strengths)[::-1][:count])

    def narrow_heads(self, chosen: tuple[int, ...], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what the student's queries, keys and values should be, all heads side by side."""
        parts: list[list[np.ndarray]] = [[], [], []]
        for head in chosen:
            query, key, value = self.query[:, head], self.key[:, head], self.value[:, head]
            if width < query.shape[1]:
                query, key = _narrow_scores(query, key, width)
                value = value @ np.linalg.svd(value.T @ value)[0][:, :width]
            for part, array in zip(parts, (query, key, value), strict=True):
                part.append(array)
        return tuple(np.concatenate(part, axis=1).astype(np.float32) for part in parts)  # type: ignore[return-value]


def _narrow_scores(query: np.ndarray, key: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns narrower queries and keys with the best scores of that rank: a singular value decomposition weighted by both covariances."""
    roots = []
    for vectors in (query, key):
        square = vectors.T.astype(np.float64) @ vectors / len(vectors)
        roots.append(np.linalg.cholesky(square + 1e-6 * np.trace(square) / len(square) * np.eye(len(square))))
    left, values, right = np.linalg.svd(roots[0].T @ roots[1])
    share = (
        np.sqrt(values[:width]) * (width / query.shape[1]) ** 0.25
    )  # scores are divided by the root of another width
    return (
        query @ np.linalg.solve(roots[0].T, left[:, :width]) * share,
        key @ np.linalg.solve(roots[1].T, right[:width].T) * share,
    )
