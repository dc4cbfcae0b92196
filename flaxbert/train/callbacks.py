"""Who is told what happens in training: the protocol, the JSON lines file and the TensorBoard writer."""

import dataclasses
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from flaxbert.architecture import ModelConfig
from flaxbert.config import PretrainConfig, RunConfig
from flaxbert.core.files import whole_file
from flaxbert.errors import DataError

LOGGER = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
"""Name of the file with one JSON object per line inside the folder of a run."""

START, TRAIN, EVALUATION, CHECKPOINT, END = "start", "train", "evaluation", "checkpoint", "end"
"""The kinds of lines."""


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What callbacks know about a run when it starts.

    Attributes:
      config: The resolved run.
      model_config: Architecture of the model.
      total_steps: Optimizer steps of the whole run.
      first_step: Steps already taken: 0, or the step of the checkpoint that is resumed.
      resumed: Whether the run goes on from a checkpoint.
      num_examples: Training examples.
      num_parameters: Parameters of the model.
    """

    config: RunConfig | PretrainConfig
    model_config: ModelConfig
    total_steps: int
    first_step: int = 0
    resumed: bool = False
    num_examples: int = 0
    num_parameters: int = 0


@runtime_checkable
class Callback(Protocol):
    """Is told what happens in training. Steps count optimizer steps from 1; metrics are numbers by name."""

    def on_start(self, run: RunInfo) -> None:
        """Training starts or goes on.

        Args:
          run: What is known about it.
        """

    def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Training metrics since the last call are due.

        Args:
          step: Last step they cover.
          metrics: ``loss``, ``learning_rate``, ``tokens_per_second``…; single steps as lists of numbers.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, float], split: str = "validation") -> None:
        """An evaluation is done.

        Args:
          step: Steps taken before it; 0 for the one before training.
          metrics: From ``compute_metrics``.
          split: Which examples.
        """

    def on_checkpoint(self, step: int, path: str) -> None:
        """A checkpoint is handed to the writer.

        Args:
          step: Its step.
          path: Its folder.
        """

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The run ends.

        Args:
          summary: ``step``, ``reason``, ``seconds``, ``metrics``, and what else the recipe knows, ready for JSON.
        """


class CallbackBase:
    """A callback that ignores everything; subclasses override what they care for."""

    def on_start(self, run: RunInfo) -> None:
        """Ignores the start of the run.

        Args:
          run: Not used.
        """

    def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Ignores training metrics.

        Args:
          step: Not used.
          metrics: Not used.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, float], split: str = "validation") -> None:
        """Ignores an evaluation.

        Args:
          step: Not used.
          metrics: Not used.
          split: Not used.
        """

    def on_checkpoint(self, step: int, path: str) -> None:
        """Ignores a checkpoint.

        Args:
          step: Not used.
          path: Not used.
        """

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Ignores the end of the run.

        Args:
          summary: Not used.
        """


def _plain(value: Any) -> Any:
    """Returns a value that strict JSON can hold: numbers of any library as Python's, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, str | bool) or value is None:
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _lines(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the number and content of each whole line, None where it is no JSON object with a step and a kind."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        good = isinstance(entry, dict) and isinstance(entry.get("step"), int) and isinstance(entry.get("kind"), str)
        yield number, entry if good else None


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines that ``JsonLinesWriter`` wrote.

    A last line that a crash cut off is left out.

    Args:
      path: The file.

    Returns:
      One dictionary per line, in file order.

    Raises:
      DataError: The file is absent, or a line is no JSON object with a step and a kind; names the line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"There is no file of metrics {path}; it is written by a training run.")
    entries = []
    for number, entry in _lines(path):
        if entry is None:
            raise DataError(f"Line {number} of {path} is no line of metrics; restore the file or delete that line.")
        entries.append(entry)
    return entries


class JsonLinesWriter(CallbackBase):
    """Writes one JSON object per line: ``step``, ``time`` (Unix seconds), ``kind`` and the metrics.

    Each line reaches the file in one write, so a crash can cut off no more than the last line. A run that goes on from a
    checkpoint first drops the lines after the checkpoint's step, and never writes a line of the same step and kind twice.

    Args:
      path: The file; its folder is made where needed.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        self._written: set[tuple[Any, ...]] = set()
        self._first_step = 0

    def on_start(self, run: RunInfo) -> None:
        """Drops what contradicts the run, then writes its size.

        Args:
          run: What is known about the run.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._first_step = run.first_step
        kept = self._entries_up_to(run.first_step) if run.resumed else []
        self._written = {self._key(entry) for entry in kept}
        with whole_file(self.path, durable=True) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in kept)
        sizes = {name: getattr(run, name) for name in ("total_steps", "num_examples", "num_parameters")}
        self._write(run.first_step, START, {**sizes, "resumed": run.resumed})

    def _entries_up_to(self, step: int) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        kept = []
        for number, entry in _lines(self.path):
            if entry is None:
                LOGGER.warning("Line %d of %s is damaged and was left out.", number, self.path.name)
            elif entry["step"] <= step and entry["kind"] != END:
                kept.append(entry)
        return kept

    @staticmethod
    def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
        return entry["step"], entry["kind"], entry.get("split")

    def _write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        entry = {"step": int(step), "time": round(time.time(), 3), "kind": kind}
        entry |= {name: value for name, value in _plain(values).items() if name not in entry}
        if self._key(entry) in self._written:
            return
        self._written.add(self._key(entry))
        line = f"{json.dumps(entry, ensure_ascii=False, allow_nan=False)}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            if kind != TRAIN:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes a line of training metrics.

        Args:
          step: Last step they cover.
          metrics: Numbers or lists of numbers by name.
        """
        self._write(step, TRAIN, metrics)

    def on_evaluation(self, step: int, metrics: Mapping[str, float], split: str = "validation") -> None:
        """Writes a line of evaluation metrics.

        Args:
          step: Steps taken before it.
          metrics: Numbers by name.
          split: Which examples.
        """
        self._write(step, EVALUATION, {"split": split, **metrics})

    def on_checkpoint(self, step: int, path: str) -> None:
        """Writes that a checkpoint was saved.

        Args:
          step: Its step.
          path: Its folder; only the last part of the name is kept.
        """
        self._write(step, CHECKPOINT, {"path": pathlib.PurePath(path).name})

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary.

        Args:
          summary: As for ``Callback.on_end``.
        """
        self._write(int(summary.get("step", self._first_step)), END, summary)


def flatten_options(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float | int]:
    """Returns nested options as flat ``section.name`` with plain values.

    Args:
      config: For example ``RunConfig.to_dict()``.
      prefix: What stands before each name.
    """
    flat: dict[str, bool | str | float | int] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten_options(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            flat[f"{prefix}{name}"] = value
        else:
            flat[f"{prefix}{name}"] = json.dumps(_plain(value), ensure_ascii=False)
    return flat


class TensorBoardWriter(CallbackBase):
    """Writes TensorBoard events through tensorboardX: curves, the options as text, and the HPARAMS tab.

    Args:
      folder: Folder of the event files.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.folder = pathlib.Path(folder)
        self._writer: Any = None
        self._options: dict[str, bool | str | float | int] = {}

    def on_start(self, run: RunInfo) -> None:
        """Opens the event file; TensorBoard hides what an interrupted run wrote after the resumed step.

        Args:
          run: What is known about the run.
        """
        import tensorboardX

        purge = run.first_step + 1 if run.resumed else None
        self._writer = tensorboardX.SummaryWriter(logdir=str(self.folder), purge_step=purge)
        self._options = flatten_options(run.config.to_dict())
        listing = "".join(f"    {name}: {value}\n" for name, value in self._options.items())
        self._writer.add_text("config", listing, run.first_step)

    def _add(self, section: str, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{section}/{name}", float(value), step)

    def on_log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds a point to each training curve.

        Args:
          step: Last step the metrics cover.
          metrics: Numbers by name; lists are left out.
        """
        self._add("train", step, metrics)

    def on_evaluation(self, step: int, metrics: Mapping[str, float], split: str = "validation") -> None:
        """Adds a point to each evaluation curve.

        Args:
          step: Steps taken before it.
          metrics: Numbers by name.
          split: Which examples.
        """
        self._add(split, step, metrics)
        self._writer.flush()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Adds options and final metrics to the HPARAMS tab and closes the file.

        Args:
          summary: As for ``Callback.on_end``; its ``metrics`` are shown.
        """
        if self._writer is None:
            return
        metrics = {f"final/{name}": float(value) for name, value in summary.get("metrics", {}).items()}
        if metrics:
            self._writer.add_hparams(self._options, metrics, name="final", global_step=int(summary.get("step", 0)))
        self.close()

    def close(self) -> None:
        """Writes what is pending and closes the file; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
