"""Going on from a checkpoint: what has changed in the settings since, and whether that would spoil the run."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.errors import ConfigError
from flaxbert.train.callbacks import flatten_options

MustAgree = Sequence[tuple[str, tuple[str, ...]]]
"""Sections of a config with the settings that a resumed run shares with its checkpoints."""

HARMLESS = re.compile(
    r"output\..*|teacher\.(cache|offline|attention|scan_layers)|mesh\..*|model\.(attention|remat|offline)|"
    r"data\.(max_validation_rows|num_workers)|prune\.(shrink|even)|"
    r"train\.(accumulation_steps|log_every|evaluate_every|evaluation_batch_size|checkpoint_every|keep_checkpoints|"
    r"load_best_at_end|profile|hang_factor|hang_seconds|hang_pause_seconds|resume)"
)
"""Settings that change where and how often something is written, or how the same is computed, but not what is learned."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that differs from that of the checkpoint.

    Attributes:
      name: Section and field.
      before: Its value in the checkpoint.
      after: Its value now.
      refused: Whether the run can not go on with it.
    """

    name: str
    before: Any
    after: Any
    refused: bool

    @property
    def harmless(self) -> bool:
        """Whether the run learns the same, up to rounding."""
        return not self.refused and HARMLESS.fullmatch(self.name) is not None

    def __str__(self) -> str:
        note = "refused" if self.refused else "changes nothing that is learned" if self.harmless else "from here on"
        return f"{self.name}: {self.before!r} -> {self.after!r} ({note})"


def find_changes(saved: Mapping[str, Any], now: Mapping[str, Any], must_agree: MustAgree) -> list[Change]:
    """Returns every setting that differs, those that are refused first.

    A setting that the checkpoint does not know, because an older version wrote it, is no change.

    Args:
      saved: Config of the checkpoint.
      now: Config of this run.
      must_agree: Settings that may not change.
    """
    fixed = tuple(f"{section}.{field}" for section, fields in must_agree for field in fields)
    before, after = flatten_options(saved), flatten_options(now)
    known = {
        name for name in before.keys() | after.keys() if name in before or _has_parent(name, saved)
    }  # an entry of a mapping may be new, a setting may not
    changes = [
        Change(name, before.get(name, "(none)"), after.get(name, "(none)"), _is_one_of(name, fixed))
        for name in sorted(known)
        if before.get(name) != after.get(name)
    ]
    return sorted(changes, key=lambda change: (not change.refused, change.harmless, change.name))


def _is_one_of(name: str, settings: Sequence[str]) -> bool:
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)


def _has_parent(name: str, saved: Mapping[str, Any]) -> bool:
    """Returns whether the checkpoint has the mapping that a setting with two dots or more is an entry of."""
    section, field, *rest = name.split(".")
    return bool(rest) and field in saved.get(section, {})


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], must_agree: MustAgree) -> str:
    """Compares the settings of a run with those of its checkpoint.

    Args:
      saved: Config of the checkpoint.
      now: Config of this run.
      must_agree: Settings that may not change.

    Returns:
      What has changed, in a few lines; empty where nothing has.

    Raises:
      ConfigError: A setting has changed that may not; lists all that have.
    """
    changes = find_changes(saved, now, must_agree)
    listed = "".join(f"\n  {change}" for change in changes)
    if any(change.refused for change in changes):
        raise ConfigError(
            f"The settings are not those that the checkpoints were made with (before -> now):{listed}\n"
            "Restore those that are refused, or choose another output.folder for a new run."
        )
    return f"Settings that have changed since the checkpoint (before -> now):{listed}" if changes else ""
