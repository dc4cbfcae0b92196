"""Ranges of the activations that meet quantized matrices, measured by running the float32 graph on sample inputs."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flaxbert.data.batches import collate
from flaxbert.data.tokenization import TokenizedExamples
from flaxbert.errors import ConfigError, DataError
from flaxbert.export.engines import require
from flaxbert.export.graph import Value, describe
from flaxbert.export.onnx_file import build_graph, to_model
from flaxbert.export.products import Products
from flaxbert.export.signature import Signature

NUM_BINS = 4096
"""Bins of the histogram that percentiles are read from: a range is exact to a 4,096th."""

METHODS = ("min-max", "percentile")
"""How ranges are chosen."""

Ranges = dict[str, tuple[float, float]]
"""Smallest and largest activation by site."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How ranges are measured.

    Attributes:
      method: ``min-max`` takes the smallest and largest activation, ``percentile`` leaves out the outermost.
      percentile: Share of the activations, in percent, that lie inside the range.
      num_samples: Most inputs that are run.
    """

    method: str = "min-max"
    percentile: float = 99.99
    num_samples: int = 300

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"The calibration method '{self.method}' is not known; choose {' or '.join(METHODS)}.")
        if not 50.0 < self.percentile <= 100.0:
            raise ConfigError(f"percentile is {self.percentile}, but lies above 50 and at most at 100.")
        if self.num_samples < 1:
            raise ConfigError(f"num_samples is {self.num_samples}, but at least one input is run.")


def sample_inputs(
    examples: TokenizedExamples, signature: Signature, num_samples: int
) -> Iterator[dict[str, Int[np.ndarray, "..."]]]:
    """Yields inputs of one example each, without padding, so that ranges are those of real tokens.

    Args:
      examples: Tokenized examples.
      signature: The model as a function.
      num_samples: Most examples, taken evenly from all.

    Raises:
      DataError: There are no examples.
    """
    total = len(examples)
    if not total:
        raise DataError("There are no texts to calibrate with.")
    for number in np.unique(np.linspace(0, total - 1, min(num_samples, total)).astype(np.int64)):
        length = int(examples.lengths[number])
        batch = collate(examples, np.asarray([number]), length)
        zeros = np.zeros_like(batch["input_ids"])
        yield {name: np.asarray(batch.get(name, zeros), np.int64) for name in signature.inputs}


def measure_ranges(
    signature: Signature, samples: Iterable[Mapping[str, Any]], calibration: Calibration = Calibration()
) -> Ranges:
    """Returns the range of the activations at every product.

    Args:
      signature: The model as a function; quantized leaves are written out, so that ranges include their rounding.
      samples: Inputs by name.
      calibration: How ranges are chosen.
    """
    samples = list(samples)
    sites: dict[str, str] = {}
    session = _observed_session(signature, sites)
    names = sorted(set(sites.values()))
    lows, highs = _extremes(session, names, samples)
    if calibration.method == "percentile":
        lows, highs = _percentiles(session, names, samples, (lows, highs), calibration.percentile)
    place = {name: number for number, name in enumerate(names)}
    found: Ranges = {}
    for key, name in sites.items():
        site = key.split("#")[0]  # a leaf that is used several times has one range
        low, high = found.get(site, (np.inf, -np.inf))
        found[site] = (min(low, float(lows[place[name]])), max(high, float(highs[place[name]])))
    return found


def _observed_session(signature: Signature, sites: dict[str, str]) -> Any:
    values: dict[str, Value] = {}

    def observe(site: str, value: Value) -> None:
        sites[f"{site}#{len(sites)}"] = value.name
        values[value.name] = value

    graph = build_graph(signature, Products(observe))
    graph.outputs = [describe(value) for value in values.values()]
    model = to_model(graph, {})
    runtime = require("onnxruntime", "Calibration")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _extremes(
    session: Any, names: list[str], samples: list[Mapping[str, Any]]
) -> tuple[Float[np.ndarray, "sites"], Float[np.ndarray, "sites"]]:
    lows, highs = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for sample in samples:
        arrays = session.run(names, dict(sample))
        lows = np.minimum(lows, [array.min() for array in arrays])
        highs = np.maximum(highs, [array.max() for array in arrays])
    return lows, highs


def _percentiles(
    session: Any,
    names: list[str],
    samples: list[Mapping[str, Any]],
    extremes: tuple[np.ndarray, np.ndarray],
    percentile: float,
) -> tuple[Float[np.ndarray, "sites"], Float[np.ndarray, "sites"]]:
    """Cuts the outermost entries on both sides, half of them on each, from histograms between the extremes."""
    edges = [
        np.linspace(low, high if high > low else low + 1.0, NUM_BINS + 1) for low, high in zip(*extremes, strict=True)
    ]
    counts = [np.zeros(NUM_BINS, np.int64) for _ in names]
    for sample in samples:
        for number, array in enumerate(session.run(names, dict(sample))):
            counts[number] += np.histogram(array, edges[number])[0]
    outside = (100.0 - percentile) / 200.0
    lows, highs = [], []
    for count, edge in zip(counts, edges, strict=True):
        share = np.cumsum(count) / count.sum()
        lows.append(edge[int(np.searchsorted(share, outside, side="right"))])
        highs.append(edge[int(np.searchsorted(share, 1.0 - outside)) + 1])
    return np.asarray(lows), np.asarray(highs)


__all__ = ["METHODS", "Calibration", "Ranges", "measure_ranges", "sample_inputs"]
