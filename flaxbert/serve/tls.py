"""Encrypted connections: certificates in files, which are read again when they change."""

import asyncio
import logging
import pathlib
import ssl

from flaxbert.config import TlsConfig
from flaxbert.errors import ConfigError

_LOG = logging.getLogger("flaxbert.serve")

_LOOK_AGAIN_SECONDS = 1.0


class Certificates:
    """The certificate of a server with its key, and who may sign those of clients.

    Args:
      config: The files.

    Raises:
      ConfigError: A file can not be read, holds something else, or the key is another certificate's.
    """

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._certificate = pathlib.Path(config.certificate_file)
        self._key = pathlib.Path(config.key_file or config.certificate_file)
        self._stamps = self._look()
        self.context = self._make()
        self.served_pair = self.pair()

    @property
    def client_authorities(self) -> bytes | None:
        """PEM of the authorities that certificates of clients must be signed by; None where clients need none."""
        return pathlib.Path(self._config.client_ca_file).read_bytes() if self._config.client_ca_file else None

    def pair(self) -> tuple[bytes, bytes]:
        """Returns key and chain of certificates of the files as PEM."""
        return self._key.read_bytes(), self._certificate.read_bytes()

    def _look(self) -> tuple[tuple[int, int], ...]:
        try:
            found = [path.stat() for path in (self._certificate, self._key)]
        except OSError as error:
            raise ConfigError(f"tls: {error.filename} can not be read: {error.strerror}.") from error
        return tuple((status.st_mtime_ns, status.st_size) for status in found)

    def _make(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load(context)
        if self._config.client_ca_file:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._config.client_ca_file)
            except OSError as error:
                raise ConfigError(
                    f"tls.client_ca_file {self._config.client_ca_file} holds no certificates as PEM: {error}."
                ) from error
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            # Without a password of its own OpenSSL would ask the terminal for one.
            context.load_cert_chain(self._certificate, self._key, password="")
        except OSError as error:
            raise ConfigError(
                f"tls: {self._certificate} and {self._key} are no certificate with its key, not encrypted, as PEM: {error}."
            ) from error

    def refresh(self) -> bool:
        """Takes what the files hold now for the connections from now on; what can not be used changes nothing.

        Returns:
          Whether there was something new.
        """
        try:
            stamps = self._look()
            if stamps == self._stamps:
                return False
            self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))  # half of a new pair leaves no trace
            self._load(self.context)
        except ConfigError as error:
            _LOG.warning("the certificate stays as it is: %s", error)
            return False
        self._stamps, self.served_pair = stamps, self.pair()
        _LOG.info("%s was read again", self._certificate)
        return True

    async def watch(self) -> None:
        """Looks at the files until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            await asyncio.to_thread(self.refresh)
