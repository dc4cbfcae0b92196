"""The model folders of a comparison, each looked at before anything is measured."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.architecture import ModelConfig
from flaxbert.comparison.lineage import read_compression_report
from flaxbert.comparison.storage import TreeSize, measure_tree, weights_bytes
from flaxbert.errors import ConfigError, FlaxbertError
from flaxbert.model import Model, load
from flaxbert.train.provenance import public_name
from flaxbert.weights.hub import resolve
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """One model of a comparison, known without being held in memory.

    Attributes:
      name: Name in tables.
      source: Path or hub id as it was given.
      folder: Where it lies.
      config: Architecture, with labels and problem type.
      task: Task that it was made for.
      max_length: Most tokens of one input.
      has_tokenizer: Whether texts can be read.
      size: Parameters, non-zeros and bytes.
      file_bytes: Size of its files of weights.
      report: The report of the transform that wrote it, or None.
    """

    name: str
    source: str
    folder: pathlib.Path
    config: ModelConfig
    task: str
    max_length: int
    has_tokenizer: bool
    size: TreeSize
    file_bytes: int
    report: Mapping[str, Any] | None

    def load(self, precision: str, attention: str, labels: Sequence[str] | None = None) -> Model:
        """Loads the model.

        Args:
          precision: Type of its products.
          attention: Attention implementation.
          labels: The order that its labels are brought into; None keeps the folder's.

        Returns:
          The model, in memory.
        """
        return load(self.folder, labels=labels, precision=precision, attention=attention)


def display_names(sources: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """Returns a short name for each model, all different.

    Args:
      sources: Paths and hub ids.
      names: Names to take instead; empty takes the last part of each path.

    Raises:
      ConfigError: There are too few or too many names, or two are the same.
    """
    if names:
        if len(names) != len(sources) or len(set(names)) != len(names) or not all(names):
            raise ConfigError(
                f"names is {list(names)}, but needs one name for each of the {len(sources)} models, all different."
            )
        return list(names)
    short = [public_name(source.rstrip("/")) or source for source in sources]
    for index, name in enumerate(short):
        if short.count(name) > 1:  # the folder above tells apart what has one name
            parent = pathlib.PurePath(sources[index]).parent.name
            short[index] = f"{parent}/{name}" if parent and f"{parent}/{name}" not in short else f"{name} ({index + 1})"
    return short


def find_folders(
    sources: Sequence[str],
    *,
    names: Sequence[str] = (),
    platform: str = "cpu",
    precision: str = "float32",
    offline: bool = False,
) -> tuple[ModelFolder, ...]:
    """Opens every model once, one after the other, and counts what it holds.

    Args:
      sources: Folders and hub ids, the reference first.
      names: As for ``display_names``.
      platform: Backend, for what products are computed in.
      precision: Type of products.
      offline: Never contact the hub.

    Returns:
      What is known of each model; none of them stays in memory.

    Raises:
      ConfigError: There are fewer than two models, or a folder's config can not be used; names the model.
      WeightsError: A folder is no model or is damaged; names the model.
    """
    if len(sources) < 2:
        raise ConfigError(
            f"A comparison needs two models at least, the reference first, but there is {', '.join(sources) or 'none'}."
        )
    found = []
    for name, source in zip(display_names(sources, names), sources, strict=True):
        try:
            found.append(_open(name, source, platform, precision, offline))
        except FlaxbertError as error:
            raise type(error)(f"Model '{name}' can not be compared: {error}") from error
    return tuple(found)


def _open(name: str, source: str, platform: str, precision: str, offline: bool) -> ModelFolder:
    folder = resolve(source, offline=offline)
    loaded = load_checkpoint(folder)
    tokenizer = load_tokenizer(folder, loaded.config)
    model = Model(loaded.config, {}, loaded.task, tokenizer, loaded.pooling)
    return ModelFolder(
        name=name,
        source=source,
        folder=folder,
        config=loaded.config,
        task=loaded.task,
        max_length=model.max_length,
        has_tokenizer=tokenizer is not None,
        size=measure_tree(loaded.params, platform, precision),
        file_bytes=weights_bytes(folder),
        report=read_compression_report(folder),
    )
