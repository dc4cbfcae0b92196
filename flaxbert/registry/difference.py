"""How two versions differ: architecture, scores, files, origin."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flaxbert.registry.registry import Registry
from flaxbert.registry.state import VersionRecord
from flaxbert.weights.folder import read_json_object

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Difference:
    """What differs between two versions.

    Attributes:
      before: The first.
      after: The second.
      fields: Task, family, origin, data and note where they differ: the first's and the second's.
      config: Keys of ``config.json`` that differ: the first's value and the second's, None where there is none.
      metrics: Every metric: the first's value and the second's, None where there is none.
      files: What happened to files: added, removed or changed.
    """

    before: VersionRecord
    after: VersionRecord
    fields: Mapping[str, tuple[Any, Any]]
    config: Mapping[str, tuple[Any, Any]]
    metrics: Mapping[str, tuple[float | None, float | None]]
    files: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the difference as a JSON object."""
        return {
            "versions": [self.before.number, self.after.number],
            "size_bytes": [self.before.size_bytes, self.after.size_bytes],
            **{name: dict(getattr(self, name)) for name in ("fields", "config", "metrics", "files")},
        }


def compare_versions(registry: Registry, first: str, second: str) -> Difference:
    """Compares two versions, of one model or of two.

    Args:
      registry: The registry.
      first: Reference to the first.
      second: Reference to the second.

    Returns:
      What differs.

    Raises:
      ConfigError: There is no such version.
      DataError: Files of a remote version are damaged.
    """
    before, after = registry.find(first), registry.find(second)
    configs = [_config(registry, first, before), _config(registry, second, after)]
    named = {
        name: (getattr(before, name), getattr(after, name)) for name in ("task", "family", "parent", "data", "note")
    }
    return Difference(
        before=before,
        after=after,
        fields={name: pair for name, pair in named.items() if pair[0] != pair[1]},
        config=_changed(*configs),
        metrics={
            name: (before.metrics.get(name), after.metrics.get(name))
            for name in sorted({*before.metrics, *after.metrics})
        },
        files=_changed_files(before.files, after.files),
    )


def _config(registry: Registry, reference: str, record: VersionRecord) -> dict[str, Any]:
    return read_json_object(registry.folder(reference) / CONFIG_FILE) if CONFIG_FILE in record.files else {}


def _changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted({*first, *second})
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _changed_files(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in sorted({*first, *second}):
        if name not in first:
            found[name] = "added"
        elif name not in second:
            found[name] = "removed"
        elif first[name]["sha256"] != second[name]["sha256"]:
            found[name] = "changed"
    return found
