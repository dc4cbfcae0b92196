"""Who may call a server: keys in files, compared in constant time, read again when the files change."""

import hashlib
import hmac
import os
import pathlib
import time
from collections.abc import Mapping

from flaxbert.config import AccessConfig
from flaxbert.errors import ConfigError
from flaxbert.serve.errors import RequestError

OPEN_PATHS = frozenset({"/health/live", "/inference.GRPCInferenceService/ServerLive"})
"""Paths that need no key."""

PAGE_PATH, PAGE_PREFIX = "/", "/page/"
"""The page and its files, which need no key to be read: they hold no secret, and ask for everything that they show."""

ADMIN_PREFIX = "/admin/"
"""Paths that only administrators may call."""

_LOOK_AGAIN_SECONDS = 1.0


class KeyFile:
    """Keys, one a line; empty lines and lines that begin with ``#`` do not count.

    Args:
      path: The file.

    Raises:
      ConfigError: It can not be read, others may write it, or it holds no key.
    """

    def __init__(self, path: str) -> None:
        self._path = pathlib.Path(path)
        self._looked = -1.0
        self._stamp: tuple[int, int] = (0, 0)
        self._digests: tuple[bytes, ...] = ()
        self._read()

    def _read(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            self._looked = time.monotonic()
            if stamp == self._stamp:
                return
            lines = [line.strip() for line in self._path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            if self._digests:  # it is being replaced; the keys that are known go on
                return
            raise ConfigError(f"The keys in {self._path} can not be read: {error}.") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys and not self._digests:
            raise ConfigError(f"{self._path} holds no key; write one a line.")
        if status.st_mode & 0o022 and status.st_uid == os.geteuid():
            raise ConfigError(f"Others may write {self._path}, and so let themselves in; chmod 600 it.")
        self._stamp = stamp
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def holds(self, key: str) -> bool:
        """Returns whether a key is one of them; takes the same time for every key.

        Args:
          key: What a client sent.
        """
        if time.monotonic() - self._looked > _LOOK_AGAIN_SECONDS:
            self._read()
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def is_open(path: str, method: str) -> bool:
    """Returns whether a request needs no key.

    Args:
      path: Its path.
      method: Its method; models are called at the page's own path, too, by POST.
    """
    return path in OPEN_PATHS or (method == "GET" and (path == PAGE_PATH or path.startswith(PAGE_PREFIX)))


class Access:
    """Decides about every request before anything of it is read.

    Args:
      config: The files.

    Raises:
      ConfigError: A file can not be read.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._users = KeyFile(config.api_keys_file) if config.api_keys_file else None
        self._admins = KeyFile(config.admin_keys_file) if config.admin_keys_file else None

    @property
    def has_admins(self) -> bool:
        """Whether anybody may change what is served."""
        return self._admins is not None

    def check(self, path: str, headers: Mapping[bytes, bytes], method: str = "POST") -> None:
        """Lets a request pass, or not.

        Args:
          path: Its path.
          headers: Its headers, in small letters.
          method: Its method.

        Raises:
          RequestError: It needs a key that it does not have.
        """
        if is_open(path, method):
            return
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        is_admin = bool(self._admins is not None and key and self._admins.holds(key))
        if path.startswith(ADMIN_PREFIX):
            if self._admins is None:
                raise RequestError(
                    "forbidden", "Nobody may change what this server serves; it was started without admin keys."
                )
            if not is_admin:
                raise RequestError("unauthorized", "This needs the key of an administrator as a bearer token.")
            return
        if self._users is not None and not is_admin and not (key and self._users.holds(key)):
            raise RequestError("unauthorized", "This server asks for a key: Authorization: Bearer KEY.")
