"""What the commands that write a compressed model share."""

import json
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flaxbert.comparison.lineage import REPORT_FILE, read_compression_report, with_lineage
from flaxbert.config import DataConfig, TaskConfig
from flaxbert.errors import ConfigError, FlaxbertError

if TYPE_CHECKING:
    from flaxbert.transforms import CompressionReport


def check_output(output: str) -> pathlib.Path:
    """Returns the output folder, checked before any work is done.

    Args:
      output: Folder to write.

    Raises:
      ConfigError: The folder holds something, or the path is a file.
    """
    folder = pathlib.Path(output)
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if folder.exists() or folder.is_symlink():
        raise ConfigError(
            f"The output {output} exists already and is never overwritten; name a new folder or remove it."
        )
    return folder


def check_registration(name: str, location: str) -> None:
    """Refuses a name or a registry that can not be, before any work is done.

    Args:
      name: Model that the result is to be a version of; empty for none.
      location: The registry.

    Raises:
      ConfigError: The name is none, or the registry can not be opened.
    """
    from flaxbert.registry import registration

    registration.check_registration(name, location)


def add_to_registry(name: str, location: str, folder: str, source: str, note: str) -> None:
    """Adds a compressed model to a registry, with the model that it was made of as its parent.

    Args:
      name: Model that it becomes a version of; empty for none.
      location: The registry.
      folder: What was written.
      source: Folder or hub id of the model that was compressed.
      note: What was done.

    Raises:
      ConfigError: The same files are a version already.
    """
    if not name:
        return
    from flaxbert.registry.registration import register
    from flaxbert.train.provenance import public_name

    print(register(name, location, pathlib.Path(folder), source=source, origin=public_name(source), note=note))


def save_compressed(model: Any, report: "CompressionReport", folder: pathlib.Path, source: str = "") -> None:
    """Writes a compressed model and, last, its report with the model that it comes from and the transforms before it.

    Args:
      model: The compressed ``Model``.
      report: What the transform did.
      folder: Where the model goes.
      source: Folder or hub id of the model that was compressed; empty where there is none.
    """
    from flaxbert.train.provenance import public_name
    from flaxbert.weights.hub import resolve

    earlier = read_compression_report(resolve(source, offline=True)) if source else None
    document = with_lineage(report.to_dict(), public_name(source), earlier)
    model.save(folder)
    (folder / REPORT_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def plan_comparison(
    model: str,
    output: str,
    report: str,
    examples: str = "",
    data: DataConfig = DataConfig(max_length=0),
    task: TaskConfig = TaskConfig(),
    read_anyway: bool = False,
) -> Callable[[], int]:
    """Returns what compares the original with the compressed model once that is written; does nothing where no report is asked for.

    Args:
      model: Folder or hub id of the original.
      output: Folder of the compressed model.
      report: New folder for the page and its numbers; empty asks for none.
      examples: Labelled examples for the quality; empty compares all else.
      data: Where labels and texts stand in the examples.
      task: What the model's task needs beyond texts and labels.
      read_anyway: Whether the command has another use for the examples.

    Returns:
      A function that compares, writes the page, prints the tables and returns the exit code.

    Raises:
      ConfigError: The folder of the report exists already or is that of the model, or examples are named without a report.
    """
    if not report:
        if examples and not read_anyway:
            raise ConfigError(f"--data {examples} is read for a report only; name its folder with --report FOLDER.")
        return lambda: 0
    folder = check_output(report)
    if folder.resolve() == pathlib.Path(output).resolve():
        raise ConfigError(f"--report is {report}, the folder of the model itself; name another new folder.")

    def compare() -> int:
        import sys

        from flaxbert.comparison.compare import compare_models
        from flaxbert.comparison.page import write_comparison
        from flaxbert.comparison.settings import ComparisonSettings
        from flaxbert.train.provenance import public_command

        try:
            found = compare_models(
                [model, output],
                ComparisonSettings(examples=examples),
                data,
                task,
                command=public_command(["flaxbert", *sys.argv[1:]]),
            )
        except FlaxbertError as error:
            raise type(error)(f"The model is saved to {output}, but could not be compared: {error}") from error
        page, _ = write_comparison(found, folder)
        print(found.to_text(), end="")
        print(f"Wrote {page}.")
        return 0

    return compare
