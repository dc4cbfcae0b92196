"""``flaxbert recipe``: several commands in a row, each on what the last one made."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.core.files import whole_file
from flaxbert.errors import ConfigError, nearest

STATE_FILE = "recipe.json"
"""Says in the folder of a recipe which steps are done."""

AFTER_CODES = frozenset({"export", "compare"})
"""Steps that take a quantized model; the others need weights that can be trained or removed."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How a command takes a model and leaves one.

    Attributes:
      model: Option of the model, or empty where it is the first word.
      output: Option of the folder, or empty where it is the second word.
      result: Folder of the model inside of that folder; None where the command makes no model.
    """

    model: str
    output: str
    result: str | None


KINDS: dict[str, _Kind] = {
    "finetune": _Kind("--model.path", "--output.folder", "model"),
    "distill": _Kind("--teacher.path", "--output.folder", "model"),
    "prune": _Kind("", "", ""),
    "quantize": _Kind("", "", ""),
    "export": _Kind("", "", None),
    "compare": _Kind("", "--output", None),
}
"""The commands that a recipe may have."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
      number: Its number, from 1.
      command: A key of ``KINDS``.
      options: Its options, by name.
    """

    number: int
    command: str
    options: Mapping[str, Any]

    def folder(self, root: pathlib.Path) -> pathlib.Path:
        """Returns the folder that the step writes.

        Args:
          root: Folder of the recipe.
        """
        return root / f"{self.number}-{self.command}"

    def words(self, first: str, model: str, root: pathlib.Path) -> list[str]:
        """Returns the command line of the step.

        Args:
          first: Model that the recipe starts from, which a comparison compares with.
          model: Model that the step starts from.
          root: Folder of the recipe.
        """
        kind, output = KINDS[self.command], str(self.folder(root))
        sources = [first, model] if self.command == "compare" else [model]
        words = [self.command, *([kind.model, *sources] if kind.model else sources)]
        words += [kind.output, output] if kind.output else [output]
        for name, value in _flatten(self.options).items():
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        return words


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping) and name != "label_map":
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_steps(entries: Sequence[Any]) -> tuple[Step, ...]:
    """Returns the steps of a recipe, checked as far as one can without a model.

    Args:
      entries: One ``{command: {option: value}}`` (or a bare command) for each step.

    Raises:
      ConfigError: A step is malformed, unknown, sets what the recipe sets, or comes too late.
    """
    if not entries:
        raise ConfigError("The recipe has no steps; give a list such as steps: [{prune: {heads: 0.5}}, quantize].")
    steps = []
    codes = ""
    for number, given in enumerate(entries, start=1):
        entry = {given: {}} if isinstance(given, str) else given
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ConfigError(f"Step {number} is {entry!r}, but a step is one command with its options.")
        command, options = next(iter(entry.items()))
        options = {} if options is None else options
        if command not in KINDS or not isinstance(options, Mapping):
            raise ConfigError(
                f"Step {number} is {command!r}; a recipe has the steps {', '.join(KINDS)}, with options by name."
                + nearest(str(command), KINDS)
            )
        if codes and command not in AFTER_CODES:
            raise ConfigError(
                f"Step {number}, {command}, comes after {codes}, which leaves codes that are neither trained nor pruned; put it before."
            )
        own = {word.removeprefix("--") for word in (KINDS[command].model, KINDS[command].output) if word}
        taken = own & set(_flatten(options))
        if taken:
            raise ConfigError(
                f"Step {number} sets {', '.join(sorted(taken))}, which the recipe sets: what the last step made."
            )
        steps.append(Step(number, command, options))
        if command == "quantize" or (command == "finetune" and _flatten(options).get("quantize.bits")):
            codes = f"step {number}, {command}"
    return tuple(steps)


@dataclasses.dataclass
class _Progress:
    """Which steps of a recipe are done, in a file."""

    root: pathlib.Path
    model: str
    steps: tuple[Step, ...]

    def done(self) -> int:
        """Returns how many steps are done.

        Raises:
          ConfigError: The folder is of another recipe, or no recipe's.
        """
        file = self.root / STATE_FILE
        if not file.is_file():
            if self.root.exists() and any(self.root.iterdir()):
                raise ConfigError(f"The output {self.root} exists already and is no recipe's; name a new folder.")
            return 0
        stored = json.loads(file.read_text("utf-8"))
        count = int(stored["done"])
        if stored["recipe"][: count + 1] != self._document()[: count + 1]:
            raise ConfigError(
                f"{self.root} holds {count} done steps of another recipe: model or steps have changed. Name a new folder, or remove it."
            )
        return count

    def _document(self) -> list[Any]:
        return [self.model, *([step.command, json.loads(json.dumps(dict(step.options)))] for step in self.steps)]

    def write(self, done: int) -> None:
        """Writes down how many steps are done.

        Args:
          done: Number of steps.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with whole_file(str(self.root / STATE_FILE)) as partial:
            partial.write_text(json.dumps({"recipe": self._document(), "done": done}, indent=1) + "\n", "utf-8")


def run(model: str, output: str, steps: list[Any]) -> int:
    """Runs several commands in a row, each on the model that the last one made: distil, prune, train, quantize, export, compare.

    All steps are checked before the first one runs. A recipe that was interrupted goes on with the step where it stopped.

    Args:
      model: Folder or hub id of the model that the first step starts from.
      output: Folder of the recipe; every step writes a folder of its own there.
      steps: The steps, best in a file (--config): each a command with its options, such as {prune: {heads: 0.5}}.

    Returns:
      The exit code of the last command that ran.
    """
    from flaxbert.cli.main import execute, parse_command

    root, chosen = pathlib.Path(output), read_steps(steps)
    for step in chosen:
        parse_command(step.command, step.words(model, model, root)[1:])
    progress = _Progress(root, model, chosen)
    done, current = progress.done(), model
    for step in chosen:
        words, kind = step.words(model, current, root), KINDS[step.command]
        if step.number <= done:
            print(f"Step {step.number} of {len(chosen)}, {step.command}: done before.")
        else:
            print(f"Step {step.number} of {len(chosen)}: flaxbert {' '.join(words)}", flush=True)
            progress.write(step.number - 1)
            code = execute(words)
            if code:
                return code
            progress.write(step.number)
        if kind.result is not None:
            current = str(step.folder(root) / kind.result) if kind.result else str(step.folder(root))
    print(f"The model is in {current}.")
    return 0
