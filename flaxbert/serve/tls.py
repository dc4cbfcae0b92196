"""Encrypted connections: certificates in files, which are read again when they change."""

import asyncio
import logging
import pathlib
import ssl
from typing import Any

from flaxbert.config import TlsConfig
from flaxbert.errors import ConfigError

_LOG = logging.getLogger("flaxbert.serve")

_LOOK_AGAIN_SECONDS = 1.0

_Stamps = tuple[tuple[int, int], ...]


def _read_authorities(file: str) -> str:
    try:
        content = pathlib.Path(file).read_text("ascii", "ignore")  # words beside certificates may be of any alphabet
        ssl.create_default_context().load_verify_locations(cadata=content)
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls.client_ca_file {file} holds no certificates as PEM: {error}.") from error
    return content


class Certificates:
    """The certificate of a server with its key, and who may sign those of clients.

    Connections are accepted with ``context``, which never changes: at every handshake it hands over to the newest pair that could be used.

    Attributes:
      context: What connections are accepted with.
      pair: The key and the chain of certificates that are in use, as PEM.
      client_authorities: Authorities of clients' certificates, as PEM; None where clients need none.

    Args:
      config: The files.

    Raises:
      ConfigError: A file can not be read, holds something else, or the key is another certificate's.
    """

    def __init__(self, config: TlsConfig) -> None:
        self._certificate = pathlib.Path(config.certificate_file)
        self._key = pathlib.Path(config.key_file or config.certificate_file)
        self.client_authorities = _read_authorities(config.client_ca_file) if config.client_ca_file else None
        self._seen = self._stamps()
        self.context, self.pair = self._read()
        self._newest = self.context
        self.context.sni_callback = self._hand_over

    def _hand_over(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        connection.context = self._newest

    def _stamps(self) -> _Stamps:
        try:
            found = [path.stat() for path in (self._certificate, self._key)]
        except OSError as error:
            raise ConfigError(f"tls: {error.filename} can not be read: {error.strerror}.") from error
        return tuple((status.st_mtime_ns, status.st_size) for status in found)

    def _read(self) -> tuple[ssl.SSLContext, tuple[bytes, bytes]]:
        """Returns a context with what the files hold, and key and chain of certificates as PEM."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if self.client_authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.client_authorities)
        try:
            # Without a password of its own OpenSSL would ask the terminal for one.
            context.load_cert_chain(self._certificate, self._key, password="")
            return context, (self._key.read_bytes(), self._certificate.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"tls: {self._certificate} and {self._key} are no certificate with its key, not encrypted, as PEM: {error}."
            ) from error

    def refresh(self) -> bool:
        """Takes what the files hold now for the connections from now on; what can not be used changes nothing and is told once.

        Returns:
          Whether there was something new.
        """
        try:
            stamps = self._stamps()
        except ConfigError:  # they are being replaced
            return False
        if stamps == self._seen:
            return False
        try:
            context, pair = self._read()
            if self._stamps() != stamps:  # they are being written
                return False
        except ConfigError as error:
            self._seen = stamps
            _LOG.warning("the certificate stays as it is: %s", error)
            return False
        self._seen, self._newest, self.pair = stamps, context, pair
        _LOG.info("%s was read again", self._certificate)
        return True

    async def watch(self) -> None:
        """Looks at the files until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            self.refresh()
