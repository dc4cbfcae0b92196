"""Names of models, aliases and files in a registry: plain words, so that no name leads out of its folder."""

import dataclasses
import pathlib
import re

from flaxbert.errors import ConfigError, DataError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,63}", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)

CHAMPION = "champion"
"""The alias that a model's name alone stands for."""


def check_name(name: str, what: str = "model") -> str:
    """Returns a name, if it is one.

    Args:
      name: Letters, digits, ``-``, ``_`` and single dots; at most 64, the first of which is a letter or a digit.
      what: What is named, for the message.

    Raises:
      ConfigError: It is no name.
    """
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(
            f"{name!r} is no name of a {what}: use letters, digits, '-', '_' and single dots, at most 64, beginning with a letter or digit."
        )
    return name


def check_alias(alias: str) -> str:
    """Returns an alias, if it is one: a name that is no number.

    Args:
      alias: The alias.

    Raises:
      ConfigError: It is none.
    """
    if alias.isdigit():
        raise ConfigError(f"The alias {alias!r} looks like a version; choose a word, for example {CHAMPION}.")
    return check_name(alias, "alias")


@dataclasses.dataclass(frozen=True)
class Reference:
    """Which version of a model is meant.

    Attributes:
      name: The model.
      version: Number of the version; 0 where an alias says it.
      alias: The alias; empty for a version, and where the name stands alone.
    """

    name: str
    version: int = 0
    alias: str = ""

    def __str__(self) -> str:
        return (
            f"{self.name}:{self.version}" if self.version else f"{self.name}@{self.alias}" if self.alias else self.name
        )


def parse_reference(text: str) -> Reference:
    """Returns what ``NAME``, ``NAME:VERSION`` or ``NAME@ALIAS`` means.

    Args:
      text: The reference.

    Raises:
      ConfigError: It is none of these.

    Example:
      >>> parse_reference("films:3").version, parse_reference("films@canary").alias
      (3, 'canary')
    """
    if "@" in text:
        name, alias = text.split("@", 1)
        return Reference(check_name(name), alias=check_alias(alias))
    if ":" in text:
        name, number = text.split(":", 1)
        if not _VERSION.fullmatch(number):
            raise ConfigError(f"{text!r} names no version; write NAME:3, NAME@{CHAMPION} or NAME.")
        return Reference(check_name(name), version=int(number))
    return Reference(check_name(text))


def check_file_name(name: str) -> pathlib.PurePosixPath:
    """Returns the path of a file inside of a version, if it stays inside.

    Args:
      name: Relative path with forward slashes.

    Raises:
      DataError: It leads elsewhere.
    """
    path = pathlib.PurePosixPath(name)
    parts = name.split("/")
    if (
        not name
        or path.is_absolute()
        or any(part in ("", ".", "..") for part in parts)
        or any(c in name for c in "\\\0:%")
    ):
        raise DataError(f"The registry names a file {name!r}, which may not lie in a version.")
    return path
