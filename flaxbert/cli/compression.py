"""What the commands that write a compressed model share."""

import pathlib
from typing import TYPE_CHECKING, Any

from flaxbert.errors import ConfigError

if TYPE_CHECKING:
    from flaxbert.transforms import CompressionReport

REPORT_FILE = "compression_report.json"
"""File of the report in the folder of a compressed model."""


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


def save_compressed(model: Any, report: "CompressionReport", folder: pathlib.Path) -> None:
    """Writes a compressed model and, last, its report.

    Args:
      model: The compressed ``Model``.
      report: What the transform did.
      folder: Where the model goes.
    """
    model.save(folder)
    (folder / REPORT_FILE).write_text(report.to_json() + "\n", encoding="utf-8")
