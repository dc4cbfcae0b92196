"""JSON files of a model folder, with errors that name file and line."""

import json
import pathlib
from typing import Any

from flaxbert.errors import WeightsError


def read_json(file: pathlib.Path) -> Any:
    """Reads a JSON file of a model folder.

    Args:
      file: The file.

    Returns:
      The parsed value.

    Raises:
      WeightsError: It can not be read or is no JSON; names file and line.
    """
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise WeightsError(f"{file} can not be read: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        raise WeightsError(f"{file} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, numbers of thousands of digits, deep nesting
        raise WeightsError(f"{file} is no JSON: {error}.") from error


def read_json_object(file: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that must hold an object.

    Args:
      file: The file.

    Returns:
      The parsed object.

    Raises:
      WeightsError: It can not be read, or holds something else.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise WeightsError(f"{file} holds a JSON {type(value).__name__}, but must hold an object.")
    return value
