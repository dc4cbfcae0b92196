"""Calibration: what the inputs of a model's kernels look like on examples."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flaxbert.architecture import Execution
from flaxbert.core.low_bit_arrays import ObservedArray
from flaxbert.core.rules import match_rules
from flaxbert.core.trees import flatten_names, is_stacked, map_leaves
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError, RuleError, nearest
from flaxbert.families.graph import forward, graph_definition
from flaxbert.inference import input_batches
from flaxbert.model import Model
from flaxbert.transforms.quantize import QuantizationRule, QuantizationSpec
from flaxbert.transforms.statistics import NUM_BINS, InputStatistics, Statistics, merge_statistics

CALIBRATION_BATCH_SIZE = 16

Measure = Callable[[Float[Array, "rows in_axis"], Bool[Array, "rows"], str], dict[str, Any]]


def _rows(inputs: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the inputs of a kernel as rows, and which of them belong to real tokens."""
    inputs = inputs.astype(jnp.float32)
    rows, real = inputs.reshape(-1, inputs.shape[-1]), mask.reshape(-1) > 0
    if real.shape[0] == rows.shape[0]:
        return rows, real
    first = mask.reshape(-1, mask.shape[-1])[:, 0] > 0  # one row an input: that of its first token
    if first.shape[0] == rows.shape[0]:
        return rows, first
    return rows, jnp.ones((rows.shape[0],), bool)


def _ranges(rows: jax.Array, real: jax.Array, squares: bool) -> dict[str, jax.Array]:
    kept = real[:, None]
    clean = jnp.where(kept, rows, 0.0)
    found = {
        "count": jnp.sum(real.astype(jnp.int32)),
        "low": jnp.min(jnp.where(kept, rows, jnp.inf), axis=0),
        "high": jnp.max(jnp.where(kept, rows, -jnp.inf), axis=0),
        "magnitude": jnp.sum(jnp.abs(clean), axis=0),
    }
    if squares:
        dimensions = (((0,), (0,)), ((), ()))
        found["squares"] = jax.lax.dot_general(clean, clean, dimensions, preferred_element_type=jnp.float32)
    return found


def _counts(rows: jax.Array, real: jax.Array, largest: jax.Array) -> dict[str, jax.Array]:
    place = jnp.abs(rows) * (NUM_BINS / jnp.maximum(largest, 1e-30))
    bins = jnp.minimum(place.astype(jnp.int32), NUM_BINS - 1)
    weights = jnp.broadcast_to(real[:, None], rows.shape).astype(jnp.int32)
    return {"histogram": jnp.zeros((NUM_BINS,), jnp.int32).at[bins.reshape(-1)].add(weights.reshape(-1))}


@dataclasses.dataclass(frozen=True)
class _Observation:
    """Runs a model with leaves that tell what they are multiplied by."""

    model: Model
    names: frozenset[str]

    def program(self, measure: Callable[[str, jax.Array, jax.Array, Any], dict[str, Any]]) -> Any:
        """Returns a compiled ``(params, batch, extra) -> what was measured, by leaf and by use of it``.

        Args:
          measure: Reduces the inputs of one product, given leaf name, rows, which are real, and extra.
        """
        model = self.model
        execution = Execution(precision=model.execution.precision, attention="xla")
        graphdef = graph_definition(model.config, model.task, execution)

        def run(params: Any, batch: Mapping[str, Any], extra: Any) -> dict[str, list[dict[str, Any]]]:
            seen: dict[str, list[dict[str, Any]]] = {}

            def listen(name: str, inputs: jax.Array) -> None:
                rows, real = _rows(inputs, batch["attention_mask"])
                seen.setdefault(name, []).append(measure(name, rows, real, extra))

            observed = map_leaves(
                lambda name, leaf: ObservedArray(leaf, name, listen) if name in self.names else leaf, params
            )
            forward(graphdef, observed, batch)
            return seen

        return jax.jit(run)


def _put_together(found: Mapping[str, np.ndarray]) -> InputStatistics | None:
    count = int(found["count"])
    if not count:
        return None
    squares = found.get("squares")
    return InputStatistics(
        count=count,
        low=np.asarray(found["low"]),
        high=np.asarray(found["high"]),
        mean_magnitude=np.asarray(found["magnitude"], np.float64) / count,
        second_moment=None if squares is None else np.asarray(squares, np.float64) / count,
    )


def measure_statistics(
    model: Model,
    examples: TokenizedExamples,
    names: Collection[str],
    *,
    second_moments: bool = False,
    histograms: bool = False,
    batch_size: int = CALIBRATION_BATCH_SIZE,
) -> Statistics:
    """Runs a model on examples and measures what its kernels are multiplied by; padding is left out.

    Histograms need the ranges first, so the examples are run twice for them.

    Args:
      model: The model, layers not stacked.
      examples: Tokenized examples such as the model will see.
      names: Leaves whose inputs are measured.
      second_moments: Whether second moments are wanted: ``in x in`` numbers a leaf.
      histograms: Whether histograms of magnitudes are wanted.
      batch_size: Examples run at once.

    Returns:
      Statistics by leaf name.

    Raises:
      DataError: There are no examples.
      RuleError: A name is no leaf, or the model does not multiply by it.
      ConfigError: The layers of the model are stacked.
    """
    if not len(examples):
        raise DataError("There are no examples to calibrate on.")
    if is_stacked(model.params):
        raise ConfigError("The layers of the model are stacked; calibrate it with scan_layers false.")
    leaves = flatten_names(model.params)
    for name in names:
        if name not in leaves:
            raise RuleError(f"'{name}' is to be calibrated, but is no leaf of the model.{nearest(name, leaves)}")
    observation = _Observation(model, frozenset(names))
    batches = lambda: (
        batch for _, batch in input_batches(examples, batch_size=batch_size, max_length=model.max_length)
    )
    program = observation.program(lambda _, rows, real, extra: _ranges(rows, real, second_moments))
    statistics = _accumulate(program, model.params, batches(), None)
    silent = [name for name in names if name not in statistics]
    if silent:
        raise RuleError(
            f"The model does not multiply by '{silent[0]}' ({len(silent)} such leaves) when it runs, so there is nothing to calibrate; let an earlier "
            "rule give such leaves the value None."
        )
    if not histograms:
        return statistics
    largest = {name: jnp.float32(found.largest.max()) for name, found in statistics.items()}
    counting = observation.program(lambda name, rows, real, extra: _counts(rows, real, extra[name]))
    counts = {name: np.zeros(NUM_BINS, np.int64) for name in statistics}
    for batch in batches():
        for name, uses in jax.device_get(counting(model.params, batch, largest)).items():
            for use in uses:
                counts[name] += use["histogram"]
    return {name: dataclasses.replace(found, histogram=counts[name]) for name, found in statistics.items()}


def _accumulate(
    program: Any, params: Any, batches: Iterable[Mapping[str, Any]], extra: Any
) -> dict[str, InputStatistics]:
    statistics: dict[str, InputStatistics] = {}
    for batch in batches:
        for name, uses in jax.device_get(program(params, batch, extra)).items():
            for use in uses:
                part = _put_together(use)
                if part is not None:
                    statistics[name] = merge_statistics(statistics[name], part) if name in statistics else part
    return statistics


def calibrate(model: Model, examples: TokenizedExamples, rules: Collection[QuantizationRule]) -> Statistics:
    """Measures what the rules of a quantization need to know; nothing where they need nothing.

    Args:
      model: The model.
      examples: Tokenized examples such as the model will see.
      rules: The rules.

    Returns:
      Statistics of every kernel whose rule needs them.
    """
    specs = match_rules(model.params, tuple(rules), purpose="quantization")
    needy: dict[str, QuantizationSpec] = {
        name: spec
        for name, spec in specs.items()
        if spec is not None and spec.needs_statistics and name.endswith(".kernel")
    }
    if not needy:
        return {}
    return measure_statistics(
        model,
        examples,
        needy,
        second_moments=any(spec.needs_second_moment for spec in needy.values()),
        histograms=any(spec.needs_histogram for spec in needy.values()),
    )


__all__ = ["CALIBRATION_BATCH_SIZE", "calibrate", "measure_statistics"]
