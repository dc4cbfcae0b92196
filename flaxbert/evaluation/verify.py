"""``flaxbert verify``: what became of every tensor of a folder, and how far its outputs are from the reference."""

import dataclasses
import pathlib

import numpy as np

from flaxbert.core.trees import count_parameters, flatten_names
from flaxbert.core.units import format_count
from flaxbert.errors import WeightsError
from flaxbert.evaluation.reference import Difference, compare, describe_reference, load_reference, missing_reference
from flaxbert.weights.finite import find_not_finite
from flaxbert.weights.load import LoadedCheckpoint, load_checkpoint
from flaxbert.weights.name_table import TensorAccount
from flaxbert.weights.save import verify_checkpoint
from flaxbert.weights.sentence_transformers import transformer_folder
from flaxbert.weights.tokenizer import load_tokenizer
from flaxbert.weights.writers import MANIFEST_FILE


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was found out about a model folder.

    Attributes:
      family: The family.
      task: Task that it was loaded for.
      num_parameters: Parameters of the model.
      account: What every tensor was used for.
      problems: What is wrong, one sentence each.
      differences: Differences from the reference; empty where there was no comparison.
      reference: What it was compared with, or why it was not.
    """

    family: str
    task: str
    num_parameters: int
    account: TensorAccount
    problems: tuple[str, ...]
    differences: tuple[Difference, ...]
    reference: str

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong and every difference is small enough."""
        return not self.problems and all(difference.passed for difference in self.differences)

    def to_text(self) -> str:
        """Returns everything as lines for a person."""
        lines = [f"{self.family}, {self.task}, {format_count(self.num_parameters)} parameters", self.account.summary()]
        lines.append(self.reference)
        for difference in self.differences:
            mark = "ok  " if difference.passed else "FAIL"
            lines.append(
                f"{mark}  {difference.name:<22} largest difference {difference.largest:.2e}, allowed {difference.allowed:.2e}"
            )
        lines.extend(f"FAIL  {problem}" for problem in self.problems)
        return "\n".join([*lines, "PASS" if self.passed else "FAIL"])


def _tokenizer_problems(folder: pathlib.Path, loaded: LoadedCheckpoint) -> list[str]:
    try:
        load_tokenizer(folder, loaded.config)
    except WeightsError as error:
        return [str(error)]
    return []


def verify_folder(
    folder: str | pathlib.Path, task: str | None = None, *, rows: int = 3, length: int = 32, seed: int = 0
) -> Verification:
    """Checks a model folder: tensors, files, tokenizer, and outputs against stock transformers where torch is installed.

    Args:
      folder: A model folder.
      task: Task to load it for; None takes what it holds.
      rows: Random texts to compare.
      length: Most tokens of one.
      seed: Seed of the texts.

    Returns:
      What was found.

    Raises:
      ConfigError: The config can not be used.
      WeightsError: The folder can not be loaded at all; says which tensor or file is the reason.
    """
    folder = pathlib.Path(folder)
    loaded = load_checkpoint(folder, task, seed=seed)
    leaves = flatten_names(loaded.params)
    not_finite = [f"{entry} holds values that are not finite." for entry in find_not_finite(leaves)]
    problems = [*not_finite, *_tokenizer_problems(folder, loaded)]
    if (folder / MANIFEST_FILE).is_file():
        problems.extend(verify_checkpoint(folder))
    typed = [name for name, leaf in leaves.items() if not isinstance(leaf, np.ndarray)]
    differences: tuple[Difference, ...] = ()
    reason = "its weights are stored in a compressed form" if typed else missing_reference(loaded)
    if not reason and not_finite:
        reason = "it holds values that are not finite"
    if not reason and loaded.account.initialized:
        reason = f"{', '.join(loaded.account.initialized[:3])} are newly drawn"
    if reason:
        reference = f"Not compared with stock transformers: {reason}."
    else:
        model, missing = load_reference(loaded, transformer_folder(folder))
        problems.extend(
            f"Stock transformers reports {entry}." for entry in missing if not entry.startswith("unexpected")
        )
        differences = compare(loaded, model, rows, length, seed)
        reference = f"Compared with {describe_reference()} on {rows} random texts of up to {length} tokens:"
    return Verification(
        family=loaded.config.family,
        task=loaded.task,
        num_parameters=count_parameters(loaded.params),
        account=loaded.account,
        problems=tuple(problems),
        differences=differences,
        reference=reference,
    )
