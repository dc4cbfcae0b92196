"""Training that quantizes: leaves get levels whose distances are trained, and at the end codes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.config import TrainQuantizeConfig
from flaxbert.core.arrays import GroupedArray, Params, QuantizedArray, TypedArray
from flaxbert.core.learned_step_array import (
    INPUT_LEVELS,
    SMALLEST_STEP,
    LearnedInputStepArray,
    LearnedStepArray,
)
from flaxbert.core.low_bit_arrays import PackedArray, StaticQuantizedArray
from flaxbert.core.rules import Rule, match_rules
from flaxbert.core.trees import flatten_names, is_stacked, map_leaves, stack_layers, unstack_layers
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, RuleError, ShapeError
from flaxbert.evaluation.calibrate import measure_statistics
from flaxbert.model import Model
from flaxbert.train.recipes.plan import StepJob
from flaxbert.train.recipes.setup import Prepared
from flaxbert.train.state import frozen_leaves
from flaxbert.transforms.quantize import (
    DEFAULT_GROUP_SIZE,
    QuantizationRule,
    QuantizationSpec,
    default_quantization_rules,
)
from flaxbert.transforms.rounding import pack_pairs, pack_planes, symmetric_grid, to_bfloat16
from flaxbert.transforms.statistics import Statistics, largest_magnitude


def _first_step(weights: np.ndarray, axis: int, size: int, low: int, high: int) -> np.ndarray:
    """Returns the step of each group whose levels are nearest to its weights, by least squares over some shares of its range.

    LSQ's own ``2 * mean|w| / sqrt(high)`` (Esser et al., 2020, section 2.1) is for training from scratch: with 8 bits its levels reach three times as
    far as the weights of a trained model, with 4 bits in groups its errors are half as large again.
    """
    place = weights.ndim + axis
    groups = weights.reshape(*weights.shape[:place], -1, size, *weights.shape[place + 1 :])
    step = np.squeeze(symmetric_grid(groups, place + 1, low, high).scale, place + 1)
    return np.maximum(step, np.float32(SMALLEST_STEP))


def _learned(name: str, leaf: Any, quantize: TrainQuantizeConfig, statistics: Statistics) -> LearnedStepArray:
    weights, axis = np.asarray(leaf, np.float32), -2 if name.endswith(".kernel") else -1
    size = weights.shape[axis] if quantize.bits == 8 else quantize.group_size or DEFAULT_GROUP_SIZE
    if weights.shape[axis] % size:
        raise ShapeError(
            f"'{name}' has {weights.shape[axis]} entries along its contracted axis, which groups of {size} do not divide; choose another "
            "quantize.group_size, or keep the leaf (quantize.keep)."
        )
    low, high = (-127, 127) if quantize.bits == 8 else (-(2 ** (quantize.bits - 1)), 2 ** (quantize.bits - 1) - 1)
    parts = (weights, _first_step(weights, axis, size, low, high), np.array([[low, high]], np.int32))
    if name not in statistics:
        return LearnedStepArray(*parts)
    # All that was seen lies inside: rare large entries carry much, and a range that is too small grows by a thousandth a step.
    limit = largest_magnitude(statistics[name], "minmax", 100.0)
    return LearnedInputStepArray(*parts, np.full((1, 1), limit / INPUT_LEVELS[1], np.float32))


def _names(params: Mapping[str, Any], quantize: TrainQuantizeConfig) -> list[str]:
    """Returns the leaves of numbered layers that are rounded."""
    kept: tuple[QuantizationRule, ...] = tuple(Rule(pattern, None) for pattern in quantize.keep)
    rules = (
        *kept,
        *default_quantization_rules(QuantizationSpec(quantize.bits, quantize.group_size)),
    )
    names = [name for name, spec in match_rules(params, rules, purpose="quantize.keep").items() if spec is not None]
    leaves = flatten_names(params)
    for name in names:
        if isinstance(leaves[name], TypedArray):
            raise RuleError(
                f"'{name}' is {leaves[name].kind}, but training that rounds starts from float weights; quantize a pruned model afterwards (flaxbert "
                "quantize)."
            )
    if not names:
        raise ConfigError("quantize.bits is set, but no matrix is left to round; change quantize.keep.")
    return names


def _some(examples: TokenizedExamples, count: int) -> TokenizedExamples:
    """Returns the first examples, without labels."""
    count = min(count, len(examples)) * examples.rows_per_example
    end = int(examples.offsets[count])
    return dataclasses.replace(
        examples,
        input_ids=examples.input_ids[:end],
        token_type_ids=None if examples.token_type_ids is None else examples.token_type_ids[:end],
        offsets=examples.offsets[: count + 1],
        truncated=examples.truncated[:count],
        labels=None,
        token_values={name: values[:end] for name, values in examples.token_values.items()},
    )


def with_learned_steps(
    model: Model, quantize: TrainQuantizeConfig, examples: TokenizedExamples, freeze: Sequence[Any] = ()
) -> Params:
    """Returns the parameters of a model with levels on all large matrices.

    Args:
      model: A float model.
      quantize: How many levels.
      examples: Examples that the first steps of inputs are measured on.
      freeze: ``train.freeze``: what is kept as it is can not learn.

    Returns:
      The parameters, layers stacked as they were.

    Raises:
      ConfigError: What is rounded is frozen, or nothing is rounded.
      RuleError: A pattern matches no leaf, or a leaf is typed.
      ShapeError: Groups do not divide a leaf.
    """
    stacked = is_stacked(model.params)
    params = unstack_layers(model.params) if stacked else model.params
    names = _names(params, quantize)
    frozen = frozen_leaves(params, freeze)
    still = [name for name in names if frozen[name]]
    if still:
        raise ConfigError(
            f"'{still[0]}' is to be rounded, but train.freeze keeps it as it is ({len(still)} such leaves); train it, or name it in quantize.keep."
        )
    statistics: Statistics = {}
    if quantize.bits == 8 and quantize.activations == "static":
        kernels = [name for name in names if name.endswith(".kernel")]
        statistics = measure_statistics(model.replace(params=params), _some(examples, quantize.num_examples), kernels)
    chosen = set(names)
    learned = map_leaves(
        lambda name, leaf: _learned(name, leaf, quantize, statistics) if name in chosen else leaf, params
    )
    return stack_layers(learned) if stacked else learned


def quantize_while_training(job: StepJob, prepared: Prepared, quantize: TrainQuantizeConfig) -> StepJob:
    """Returns a job whose parameters are rounded wherever they are used, as a config says.

    Args:
      job: What the step is made from.
      prepared: The run, for model and examples.
      quantize: How; with 0 bits the job comes back as it is.

    Raises:
      ConfigError: The run prunes too, what is rounded is frozen, or nothing is rounded.
      RuleError: A pattern matches no leaf, or a leaf is typed.
      ShapeError: Groups do not divide a leaf.
    """
    if not quantize.is_on:
        return job
    if job.masks is not None:
        raise ConfigError(
            "prune.method and quantize.bits are both set; prune while you train, and quantize the pruned model afterwards (flaxbert quantize)."
        )
    params = with_learned_steps(prepared.model, quantize, prepared.data.train, job.train.freeze)
    return job.changed(params=params)


def settle_steps(leaf: LearnedStepArray) -> TypedArray:
    """Returns a leaf of numbered layers once training is over: its codes.

    Args:
      leaf: The leaf, on the host.
    """
    values, axis = np.asarray(leaf.values, np.float32), leaf.axis
    step = np.maximum(np.abs(to_bfloat16(np.asarray(leaf.step)).astype(np.float32)), np.float32(SMALLEST_STEP))
    low, high = (int(number) for number in np.asarray(leaf.levels)[0])
    spread = np.repeat(step, values.shape[axis] // step.shape[axis], axis=axis)
    codes = np.clip(np.rint(values / spread), low, high)
    if high < 4:
        bits = (high - low + 1).bit_length() - 1
        return PackedArray(pack_planes(codes - low, axis, bits), to_bfloat16(step), to_bfloat16(low * step))
    if high < 127:
        return GroupedArray(pack_pairs(codes, axis), step)
    if not isinstance(leaf, LearnedInputStepArray):
        return QuantizedArray(codes.astype(np.int8), step)
    inputs = np.maximum(np.abs(np.asarray(leaf.input_step, np.float32)), np.float32(SMALLEST_STEP))
    zero = np.zeros((1, 1), np.float32)
    each = np.broadcast_to(inputs, (values.shape[0], 1)).copy()
    return StaticQuantizedArray(codes.astype(np.int8), step * inputs, each, zero, np.zeros_like(step))


def finish_quantization(model: Model) -> tuple[Model, str]:
    """Returns a trained model with codes in place of levels that learn, and a line that says so.

    Args:
      model: The model after training, with host parameters.
    """
    stacked = is_stacked(model.params)
    params = unstack_layers(model.params) if stacked else model.params
    settled = map_leaves(lambda _, leaf: settle_steps(leaf) if isinstance(leaf, LearnedStepArray) else leaf, params)
    kinds = sorted({leaf.kind for leaf in flatten_names(settled).values() if isinstance(leaf, TypedArray)})
    count = sum(isinstance(leaf, TypedArray) for leaf in flatten_names(settled).values())
    result = model.replace(params=stack_layers(settled) if stacked else settled)
    return result, f"Quantized: {count} matrices are codes now ({', '.join(kinds)})."
