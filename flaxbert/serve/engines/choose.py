"""Which engine runs a model: the one that was asked for, or the fastest of those that are installed."""

import hashlib
import importlib.metadata
import importlib.util
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from flaxbert.core.files import whole_file
from flaxbert.core.processor import processor_features
from flaxbert.core.runtime import compilation_cache_folder, num_threads
from flaxbert.errors import ConfigError, FlaxbertError, nearest
from flaxbert.export.running import ENGINE_FORMATS
from flaxbert.model import Model
from flaxbert.serve.engines.base import Engine
from flaxbert.serve.engines.exported_engine import ExportedEngine
from flaxbert.serve.engines.jax_engine import JaxEngine
from flaxbert.serve.functions import Function
from flaxbert.serve.shapes import Shape, ShapePlan

_LOG = logging.getLogger("flaxbert.serve")

JAX, AUTO = "jax", "auto"
ENGINES = (JAX, *ENGINE_FORMATS, AUTO)
"""Names of engines."""

_ROUNDS = 5
_LENGTHS = (24, 64, 256)
"""Lengths that engines are measured with: a sentence, a passage, a page."""


def open_engine(
    name: str, model: Model, functions: Mapping[str, Function], plan: ShapePlan, digest: str = ""
) -> Engine:
    """Returns an engine with a model; unless it was chosen by measurement, it is not ready yet.

    Args:
      name: A name of ``ENGINES``.
      model: The model.
      functions: What is computed of it.
      plan: The shapes.
      digest: What identifies the model's bytes.

    Returns:
      The engine.

    Raises:
      ConfigError: There is no such engine.
      DependencyError: It is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"Unknown engine '{name}'; choose {', '.join(ENGINES)}.{nearest(name, ENGINES)}")
    if name == JAX:
        return JaxEngine(model, functions, plan)
    if name in ENGINE_FORMATS:
        return ExportedEngine(name, model, functions, plan, digest)
    return _fastest(model, functions, plan, digest)


def candidates() -> list[str]:
    """Returns the engines that could run a model here; on accelerators only JAX."""
    if jax.default_backend() != "cpu":
        return [JAX]
    return [
        JAX,
        *(name for name in ENGINE_FORMATS if importlib.util.find_spec(name) and importlib.util.find_spec("onnx")),
    ]


def _shapes(plan: ShapePlan) -> list[Shape]:
    lengths = dict.fromkeys(plan.bucket(min(length, plan.lengths[-1])) for length in _LENGTHS)
    return [(1, length) for length in lengths]


def _fastest(model: Model, functions: Mapping[str, Function], plan: ShapePlan, digest: str) -> Engine:
    names, shapes = candidates(), _shapes(plan)
    if len(names) == 1:
        return open_engine(names[0], model, functions, plan, digest)
    memory = _memory_of(names, model, digest)
    remembered = memory.read_text(encoding="utf-8") if memory is not None and memory.is_file() else ""
    if remembered in names:
        _LOG.info("%s was the fastest engine for this model before", remembered)
        return open_engine(remembered, model, functions, plan, digest)
    trial = ShapePlan(tuple(length for _, length in shapes), (1,), plan.max_batch_tokens)
    function = next(iter(functions.values()))
    opened: dict[str, Engine] = {}
    for name in names:
        try:
            engine = open_engine(name, model, {function.name: function}, trial, digest)
            engine.prepare(lambda done, total: None)
            opened[name] = engine
        except FlaxbertError as error:
            _LOG.warning("%s can not run this model: %s", name, error)
    seconds = measure(opened, function, shapes)
    scores = {name: sum(times) for name, times in seconds.items()}
    best = min(scores, key=lambda name: scores[name])
    for line in table(seconds, shapes, best):
        _LOG.info("%s", line)
    if memory is not None:
        with whole_file(memory) as place:
            place.write_text(best, encoding="utf-8")
    return open_engine(best, model, functions, plan, digest)


def _memory_of(names: Sequence[str], model: Model, digest: str) -> pathlib.Path | None:
    """Returns the file that says which engine was the fastest for a model on this machine, or None where nothing is kept."""
    folder = compilation_cache_folder()
    if folder is None or not digest:
        return None
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("flaxbert", *names)]
    words = [digest, model.task, str(model.execution), *versions, processor_features(), str(num_threads())]
    parent = folder / "served-engines"
    parent.mkdir(mode=0o700, exist_ok=True)
    return parent / hashlib.sha256("\n".join(words).encode()).hexdigest()


def measure(opened: Mapping[str, Engine], function: Function, shapes: Sequence[Shape]) -> dict[str, list[float]]:
    """Returns the median seconds of every engine for every shape, measured in turn.

    Args:
      opened: Engines that are ready.
      function: What they compute.
      shapes: The shapes.
    """
    times: dict[str, list[list[float]]] = {name: [[] for _ in shapes] for name in opened}
    for _ in range(_ROUNDS):
        for name, engine in opened.items():
            for place, shape in enumerate(shapes):
                batch = function.example(*shape)
                begun = time.perf_counter()
                engine.run(function.name, batch)
                times[name][place].append(time.perf_counter() - begun)
    return {name: [float(np.median(several)) for several in places] for name, places in times.items()}


def table(seconds: Mapping[str, Sequence[float]], shapes: Sequence[Shape], best: str) -> list[str]:
    """Returns the lines of a table of engines.

    Args:
      seconds: By engine, for each shape.
      shapes: The shapes.
      best: The engine that was chosen.
    """
    lines = ["engine        " + "".join(f"{length:>5} tokens" for _, length in shapes)]
    for name, times in sorted(seconds.items(), key=lambda item: sum(item[1])):
        chosen = "  chosen" if name == best else ""
        lines.append(f"{name:<14}" + "".join(f"{1000 * value:9.1f} ms" for value in times) + chosen)
    return lines
