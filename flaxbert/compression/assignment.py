"""Which leaf gets how many bits: the least damage within a size, and the least size within a loss of quality."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.core.rules import Rule
from flaxbert.core.trees import flatten_names, size_bytes, unflatten_names
from flaxbert.errors import ConfigError
from flaxbert.transforms.quantize import QuantizationRule, QuantizationSpec, quantize
from flaxbert.transforms.statistics import Statistics

Specs = Mapping[str, QuantizationSpec]
"""Specification by leaf name; leaves without one stay as they are."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to store one leaf.

    Attributes:
      spec: The way; None keeps the leaf.
      size_bytes: Bytes of the leaf then.
      damage: By how much the loss is expected to rise; only differences count.
    """

    spec: QuantizationSpec | None
    size_bytes: int
    damage: float


Choices = Mapping[str, Sequence[Choice]]
"""All ways for every leaf by its name."""


def rules_of(specs: Mapping[str, QuantizationSpec | None]) -> tuple[QuantizationRule, ...]:
    """Returns the rules of an assignment: one for each leaf, and one that keeps the rest.

    Args:
      specs: Specification by leaf name.
    """
    import re

    own = tuple(Rule(re.escape(name), spec) for name, spec in specs.items())
    return (*own, Rule(".*", None, optional=True))


def find_choices(
    params: Mapping[str, Any],
    candidates: Mapping[str, Sequence[QuantizationSpec]],
    sensitivity: Callable[[str], float],
    statistics: Statistics,
    keeps: bool = False,
) -> dict[str, list[Choice]]:
    """Quantizes every leaf in every way and says what that costs: the damage is sensitivity times the squared distance of the weights.

    That is the rise of a quadratic loss along a direction of that curvature, up to a factor of two (Dong et al., 2020, equation 5).

    Args:
      params: Parameter tree.
      candidates: Ways to try by leaf name.
      sensitivity: Curvature at a leaf.
      statistics: For ways that need them.
      keeps: Whether leaving a leaf as it is is a way too.

    Returns:
      The ways of every leaf.
    """
    leaves, found = flatten_names(params), {}
    for name, specs in candidates.items():
        leaf = leaves[name]
        dense = float(np.sum(np.square(np.asarray(leaf, np.float64))))
        choices = [Choice(None, leaf.size * 4, 0.0)] if keeps else []
        for spec in specs:
            _, report = quantize(unflatten_names({name: leaf}), rules_of({name: spec}), statistics)
            distance = report.leaves[0].rms_relative_error ** 2 * dense
            choices.append(Choice(spec, report.bytes_after, sensitivity(name) * distance))
        found[name] = choices
    return found


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Returns the ways that are best for some price of a byte, from the smallest to the largest."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda entry: (entry.size_bytes, entry.damage)):
        if hull and choice.damage >= hull[-1].damage:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) < _slope(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _slope(small: Choice, large: Choice) -> float:
    """Returns the damage that is saved for each byte more."""
    return (small.damage - large.damage) / max(large.size_bytes - small.size_bytes, 1)


def assignment_path(choices: Choices) -> list[dict[str, QuantizationSpec | None]]:
    """Returns assignments from the smallest to the largest; each differs from the last by the leaf whose next byte saves most damage.

    Args:
      choices: All ways of every leaf.
    """
    hulls = {name: _hull(ways) for name, ways in choices.items()}
    steps = [
        (_slope(hull[place], hull[place + 1]), name, place + 1)
        for name, hull in hulls.items()
        for place in range(len(hull) - 1)
    ]
    steps.sort(key=lambda step: (-step[0], step[2], step[1]))
    current = {name: hull[0].spec for name, hull in hulls.items()}
    path = [dict(current)]
    for _, name, place in steps:
        current[name] = hulls[name][place].spec
        path.append(dict(current))
    return path


def path_sizes(choices: Choices, path: Sequence[Mapping[str, QuantizationSpec | None]]) -> list[int]:
    """Returns the bytes of all leaves that are chosen for, along a path.

    Args:
      choices: All ways of every leaf.
      path: Assignments.
    """
    sizes = {name: {choice.spec: choice.size_bytes for choice in ways} for name, ways in choices.items()}
    return [sum(sizes[name][spec] for name, spec in assignment.items()) for assignment in path]


def assign_within_size(choices: Choices, kept_bytes: int, budget_bytes: int) -> dict[str, QuantizationSpec | None]:
    """Returns the assignment of least damage whose model fits into a size.

    Args:
      choices: All ways of every leaf.
      kept_bytes: Bytes of all other leaves.
      budget_bytes: Most bytes of the whole model.

    Raises:
      ConfigError: Not even the smallest assignment fits; says how small it is.
    """
    path = assignment_path(choices)
    sizes = [size + kept_bytes for size in path_sizes(choices, path)]
    fitting = [place for place, size in enumerate(sizes) if size <= budget_bytes]
    if not fitting:
        raise ConfigError(
            f"No choice of bits fits into {budget_bytes / 1e6:.2f} MB: the smallest has {sizes[0] / 1e6:.2f} MB, of which {kept_bytes / 1e6:.2f} MB "
            "are leaves that are kept. Allow fewer bits, or a larger budget."
        )
    return path[fitting[-1]]


@dataclasses.dataclass(frozen=True)
class Found:
    """The cheapest assignment that keeps the metric.

    Attributes:
      specs: The assignment.
      metric: Its metric.
      reference: The metric without quantization.
      tried: Bytes and metric of every assignment that was tried, from the smallest to the largest.
    """

    specs: dict[str, QuantizationSpec | None]
    metric: float
    reference: float
    tried: tuple[tuple[int, float], ...]


def find_cheapest(
    choices: Choices,
    evaluate: Callable[[Mapping[str, QuantizationSpec | None]], float],
    reference: float,
    tolerance: float,
    kept_bytes: int,
) -> Found:
    """Returns the smallest assignment along the path that keeps a metric within a tolerance, by bisection.

    The metric is taken to fall as the size does; where it does not quite, a smaller one that would do can be missed, but what is returned was measured.

    Args:
      choices: All ways of every leaf.
      evaluate: Returns the metric of an assignment, the higher the better.
      reference: The metric without quantization.
      tolerance: By how much the metric may be lower.
      kept_bytes: Bytes of all other leaves.

    Raises:
      ConfigError: No assignment keeps the metric; says the best one that was found.
    """
    path = assignment_path(choices)
    sizes = [size + kept_bytes for size in path_sizes(choices, path)]
    measured: dict[int, float] = {}

    def keeps(place: int) -> bool:
        if place not in measured:
            measured[place] = evaluate(path[place])
        return measured[place] >= reference - tolerance

    low, high = 0, len(path) - 1
    if not keeps(high):
        keeps(low)
        best = max(measured, key=lambda place: measured[place])
        raise ConfigError(
            f"No choice of bits keeps the metric within {tolerance:g} of {reference:.4f}: the best found has {measured[best]:.4f} at "
            f"{sizes[best] / 1e6:.2f} MB. Allow more bits or a larger tolerance."
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle + 1, high)
    tried = tuple((sizes[place], measured[place]) for place in sorted(measured))
    return Found(path[low], measured[low], reference, tried)


def kept_size(params: Mapping[str, Any], names: Sequence[str]) -> int:
    """Returns the bytes of all leaves but some.

    Args:
      params: Parameter tree.
      names: Leaves that are not counted.
    """
    own = set(names)
    return size_bytes(unflatten_names({name: leaf for name, leaf in flatten_names(params).items() if name not in own}))
