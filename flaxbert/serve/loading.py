"""From a word of the command line to a model that answers: where it lies, which version it is, its engine."""

import dataclasses
import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flaxbert.architecture import ModelConfig
from flaxbert.config import BatchingConfig
from flaxbert.core.digests import digest_contents, digest_file
from flaxbert.core.runtime import num_threads
from flaxbert.core.trees import computes_in_int8
from flaxbert.errors import ConfigError
from flaxbert.model import Model, load
from flaxbert.registry import LOCATION_VARIABLE, Reference, Registry, parse_reference
from flaxbert.serve.engines.base import Engine
from flaxbert.serve.engines.choose import open_engine
from flaxbert.serve.functions import functions_of
from flaxbert.serve.operations.work import Subject
from flaxbert.serve.shapes import ShapePlan, plan_shapes
from flaxbert.serve.tokenizers import TokenizerPool
from flaxbert.weights.hub import resolve

_LOG = logging.getLogger("flaxbert.serve")

REGISTRY_PREFIX = "registry:"
CPU_BATCH_TOKENS, CPU_BATCH_ROWS = 256, 16
BATCH_TOKENS, BATCH_ROWS = 16_384, 64
"""Largest batches, on CPU and elsewhere. Two cores compute a token of MiniLM no faster in batches of more than about 100 tokens; larger ones
only make others wait, and each shape costs a second of compilation."""

_keys = itertools.count()


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One model of the command line.

    Attributes:
      name: What clients call it.
      source: Folder, hub id, or ``registry:NAME@ALIAS``.
    """

    name: str
    source: str

    @property
    def from_registry(self) -> bool:
        """Whether it is a model with versions."""
        return self.source.startswith(REGISTRY_PREFIX)


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """How models are run.

    Attributes:
      engine: ``jax``, ``onnxruntime``, ``openvino``, or ``auto`` for the fastest of those that are installed.
      precision: Type of matrix products in JAX.
      sparse: Whether masked language models weigh words for search.
      batching: Sizes of batches.
    """

    engine: str = "jax"
    precision: str = "float32"
    sparse: bool = False
    batching: BatchingConfig = BatchingConfig()


def parse_specs(words: tuple[str, ...]) -> tuple[ModelSpec, ...]:
    """Returns the models that words such as ``film=registry:film@champion`` name.

    Args:
      words: ``SOURCE`` or ``NAME=SOURCE``.

    Raises:
      ConfigError: There is none, or two have the same name.
    """
    specs = []
    for word in words:
        name, equals, source = word.partition("=")
        if not equals:
            name, source = "", word
        if source.startswith(REGISTRY_PREFIX):
            reference = parse_reference(source.removeprefix(REGISTRY_PREFIX))
            name = name or reference.name
        specs.append(ModelSpec(name or pathlib.PurePath(source.rstrip("/")).name, source))
    names = [spec.name for spec in specs]
    if not specs:
        raise ConfigError("There is no model to serve; name a folder, a hub id or registry:NAME@ALIAS.")
    if len(set(names)) < len(names):
        raise ConfigError(f"Two models are called {max(names, key=names.count)}; name them: first=… second=….")
    return tuple(specs)


@dataclasses.dataclass(eq=False)
class Served:
    """A version of a model that can answer.

    Attributes:
      name: What clients call the model.
      version: Number in its registry, or ``1``.
      subject: The model, as operations see it.
      engine: What runs it.
      digest: SHA-256 of its weights, or the digest of its version.
      dtype: Type of its products.
      size_bytes: Memory of its parameters.
      record: What its registry says of it.
      key: Its name for the executor; unique.
      num_requests: Requests that use it now.
    """

    name: str
    version: str
    subject: Subject
    engine: Engine
    digest: str
    dtype: str
    size_bytes: int
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key: int = dataclasses.field(default_factory=lambda: next(_keys))
    num_requests: int = 0


@dataclasses.dataclass(frozen=True)
class Located:
    """A version that could be served.

    Attributes:
      folder: Its files.
      version: Its number, or ``1`` for a folder.
      digest: What identifies its bytes; empty where that has to be found out.
      record: What its registry says of it.
    """

    folder: pathlib.Path
    version: str
    digest: str = ""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))


@functools.lru_cache(maxsize=8)
def _opened(location: str) -> Registry:
    return Registry(location)


def open_registry() -> Registry:
    """Returns the registry that the environment names; the same one each time, which reads what is new in its journals alone.

    Raises:
      ConfigError: No location is named, or it can not be opened.
    """
    return _opened(os.environ.get(LOCATION_VARIABLE, ""))


def reference_of(spec: ModelSpec, alias: str = "") -> Reference:
    """Returns what a model of the registry refers to.

    Args:
      spec: The model.
      alias: Another alias of the same model; empty for its own reference.
    """
    reference = parse_reference(spec.source.removeprefix(REGISTRY_PREFIX))
    return dataclasses.replace(reference, alias=alias, version=0) if alias else reference


def locate(spec: ModelSpec, alias: str = "") -> Located:
    """Finds the version that a model means now.

    Args:
      spec: The model.
      alias: Another alias of the same registered model; empty for its own.

    Returns:
      The version, with files that are whole and were compared with their digests.

    Raises:
      ConfigError: There is no such model, version or alias.
      DataError: A file of the version is damaged.
      RegistryError: The registry can not be reached.
    """
    if not spec.from_registry:
        return Located(resolve(spec.source), "1")
    registry, reference = open_registry(), reference_of(spec, alias)
    record = registry.find(reference)
    exact = dataclasses.replace(reference, alias="", version=record.number)
    folder = registry.folder(exact, verify=True)
    described = {"metrics": dict(record.metrics), "task": record.task, "data": dict(record.data), "note": record.note}
    return Located(folder, str(record.number), record.digest, described)


def plan_of(config: ModelConfig, max_length: int, batching: BatchingConfig) -> ShapePlan:
    """Returns the shapes that a model is compiled for.

    Args:
      config: Its architecture.
      max_length: Most tokens of its texts.
      batching: Sizes of batches.
    """
    on_cpu = jax.default_backend() == "cpu"
    tokens = batching.max_batch_tokens or (CPU_BATCH_TOKENS if on_cpu else BATCH_TOKENS)
    rows = batching.max_batch_requests or (CPU_BATCH_ROWS if on_cpu else BATCH_ROWS)
    longest = min(max_length, config.max_length, batching.max_length or max_length)
    return plan_shapes(longest, tokens, rows, growth=4 if on_cpu else 2)


def load_served(spec: ModelSpec, located: Located, options: EngineOptions) -> Served:
    """Loads a version and makes its engine ready for every shape.

    Args:
      spec: The model.
      located: The version.
      options: How it is run.

    Returns:
      What can answer.

    Raises:
      ConfigError: The model can not be served.
      WeightsError: The folder is no model.
    """
    model = load(located.folder, precision=options.precision)
    if model.tokenizer is None:
        raise ConfigError(f"{spec.source} has no tokenizer, so that it can not answer texts.")
    functions = functions_of(model, options.sparse)
    plan = plan_of(model.config, model.max_length, options.batching)
    digest = located.digest or _digest_of(located.folder)
    engine = open_engine(options.engine, model, functions, plan, digest)
    engine.prepare(_reporter(spec.name))
    workers = options.batching.tokenization_workers or max(1, num_threads() // 2)
    subject = Subject(model, functions, TokenizerPool(model.tokenizer, workers), plan.lengths[-1])
    return Served(
        name=spec.name,
        version=located.version,
        subject=subject,
        engine=engine,
        digest=digest,
        dtype=dtype_of(model),
        size_bytes=parameter_bytes(model),
        record=located.record,
    )


def _digest_of(folder: pathlib.Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:  # a model in shards
        return digest_contents(folder, (".safetensors",))
    return digest_file(files[0]).sha256 if files else ""


def dtype_of(model: Model) -> str:
    """Returns the type that the products of a model are computed in.

    Args:
      model: The model.
    """
    return "int8" if computes_in_int8(model.params) else model.execution.precision


def parameter_bytes(model: Model) -> int:
    """Returns the memory of a model's parameters.

    Args:
      model: The model.
    """
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))


def _reporter(name: str) -> Any:
    def report(done: int, total: int) -> None:
        if done in (0, total):
            _LOG.info("%s: %d of %d programs ready", name, done, total)

    return report
