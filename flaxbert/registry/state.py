"""What the journal of a model says: its versions, where aliases stand and stood, and the rules of promotion."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from flaxbert.errors import ConfigError, DataError
from flaxbert.registry.names import CHAMPION, Reference
from flaxbert.registry.rules import PromotionRule

ADD, MOVE, ROLL_BACK, REMOVE_ALIAS, SET_RULE = "add", "move", "rollback", "remove_alias", "set_rule"
DELETE, SIGN = "delete", "sign"
"""What may happen to a model."""

_FOLDER, _SIGNATURE = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{32}\.sig")


@dataclasses.dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
      number: Its place in the journal, from 1.
      time: When, in UTC.
      by: Who.
      action: What.
      details: The rest, by the action.
    """

    number: int
    time: str
    by: str
    action: str
    details: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class VersionRecord:
    """A version of a model; nothing of it ever changes.

    Attributes:
      number: Its number, from 1.
      folder: Name of its folder.
      files: Size and SHA-256 of every file by its relative path.
      digest: SHA-256 of these, which is the same for the same files.
      time: When it was added, in UTC.
      by: Who added it.
      task: Task of the model.
      family: Family of the model.
      metrics: Scores by name.
      data: What is known of the data that it was trained on.
      parent: What it was made of: another version (``NAME:3``), or a hub id.
      note: A sentence for people.
    """

    number: int
    folder: str
    files: Mapping[str, Mapping[str, Any]]
    digest: str
    time: str
    by: str
    task: str = ""
    family: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parent: str = ""
    note: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(int(entry["size_bytes"]) for entry in self.files.values())


@dataclasses.dataclass(frozen=True)
class ModelState:
    """A model as the journal leaves it.

    Attributes:
      name: Its name.
      versions: Versions by number, without those that were deleted.
      num_added: Versions that were ever added.
      stacks: For every alias the versions that it stood at, the one where it stands now last.
      rules: Rule of promotion of every alias that has one.
      signatures: Names of the files of signatures by version.
      events: Everything that happened.
    """

    name: str
    versions: Mapping[int, VersionRecord] = dataclasses.field(default_factory=dict)
    num_added: int = 0
    stacks: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    rules: Mapping[str, PromotionRule] = dataclasses.field(default_factory=dict)
    signatures: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    events: tuple[Event, ...] = ()

    @property
    def aliases(self) -> dict[str, int]:
        """Version of every alias."""
        return {alias: stack[-1] for alias, stack in self.stacks.items() if stack}

    def find(self, wanted: Reference) -> VersionRecord:
        """Returns the version that a reference means.

        Args:
          wanted: ``NAME:VERSION``, ``NAME@ALIAS``, or ``NAME`` for the champion, else the only version.

        Raises:
          ConfigError: There is no such version or alias.
        """
        number = wanted.version
        if not number:
            alias = wanted.alias or CHAMPION
            number = self.aliases.get(alias, 0)
            if not number and not wanted.alias and len(self.versions) == 1:
                number = next(iter(self.versions))
            if not number:
                known = ", ".join(f"{self.name}@{alias}" for alias in self.aliases) or "no aliases"
                raise ConfigError(
                    f"{self.name} has no alias {alias!r} ({known}); name a version: {self.name}:{self.num_added}."
                )
        if number not in self.versions:
            what = "was deleted" if number <= self.num_added else "does not exist"
            known = ", ".join(map(str, self.versions)) or "none"
            raise ConfigError(f"Version {number} of {self.name} {what}; there are {known}.")
        return self.versions[number]

    def before(self, alias: str) -> int:
        """Returns the version at which an alias stood before, of those that there still are; 0 for none.

        Args:
          alias: The alias.
        """
        stack = self.stacks.get(alias, ())
        now = stack[-1] if stack else 0
        return next((number for number in reversed(stack[:-1]) if number in self.versions and number != now), 0)

    def after(self, event: Event) -> "ModelState":
        """Returns the state once something has happened.

        Args:
          event: What.

        Raises:
          DataError: The event is none that this version of flaxbert knows.
        """
        details, state = event.details, dataclasses.replace(self, events=(*self.events, event))
        if event.action == ADD:
            number = int(details["version"])
            fields = {name: value for name, value in details.items() if name not in ("version", "aliases")}
            record = VersionRecord(number=number, time=event.time, by=event.by, **fields)
            if not _FOLDER.fullmatch(record.folder) or number != self.num_added + 1:
                raise ValueError(f"version {number} in the folder {record.folder!r}")
            return dataclasses.replace(state, versions={**self.versions, number: record}, num_added=number)
        if event.action == DELETE:
            kept = {number: record for number, record in self.versions.items() if number != details["version"]}
            return dataclasses.replace(state, versions=kept)
        if event.action == SIGN:
            number, file = int(details["version"]), str(details["file"])
            if not _SIGNATURE.fullmatch(file):
                raise ValueError(f"a signature in {file!r}")
            signatures = {**self.signatures, number: (*self.signatures.get(number, ()), file)}
            return dataclasses.replace(state, signatures=signatures)
        alias = str(details.get("alias", ""))
        stack = self.stacks.get(alias, ())
        if event.action == MOVE:
            return dataclasses.replace(state, stacks={**self.stacks, alias: (*stack, int(details["version"]))})
        if event.action == ROLL_BACK:
            place = max(place for place, number in enumerate(stack[:-1]) if number == details["version"])
            return dataclasses.replace(state, stacks={**self.stacks, alias: stack[: place + 1]})
        if event.action == REMOVE_ALIAS:
            return dataclasses.replace(state, stacks={name: s for name, s in self.stacks.items() if name != alias})
        if event.action == SET_RULE:
            rules = {name: rule for name, rule in self.rules.items() if name != alias}
            if details.get("rule") is not None:
                rules[alias] = PromotionRule(**details["rule"])
            return dataclasses.replace(state, rules=rules)
        raise DataError(
            f"The journal of {self.name} has an event '{event.action}' that this version of flaxbert does not know; use a newer one."
        )
