"""Which engine computes a model fastest here: measured once, told as a table, remembered."""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxbert.core.files import whole_file
from flaxbert.core.processor import processor_features
from flaxbert.core.runtime import compilation_cache_folder, num_threads
from flaxbert.export.running import ENGINE_FORMATS, in_engine
from flaxbert.export.signature import signature_of
from flaxbert.export.verify import random_batch
from flaxbert.inference import program_of
from flaxbert.model import Model
from flaxbert.nn.network import ModelOutput

JAX, AUTO = "jax", "auto"

MEMORY_FOLDER = "chosen-engines"
"""Folder of the compile cache that says which engine was the fastest for which model."""

BULK_ROWS = 8
"""Rows of the batches that engines are measured with where files are predicted."""

_LENGTHS = (32, 128)
_ROUNDS = 5
_LOG = logging.getLogger("flaxbert.export")

Shape = tuple[int, int]
"""Rows and tokens of a batch."""

Runs = Sequence[Callable[[], Any]]
"""Computes batches in one engine, one for each shape, whose results are on the host when it returns."""


def candidates() -> list[str]:
    """Returns the engines that could run a model here; on accelerators only JAX."""
    if jax.default_backend() != "cpu":
        return [JAX]
    return [
        JAX,
        *(name for name in ENGINE_FORMATS if importlib.util.find_spec(name) and importlib.util.find_spec("onnx")),
    ]


def fastest_model(model: Model, digest: str = "", tell: Callable[[str], None] = _LOG.info) -> Model:
    """Returns a model that the fastest engine of this machine computes: itself where that is JAX, else as ``in_engine`` makes it.

    Args:
      model: The model.
      digest: What identifies its bytes, so that files and choice can be kept in the compile cache; empty to measure anew.
      tell: Is told what was measured, a line at a time.

    Returns:
      The model.

    Example:
      >>> fastest_model(load("MODEL-int8")).predict(["A fine film."])  # doctest: +SKIP
    """
    shapes = [(BULK_ROWS, length) for length in dict.fromkeys(min(n, model.max_length) for n in _LENGTHS)]
    model = model.replace(engine=None)
    made: dict[str, Model] = {JAX: model}
    batches: list[Any] = []

    def open_runs(name: str) -> Runs:
        if name not in made:
            made[name] = in_engine(model, name, digest)
        if not batches:
            signature, generator = signature_of(model), np.random.default_rng(0)
            batches.extend(random_batch(signature, *shape, generator) for shape in shapes)
        program = program_of(model.config, model.task, model.execution, _first_output, made[name].engine)
        return [functools.partial(_computed, program, model.params, batch) for batch in batches]

    best = fastest_engine(model, digest, shapes, open_runs, tell)
    return made[best] if best in made else in_engine(model, best, digest)


def _first_output(output: ModelOutput, params: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    del params, batch
    return output.last_hidden_state if output.logits is None else output.logits


def _computed(program: Callable[[Any, Any], Any], params: Any, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(program(params, {name: array.astype(np.int32) for name, array in batch.items()}))


def fastest_engine(
    model: Model,
    digest: str,
    shapes: Sequence[Shape],
    open_runs: Callable[[str], Runs],
    tell: Callable[[str], None] = _LOG.info,
) -> str:
    """Returns the name of the fastest engine, measured now or before.

    Args:
      model: The model.
      digest: What identifies its bytes; empty to measure anew.
      shapes: The batches.
      open_runs: Returns what computes them in an engine, ready to be timed.
      tell: Is told what was measured, a line at a time.
    """
    names = candidates()
    if len(names) == 1:
        return names[0]
    memory = _memory_of(names, model, digest, shapes)
    remembered = memory.read_text(encoding="utf-8") if memory is not None and memory.is_file() else ""
    if remembered in names:
        tell(f"{remembered} was the fastest engine for this model before")
        return remembered
    opened: dict[str, Runs] = {}
    for name in names:
        try:
            runs = open_runs(name)
            for run in runs:
                run()  # what is compiled or allocated at first does not count
            opened[name] = runs
        except Exception as error:
            if name == JAX:
                raise
            _LOG.warning("%s can not run this model: %s", name, error)
    seconds = measure(opened)
    scores = {name: sum(times) for name, times in seconds.items()}
    best = min(scores, key=lambda name: scores[name])
    for line in table(seconds, shapes, best):
        tell(line)
    if memory is not None:
        with whole_file(memory) as place:
            place.write_text(best, encoding="utf-8")
    return best


def _memory_of(names: Sequence[str], model: Model, digest: str, shapes: Sequence[Shape]) -> pathlib.Path | None:
    """Returns the file that says which engine was the fastest for a model on this machine, or None where nothing is kept."""
    folder = compilation_cache_folder()
    if folder is None or not digest:
        return None
    versions = [f"{name} {_version(name)}" for name in ("flaxbert", *names)]
    words = [digest, model.task, str(model.execution), str(list(shapes))]
    words += [*versions, processor_features(), str(num_threads())]
    parent = folder / MEMORY_FOLDER
    parent.mkdir(mode=0o700, exist_ok=True)
    return parent / hashlib.sha256("\n".join(words).encode()).hexdigest()


def _version(name: str) -> str:
    """Returns the version of an engine, whichever of its distributions is installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    # Reads the lists of all files of all distributions, which takes a second.
    return " ".join(map(importlib.metadata.version, importlib.metadata.packages_distributions().get(name, ())))


def measure(opened: Mapping[str, Runs]) -> dict[str, list[float]]:
    """Returns the median seconds of every engine for every batch, measured in turn.

    Args:
      opened: What computes the batches, by engine.
    """
    times: dict[str, list[list[float]]] = {name: [[] for _ in runs] for name, runs in opened.items()}
    for _ in range(_ROUNDS):
        for name, runs in opened.items():
            for place, run in enumerate(runs):
                begun = time.perf_counter()
                run()
                times[name][place].append(time.perf_counter() - begun)
    return {name: [float(np.median(several)) for several in places] for name, places in times.items()}


def table(seconds: Mapping[str, Sequence[float]], shapes: Sequence[Shape], best: str) -> list[str]:
    """Returns the lines of a table of engines.

    Args:
      seconds: By engine, for each shape.
      shapes: The shapes.
      best: The engine that was chosen.
    """
    lines = ["engine        " + "".join(f"{rows} x {length} tokens".rjust(16) for rows, length in shapes)]
    for name, times in sorted(seconds.items(), key=lambda item: sum(item[1])):
        chosen = "  chosen" if name == best else ""
        lines.append(f"{name:<14}" + "".join(f"{1000 * value:13.1f} ms" for value in times) + chosen)
    return lines
