"""The files of versions: where they lie, whether they are what was added, and copies of remote ones on this machine."""

import hashlib
import json
import pathlib
import shutil
import uuid
from collections.abc import Mapping

from flaxbert.core.digests import FileDigest, digest_file
from flaxbert.errors import DataError
from flaxbert.registry.names import check_file_name
from flaxbert.registry.state import VersionRecord
from flaxbert.registry.storage import Storage


class VersionFiles:
    """The files of all versions of a registry.

    Args:
      storage: Where the registry lies.
      cache: Folder for copies of remote versions.
    """

    def __init__(self, storage: Storage, cache: pathlib.Path) -> None:
        self._storage = storage
        self._cache = cache

    def add(self, source: pathlib.Path, place: str, files: Mapping[str, FileDigest]) -> None:
        """Copies a folder of this machine into the registry and compares the copy.

        Args:
          source: The folder.
          place: Folder below the location of the registry that there must not be.
          files: What its files should be.

        Raises:
          DataError: A file changed meanwhile; the copy is removed.
          RegistryError: The registry can not be reached or written; parts of the copy may be there.
        """
        self._storage.upload(source, place)
        try:
            damage = self.damage(place, files)
            if damage:
                raise DataError(f"{source} changed while it was copied: {damage[0]}.")
        except BaseException:
            self._storage.remove(place)
            raise

    def damage(self, place: str, files: Mapping[str, FileDigest]) -> list[str]:
        """Returns what is wrong with the files of a folder; empty where nothing is.

        Args:
          place: The folder, below the location of the registry.
          files: What they should be.
        """
        if self._storage.is_local:
            return _local_damage(self._storage.local_path(place), files)
        found, sizes = [], self._storage.files(place)
        for name, expected in files.items():
            if name not in sizes:
                found.append(f"{name}: missing")
                continue
            with self._storage.open(f"{place}/{check_file_name(name)}") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != expected.sha256:
                found.append(f"{name}: content differs from its SHA-256")
        return found + [f"{name}: not part of the version" for name in sorted(sizes.keys() - files.keys())]

    def damage_of(self, name: str, record: VersionRecord) -> list[str]:
        """Returns what is wrong with the files of a version.

        Args:
          name: The model.
          record: The version.
        """
        return self.damage(f"{name}/versions/{record.folder}", _files_of(record))

    def folder(self, name: str, record: VersionRecord, *, verify: bool) -> pathlib.Path:
        """Returns a folder of this machine with the files of a version.

        Args:
          name: The model.
          record: The version.
          verify: Whether local files are compared with their digests; what is copied always is.

        Returns:
          The folder.

        Raises:
          DataError: A file is missing or damaged; what was copied is removed.
        """
        place = f"{name}/versions/{record.folder}"
        if self._storage.is_local:
            self._refuse(name, record, self.damage_of(name, record) if verify else [])
            return self._storage.local_path(place)
        target = self._cache / record.folder
        if target.is_dir():
            return target
        staged = self._cache / f".{uuid.uuid4().hex}"
        try:
            for file in record.files:
                self._storage.download(f"{place}/{check_file_name(file)}", staged / file)
            self._refuse(name, record, _local_damage(staged, _files_of(record)))
            try:
                staged.rename(target)
            except OSError:
                if not target.is_dir():  # another process was faster
                    raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return target

    @staticmethod
    def _refuse(name: str, record: VersionRecord, damage: list[str]) -> None:
        if damage:
            raise DataError(f"{name}:{record.number} is damaged: {'; '.join(damage)}.")


def digest_of(files: Mapping[str, FileDigest]) -> str:
    """Returns one digest of many files, in whatever order they are named.

    Args:
      files: Digest of every file by its relative path.
    """
    entries = {name: entry.sha256 for name, entry in sorted(files.items())}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _files_of(record: VersionRecord) -> dict[str, FileDigest]:
    return {name: FileDigest(int(entry["size_bytes"]), str(entry["sha256"])) for name, entry in record.files.items()}


def _local_damage(folder: pathlib.Path, files: Mapping[str, FileDigest]) -> list[str]:
    found = []
    for name, expected in files.items():
        path = folder / check_file_name(name)
        if path.is_symlink() or not path.is_file():
            found.append(f"{name}: {'is a link' if path.is_symlink() else 'missing'}")
        elif digest_file(path) != expected:
            found.append(f"{name}: content differs from its SHA-256")
    extra = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - files.keys()
    return found + [f"{name}: not part of the version" for name in sorted(extra)]
