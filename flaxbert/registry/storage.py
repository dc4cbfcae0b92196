"""Where a registry lies: a folder of this machine, or any file system that fsspec knows."""

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from flaxbert.core.digests import flush_folder
from flaxbert.errors import ConfigError, DataError, FlaxbertError, RegistryError

_CONFLICT, _PRECONDITION_FAILED = 409, 412


def _is_refused_condition(error: BaseException | None) -> bool:
    """Returns whether a store said that there is such a file, or that another upload of it is under way; libraries have no one type for that."""
    while error is not None:
        response = getattr(error, "response", None)  # botocore's
        found = response.get("ResponseMetadata", {}) if isinstance(response, Mapping) else {}
        if found.get("HTTPStatusCode") in (_CONFLICT, _PRECONDITION_FAILED):
            return True
        error = error.__cause__
    return False


class Storage:
    """Files below one location.

    A file that is ``created`` appears whole, and only if there was none: of several writers one wins. On folders of this machine a hard link does
    it; object stores do it by a condition on the upload.

    Args:
      location: A path, or a URL of fsspec such as ``gs://bucket/models``.

    Raises:
      ConfigError: There is no such kind of location, or a library for it is missing.
    """

    def __init__(self, location: str) -> None:
        import fsspec

        if not location:
            raise ConfigError("No registry is named: give a folder or URL, or set FLAXBERT_REGISTRY.")
        try:
            # What a store's library remembers of folders hides what others write there.
            self._files, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"The registry {location} can not be opened: {error}") from error
        self.location = location
        self.is_local = "file" in (
            self._files.protocol if isinstance(self._files.protocol, tuple) else (self._files.protocol,)
        )
        self._root = str(root).rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def local_path(self, name: str = "") -> pathlib.Path:
        """Returns where a file lies on this machine; only for local locations.

        Args:
          name: Path below the location.
        """
        return pathlib.Path(self._path(name))

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Gives the failures of remote stores one type; each library has its own, and not all are ``OSError``."""
        try:
            yield
        except (FlaxbertError, FileExistsError, FileNotFoundError):
            raise
        except Exception as error:
            if self.is_local:
                raise
            what = str(error).strip() or type(error).__name__
            raise RegistryError(f"The registry {self.location} can not be used now: {what}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The same for what is written: a place that there is not (a bucket) is not made."""
        with self._reached():
            try:
                yield
            except FileNotFoundError as error:
                raise RegistryError(f"The registry {self.location} can not be written: {error}") from error

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file that there must not be.

        Args:
          name: Path below the location.
          content: What it holds.

        Returns:
          Whether it was written; False where there was one, or another writer is about to create it.

        Raises:
          RegistryError: The location can not be reached or written; the file may be there nevertheless.
        """
        if not self.is_local:
            with self._writing():
                try:
                    self._files.pipe_file(self._path(name), content, mode="create")
                except FileExistsError:
                    return False
                except Exception as error:
                    if _is_refused_condition(error):
                        return False
                    raise
            return True
        target = self.local_path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.parent / f".{uuid.uuid4().hex}"
        try:
            with staged.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(staged, target)
        except FileExistsError:
            return False
        finally:
            staged.unlink(missing_ok=True)
        flush_folder(target.parent)
        return True

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file, or None where there is none.

        Args:
          name: Path below the location.

        Raises:
          RegistryError: The location can not be reached or read.
        """
        try:
            with self._reached():
                return bytes(self._files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def read_all(self, folder: str) -> dict[str, bytes]:
        """Returns the content of the files of a folder by their names; many at a time where they come over a network.

        Args:
          folder: Path below the location.

        Raises:
          RegistryError: The location can not be reached or read.
        """
        names = self.names(folder)
        if not names:
            return {}
        with self._reached():
            found = self._files.cat([self._path(f"{folder}/{name}") for name in names], on_error="omit")
        return {str(path).rsplit("/", 1)[-1]: bytes(content) for path, content in found.items()}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Opens a file for reading bytes.

        Args:
          name: Path below the location.

        Yields:
          The file.

        Raises:
          FileNotFoundError: There is none.
          RegistryError: The location can not be reached or read.
        """
        with self._reached(), self._files.open(self._path(name), "rb") as file:
            yield file

    def names(self, folder: str) -> list[str]:
        """Returns the names in a folder, sorted; none where there is no folder.

        Args:
          folder: Path below the location.

        Raises:
          RegistryError: The location can not be reached or read.
        """
        try:
            with self._reached():
                found = self._files.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)

    def files(self, folder: str) -> dict[str, int]:
        """Returns the sizes of all files below a folder by their relative path.

        Args:
          folder: Path below the location.

        Raises:
          RegistryError: The location can not be reached or read.
        """
        base = self._path(folder)
        with self._reached():
            found = self._files.find(base, detail=True)
        start = self._files._strip_protocol(base).rstrip("/") + "/"
        return {str(path).removeprefix(start): int(entry["size"]) for path, entry in found.items()}

    def upload(self, source: pathlib.Path, folder: str) -> None:
        """Copies a folder of this machine; where that is local too, it appears at once and whole.

        Args:
          source: The folder.
          folder: Path below the location that there must not be.

        Raises:
          RegistryError: The location can not be reached or written; some of the files may be there.
        """
        if not self.is_local:
            with self._writing():
                for path in sorted(source.rglob("*")):
                    if path.is_file():
                        self._files.put_file(str(path), self._path(f"{folder}/{path.relative_to(source).as_posix()}"))
            return
        target = self.local_path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.parent / f".{uuid.uuid4().hex}"
        try:
            shutil.copytree(source, staged)
            for parent, _, names in os.walk(staged):
                for name in names:
                    descriptor = os.open(pathlib.Path(parent, name), os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
                flush_folder(pathlib.Path(parent))
            staged.rename(target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        flush_folder(target.parent)

    def download(self, name: str, target: pathlib.Path) -> None:
        """Copies one file to this machine.

        Args:
          name: Path below the location.
          target: Where to; folders are made.

        Raises:
          DataError: There is no such file.
          RegistryError: The location can not be reached or read.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._reached():
                self._files.get_file(self._path(name), str(target))
        except FileNotFoundError as error:
            raise DataError(f"{self.location} has no file {name}.") from error

    def remove(self, folder: str) -> None:
        """Removes a folder with all that it holds; nothing where there is none.

        Args:
          folder: Path below the location.

        Raises:
          RegistryError: The location can not be reached or written.
        """
        with contextlib.suppress(FileNotFoundError), self._reached():
            self._files.rm(self._path(folder), recursive=True)
