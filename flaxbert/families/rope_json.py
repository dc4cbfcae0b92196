"""Rotary positions as ``config.json`` describes them."""

from collections.abc import Mapping
from typing import Any

from flaxbert.errors import ConfigError


def read_theta(settings: Any, default: Any) -> Any:
    """Returns the base of the frequencies.

    Args:
      settings: What the file says under ``rope_parameters`` or ``rope_scaling``, or None.
      default: What is taken where it says nothing of the base.

    Raises:
      ConfigError: The positions are scaled or partial, or these are no settings.
    """
    if settings is None:
        return default
    if not isinstance(settings, Mapping):
        raise ConfigError(f"The rotary positions of config.json are {settings!r}, but must be settings by name.")
    name = settings.get("rope_type", settings.get("type", "default"))
    if name != "default" or settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(f"Rotary positions {dict(settings)} are not supported; only the rope_type 'default' is.")
    theta = settings.get("rope_theta")
    return default if theta is None else theta


def write_theta(theta: float) -> dict[str, Any]:
    """Returns the settings for ``rope_parameters``.

    Args:
      theta: Base of the frequencies.
    """
    return {"rope_theta": theta, "rope_type": "default"}
