"""The registry: adding, finding, promoting, comparing, checking and deleting versions of models."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from flaxbert.errors import ConfigError, FlaxbertError, RegistryError, nearest
from flaxbert.registry.journal import Change, Journal
from flaxbert.registry.model_folder import describe_folder
from flaxbert.registry.names import CHAMPION, Reference, check_alias, check_name, parse_reference
from flaxbert.registry.rules import PromotionRule
from flaxbert.registry.state import (
    ADD,
    DELETE,
    MOVE,
    REMOVE_ALIAS,
    ROLL_BACK,
    SET_RULE,
    ModelState,
    VersionRecord,
)
from flaxbert.registry.storage import Storage
from flaxbert.registry.version_files import VersionFiles, digest_of

LOCATION_VARIABLE = "FLAXBERT_REGISTRY"
"""Environment variable with the location of the registry."""

CACHE_VARIABLE = "FLAXBERT_CACHE"
"""Environment variable with the folder that versions of remote registries are copied to."""


class Registry:
    """Models with versions, in a folder or at a URL.

    ``NAME/versions/ID`` holds the files of a version, which never change; ``NAME/journal`` what happened, from which versions and aliases follow. Any
    number of processes may write at once.

    Args:
      location: A path or a URL of fsspec; empty takes ``FLAXBERT_REGISTRY``.
      cache: Folder for copies of remote versions; empty takes ``FLAXBERT_CACHE``, else ``~/.cache/flaxbert``.

    Raises:
      ConfigError: No location is named, or it can not be opened.
    """

    def __init__(self, location: str = "", cache: str = "") -> None:
        self._storage = Storage(location or os.environ.get(LOCATION_VARIABLE, ""))
        chosen = cache or os.environ.get(CACHE_VARIABLE, "") or str(pathlib.Path("~/.cache/flaxbert").expanduser())
        self._files = VersionFiles(self._storage, pathlib.Path(chosen) / "registry")
        self._journals: dict[str, Journal] = {}

    @property
    def location(self) -> str:
        """Where it lies."""
        return self._storage.location

    def _journal(self, name: str) -> Journal:
        return self._journals.setdefault(name, Journal(self._storage, check_name(name)))

    @property
    def storage(self) -> Storage:
        """Its files."""
        return self._storage

    def change(self, name: str, change: Change) -> ModelState:
        """Makes something happen to a model.

        Args:
          name: The model.
          change: What, given the state that it happens in.

        Returns:
          The state afterwards.

        Raises:
          ConfigError: There is no such model.
        """
        self.state(name)
        return self._journal(name).append(change)

    def models(self) -> list[str]:
        """Returns the names of all models."""
        return [
            name for name in self._storage.names("") if self._storage.read(f"{name}/journal/00000001.json") is not None
        ]

    def state(self, name: str) -> ModelState:
        """Returns versions, aliases and history of a model.

        Args:
          name: The model.

        Raises:
          ConfigError: There is no such model.
          DataError: Its journal is damaged.
        """
        state = self._journal(name).read()
        if not state.events:
            raise ConfigError(f"The registry {self.location} has no model {name!r}.{nearest(name, self.models())}")
        return state

    def find(self, reference: Reference | str) -> VersionRecord:
        """Returns the version that a reference means now.

        Args:
          reference: ``NAME:VERSION``, ``NAME@ALIAS``, or ``NAME`` for its champion, else its only version.

        Raises:
          ConfigError: There is no such model, version or alias.
        """
        wanted = _parsed(reference)
        return self.state(wanted.name).find(wanted)

    def add(
        self,
        name: str,
        folder: str | pathlib.Path,
        *,
        metrics: Mapping[str, float] | None = None,
        data: Mapping[str, Any] | None = None,
        parent: str = "",
        note: str = "",
        aliases: Sequence[str] = (),
    ) -> VersionRecord:
        """Adds a model folder as the next version of a model; the model is new where there is none of the name.

        Args:
          name: The model.
          folder: A model folder; it is copied and compared with its own manifest where it has one.
          metrics: Scores; None takes those of its card.
          data: What is known of the data that it was trained on.
          parent: What it was made of: another version (``NAME:3``), or a hub id; empty takes what its card says.
          note: A sentence for people.
          aliases: Aliases that move to it at once, as by ``promote``.

        Returns:
          The version.

        Raises:
          ConfigError: A name is none, the folder is no model, or the same files are a version already.
          DataError: Files differ from the folder's manifest, or changed while they were copied.
          RegistryError: The registry can not be reached or written; what was copied stays, since the version may be there nevertheless.
        """
        check_name(name)
        for alias in aliases:
            check_alias(alias)
        described = describe_folder(pathlib.Path(folder), metrics, parent)
        digest = digest_of(described.files)
        self._refuse_again(self._journal(name).read(), digest)
        identity = uuid.uuid4().hex
        place = f"{name}/versions/{identity}"
        self._files.add(pathlib.Path(folder), place, described.files)
        details = {"folder": identity, "digest": digest, "data": dict(data or {}), "note": note, **described.to_json()}

        def change(state: ModelState) -> tuple[str, dict[str, Any]]:
            self._refuse_again(state, digest)
            return ADD, {"version": state.num_added + 1, **details}

        try:
            state = self._journal(name).append(change)
        except RegistryError:  # the event may have been written: what it names must stay
            raise
        except Exception:
            with contextlib.suppress(FlaxbertError):
                if all(record.folder != identity for record in self._journal(name).read().versions.values()):
                    self._storage.remove(place)
            raise
        record = next(record for record in state.versions.values() if record.folder == identity)
        for alias in aliases:
            self.promote(Reference(name, record.number), alias)
        return record

    @staticmethod
    def _refuse_again(state: ModelState, digest: str) -> None:
        for record in state.versions.values():
            if record.digest == digest:
                raise ConfigError(f"The same files are version {record.number} of {state.name} already.")

    def promote(
        self, reference: Reference | str, alias: str = CHAMPION, *, rule: PromotionRule | None = None, force: str = ""
    ) -> ModelState:
        """Moves an alias to a version, if its rule allows it.

        Args:
          reference: The version.
          alias: The alias.
          rule: Rule of the alias from now on; None keeps the one it has.
          force: Why the rule is set aside this once; goes into the journal. Empty: it is not.

        Returns:
          The state afterwards.

        Raises:
          ConfigError: There is no such version, or the rule says no.
        """
        wanted = _parsed(reference)
        check_alias(alias)
        if rule is not None:
            self.set_rule(wanted.name, alias, rule)

        def change(state: ModelState) -> tuple[str, dict[str, Any]] | None:
            record = state.find(wanted)
            now = state.aliases.get(alias, 0)
            if now == record.number:
                return None
            holds = state.rules.get(alias)
            incumbent = state.versions[now].metrics if now in state.versions else None
            refusal = holds.refusal(record.metrics, incumbent) if holds is not None else ""
            if refusal and not force:
                raise ConfigError(
                    f"Version {record.number} of {state.name} may not become {alias}: {refusal}. To promote it nevertheless, say why (--force REASON)."
                )
            details: dict[str, Any] = {"alias": alias, "version": record.number, "before": now}
            return MOVE, {**details, "forced": force, "refusal": refusal} if refusal else details

        return self.change(wanted.name, change)

    def roll_back(self, name: str, alias: str = CHAMPION) -> ModelState:
        """Moves an alias to where it stood before; called again, further back.

        Args:
          name: The model.
          alias: The alias.

        Returns:
          The state afterwards.

        Raises:
          ConfigError: There is no such alias, or it stood nowhere before.
        """
        check_alias(alias)

        def change(state: ModelState) -> tuple[str, dict[str, Any]]:
            state.find(Reference(name, alias=alias))
            before = state.before(alias)
            if not before:
                raise ConfigError(f"{alias} of {name} stood at no other version before that there still is.")
            return ROLL_BACK, {"alias": alias, "version": before, "before": state.aliases[alias]}

        return self.change(name, change)

    def remove_alias(self, name: str, alias: str) -> ModelState:
        """Takes an alias away; the versions stay.

        Args:
          name: The model.
          alias: The alias.

        Returns:
          The state afterwards.

        Raises:
          ConfigError: There is no such alias.
        """
        check_alias(alias)

        def change(state: ModelState) -> tuple[str, dict[str, Any]]:
            if alias not in state.aliases:
                raise ConfigError(f"{name} has no alias {alias!r}.{nearest(alias, list(state.aliases))}")
            return REMOVE_ALIAS, {"alias": alias, "before": state.aliases[alias]}

        return self.change(name, change)

    def set_rule(self, name: str, alias: str, rule: PromotionRule | None) -> ModelState:
        """Sets what a version must reach for an alias, or takes the rule away.

        Args:
          name: The model.
          alias: The alias; it need not exist yet.
          rule: The rule; None for none.

        Returns:
          The state afterwards.

        Raises:
          ConfigError: There is no such model.
        """
        check_alias(alias)

        def change(state: ModelState) -> tuple[str, dict[str, Any]] | None:
            if state.rules.get(alias) == rule:
                return None
            return SET_RULE, {"alias": alias, "rule": None if rule is None else rule.to_json()}

        return self.change(name, change)

    def delete(self, reference: Reference | str) -> ModelState:
        """Deletes a version; its number is never given again, and the journal keeps what it was.

        Args:
          reference: The version, by its number.

        Returns:
          The state afterwards.

        Raises:
          ConfigError: There is no such version, no number is given, or an alias stands at it.
        """
        wanted = _parsed(reference)
        if not wanted.version:
            raise ConfigError(f"{wanted} may mean another version tomorrow; name the number: {wanted.name}:3.")
        record = self.find(wanted)

        def change(state: ModelState) -> tuple[str, dict[str, Any]] | None:
            if record.number not in state.versions:
                return None
            holders = [alias for alias, number in state.aliases.items() if number == record.number]
            if holders:
                raise ConfigError(f"{wanted} is {', '.join(holders)}; move the alias first.")
            return DELETE, {"version": record.number}

        state = self.change(wanted.name, change)
        self._storage.remove(f"{wanted.name}/versions/{record.folder}")
        return state

    def verify(self, name: str, version: int = 0) -> dict[int, list[str]]:
        """Compares the journal with itself and every byte of versions with what was added.

        Args:
          name: The model.
          version: One version; 0 for all.

        Returns:
          What is wrong, by version; empty lists where nothing is.

        Raises:
          ConfigError: There is no such model or version.
          DataError: The journal is damaged.
        """
        self.state(name)
        self._journal(name).check()
        state = self.state(name)
        records = [state.find(Reference(name, version))] if version else list(state.versions.values())
        return {record.number: self._files.damage_of(name, record) for record in records}

    def reference_of(self, folder: str | pathlib.Path) -> str:
        """Returns ``NAME:VERSION`` of a folder that ``folder`` returned, or an empty text for other folders.

        Args:
          folder: A folder of this machine.
        """
        path = pathlib.Path(folder)
        for name in self.models():
            for record in self.state(name).versions.values():
                if (
                    record.folder == path.name
                    and path.is_dir()
                    and path.samefile(self._files.folder(name, record, verify=False))
                ):
                    return f"{name}:{record.number}"
        return ""

    def orphans(self, name: str) -> list[str]:
        """Returns the folders of versions that were never finished, or are still being written.

        Args:
          name: The model.
        """
        known = {record.folder for record in self.state(name).versions.values()}
        return [folder for folder in self._storage.names(f"{name}/versions") if folder not in known]

    def folder(self, reference: Reference | str, *, verify: bool = False) -> pathlib.Path:
        """Returns a folder of this machine with the files of a version; remote ones are copied once and compared with their digests.

        Args:
          reference: The version.
          verify: Whether local files are compared with their digests too.

        Raises:
          ConfigError: There is no such version.
          DataError: A file is missing or damaged; what was copied is removed.
        """
        wanted = _parsed(reference)
        return self._files.folder(wanted.name, self.find(wanted), verify=verify)


def _parsed(reference: Reference | str) -> Reference:
    return parse_reference(reference) if isinstance(reference, str) else reference
