"""Checks that options make of their values, with messages that name the option."""

import math

from flaxbert.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises an error unless a condition holds.

    Args:
      condition: What must hold.
      message: What the error says.

    Raises:
      ConfigError: The condition does not hold.
    """
    if not condition:
        raise ConfigError(message)


def require_rate(section: str, field: str, value: float, upper_open: bool = False) -> None:
    """Raises an error unless a value lies between 0 and 1.

    Args:
      section: Section of the option.
      field: Its name.
      value: Its value.
      upper_open: Whether 1 itself is refused.

    Raises:
      ConfigError: The value lies outside.
    """
    inside = 0.0 <= value < 1.0 if upper_open else 0.0 <= value <= 1.0
    require(inside, f"{section}.{field} is {value}, but a rate lies in [0, 1{')' if upper_open else ']'}.")


def require_at_least(section: str, field: str, value: float, least: float) -> None:
    """Raises an error where a value is too small or not a number.

    Args:
      section: Section of the option.
      field: Its name.
      value: Its value.
      least: Least value.

    Raises:
      ConfigError: The value is too small.
    """
    require(not math.isnan(value) and value >= least, f"{section}.{field} is {value}, but must be at least {least}.")
