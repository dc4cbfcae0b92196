"""Signatures of versions, in the format of OpenSSF model signing: who has the private key has seen exactly these files."""

import importlib
import pathlib
import tempfile
import uuid
from typing import Any

from flaxbert.errors import ConfigError, DataError, DependencyError, RegistryError
from flaxbert.registry.names import Reference, parse_reference
from flaxbert.registry.registry import Registry
from flaxbert.registry.state import SIGN, ModelState


def _library(name: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{name}")
    except ImportError as error:
        raise DependencyError("Signatures need the package model-signing: pip install 'flaxbert[sign]'.") from error


def _key(path: str) -> pathlib.Path:
    key = pathlib.Path(path)
    if not key.is_file():
        raise ConfigError(f"The key {path} is no file.")
    return key


def sign_folder(folder: pathlib.Path, private_key: str, signature: pathlib.Path, password: str = "") -> None:
    """Signs a folder with the private key of an elliptic curve.

    Args:
      folder: The folder.
      private_key: File of the key, in PEM.
      signature: File that the signature is written to, outside of the folder.
      password: Password of the key; empty for none.

    Raises:
      ConfigError: The key can not be read.
      DependencyError: model-signing is not installed.
    """
    config, key = _library("signing").Config(), _key(private_key)
    try:
        config.use_elliptic_key_signer(private_key=key, password=password or None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"The private key {private_key} can not be used: {error}") from error
    config.sign(folder, signature)


def check_signature(folder: pathlib.Path, public_key: str, signature: pathlib.Path) -> None:
    """Compares a folder with its signature.

    Args:
      folder: The folder.
      public_key: File of the public key, in PEM.
      signature: File of the signature.

    Raises:
      ConfigError: The key can not be read.
      DataError: The signature is of another key, or of other files.
      DependencyError: model-signing is not installed.
    """
    config, key = _library("verifying").Config(), _key(public_key)
    try:
        config.use_elliptic_key_verifier(public_key=key)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"The public key {public_key} can not be used: {error}") from error
    try:
        config.verify(folder, signature)
    except Exception as error:  # the library names no errors of its own
        raise DataError(f"The signature does not fit: {error or type(error).__name__}") from error


def sign_version(registry: Registry, reference: str, private_key: str, password: str = "") -> ModelState:
    """Signs a version with a private key, after its files were compared with their digests.

    Args:
      registry: The registry.
      reference: The version.
      private_key: File of the key of an elliptic curve, in PEM.
      password: Its password; empty for none.

    Returns:
      The state of the model afterwards.

    Raises:
      ConfigError: There is no such version, or the key can not be used.
      DataError: The version is damaged.
      DependencyError: model-signing is not installed.
      RegistryError: The registry can not be reached or written.
    """
    name, record = parse_reference(reference).name, registry.find(reference)
    file = f"{uuid.uuid4().hex}.sig"
    with tempfile.TemporaryDirectory(prefix="flaxbert-sign-") as place:
        signature = pathlib.Path(place) / file
        sign_folder(registry.folder(Reference(name, record.number), verify=True), private_key, signature, password)
        target, content = f"{name}/signatures/{file}", signature.read_bytes()
        if not registry.storage.create(target, content) and registry.storage.read(target) != content:
            raise RegistryError(f"The signature of {reference} could not be written; try again.")
    return registry.change(name, lambda _: (SIGN, {"version": record.number, "file": file}))


def check_version(registry: Registry, reference: str, public_key: str) -> None:
    """Checks that a version was signed with the private key that belongs to a public one, and is what was signed.

    Args:
      registry: The registry.
      reference: The version.
      public_key: File of the public key, in PEM.

    Raises:
      ConfigError: There is no such version, or the key can not be used.
      DataError: None of its signatures fits.
      DependencyError: model-signing is not installed.
    """
    name, record = parse_reference(reference).name, registry.find(reference)
    why = "It is not signed."
    with tempfile.TemporaryDirectory(prefix="flaxbert-sign-") as place:
        for file in registry.state(name).signatures.get(record.number, ()):
            signature = pathlib.Path(place) / file
            signature.write_bytes(registry.storage.read(f"{name}/signatures/{file}") or b"")
            try:
                return check_signature(registry.folder(Reference(name, record.number)), public_key, signature)
            except DataError as error:
                why = str(error)
    raise DataError(f"{name}:{record.number} is not signed by {pathlib.Path(public_key).name}: {why}")
