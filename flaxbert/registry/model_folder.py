"""What a model folder says of itself: files, task, family, scores and what it was made of."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from flaxbert.core.digests import FileDigest, digest_file
from flaxbert.errors import ConfigError, DataError
from flaxbert.registry.names import check_file_name
from flaxbert.weights.folder import read_config, read_json_object
from flaxbert.weights.save import verify_checkpoint
from flaxbert.weights.writers import MANIFEST_FILE

CARD = "README.md"


@dataclasses.dataclass(frozen=True)
class FolderDescription:
    """What is known of a model folder.

    Attributes:
      files: Digest of every file by its relative path.
      task: Task of the model; empty where the folder does not say.
      family: Its family.
      metrics: Scores by name.
      parent: What it was made of; empty where the folder does not say.
    """

    files: Mapping[str, FileDigest]
    task: str
    family: str
    metrics: Mapping[str, float]
    parent: str

    def to_json(self) -> dict[str, Any]:
        """Returns the description as a JSON object."""
        return dataclasses.asdict(self)


def describe_folder(
    folder: pathlib.Path, metrics: Mapping[str, float] | None = None, parent: str = ""
) -> FolderDescription:
    """Reads a model folder and compares it with its own manifest, where it has one.

    Args:
      folder: The folder.
      metrics: Scores that are known otherwise; None takes those of its card.
      parent: What it was made of, where that is known otherwise.

    Returns:
      What it says of itself.

    Raises:
      ConfigError: Its config is not usable, or scores are no numbers.
      DataError: It holds links or names that a registry can not have, or files differ from its manifest.
      WeightsError: It is no model folder.
    """
    config = read_config(folder)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise DataError(f"{path} is a link; a version holds files of its own.")
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[str(check_file_name(name))] = digest_file(path)
    task = ""
    if (folder / MANIFEST_FILE).is_file():
        damage = verify_checkpoint(folder)
        if damage:
            raise DataError(f"{folder} is not what its {MANIFEST_FILE} says: {damage[0]}")
        task = str(read_json_object(folder / MANIFEST_FILE).get("task", ""))
    card = _front_matter(folder / CARD)
    scores = _scores(card) if metrics is None else {name: float(value) for name, value in metrics.items()}
    unusable = [name for name, value in scores.items() if not math.isfinite(value)]
    if unusable:
        raise ConfigError(f"The metric {unusable[0]} is {scores[unusable[0]]}, but must be a number.")
    base = card.get("base_model", "")
    return FolderDescription(files, task, config.family, scores, parent or (base if isinstance(base, str) else ""))


def _front_matter(card: pathlib.Path) -> dict[str, Any]:
    """Returns the header of a model card as a mapping; empty where there is none."""
    if not card.is_file():
        return {}
    text = card.read_text("utf-8", errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return {}
    try:
        found = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _scores(card: Mapping[str, Any]) -> dict[str, float]:
    """Returns the scores of a card's ``model-index``, by name, as the hub reads them."""
    found: dict[str, float] = {}
    for model in card.get("model-index") or ():
        for result in model.get("results") or ():
            for metric in result.get("metrics") or ():
                name, value = metric.get("name") or metric.get("type"), metric.get("value")
                if isinstance(name, str) and isinstance(value, (int, float)) and not isinstance(value, bool):
                    found.setdefault(name, float(value))
    return found
