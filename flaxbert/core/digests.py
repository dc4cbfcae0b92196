"""Digests of a folder: a manifest that names every file with its size and SHA-256, and says of itself whether it is whole.

The manifest is canonical JSON. It holds the digest of its own entries and must equal, byte for byte, what writing them again
gives; so a changed byte anywhere, in a file or in the manifest, is found. Whoever can write the folder can also write a
fitting manifest: it guards against damage, not against an attacker.
"""

import dataclasses
import hashlib
import json
import os
import pathlib

from flaxbert.errors import DataError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "flaxbert-manifest-1"


@dataclasses.dataclass(frozen=True)
class FileDigest:
    """What a manifest knows about one file.

    Attributes:
      size_bytes: Length of the file.
      sha256: SHA-256 of its content in hexadecimal.
    """

    size_bytes: int
    sha256: str


def digest_file(path: pathlib.Path, *, flush_to_disk: bool = False) -> FileDigest:
    """Returns size and SHA-256 of a file, read in pieces; other threads run meanwhile.

    Args:
      path: The file.
      flush_to_disk: Whether the operating system is told to bring the file's content to the disk first.

    Returns:
      The digest.

    Raises:
      OSError: The file can not be read.
    """
    with path.open("rb") as file:
        if flush_to_disk:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(size_bytes=file.tell(), sha256=digest)


def digest_contents(folder: pathlib.Path, suffixes: tuple[str, ...]) -> str:
    """Returns one SHA-256 of names and contents of the files below a folder that end in one of some suffixes.

    Args:
      folder: The folder.
      suffixes: Ends of names, for example ``.safetensors``.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix in suffixes and file.is_file())
    lines = [f"{file.relative_to(folder).as_posix()} {digest_file(file).sha256}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def flush_folder(folder: pathlib.Path) -> None:
    """Brings the names in a folder to the disk, so that they survive a loss of power.

    Raises:
      OSError: The folder can not be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _canonical(document: dict[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True).encode() + b"\n"


def _encode(files: dict[str, FileDigest]) -> bytes:
    document: dict[str, object] = {
        "format": MANIFEST_FORMAT,
        "files": {name: dataclasses.asdict(entry) for name, entry in files.items()},
    }
    return _canonical({**document, "sha256": hashlib.sha256(_canonical(document)).hexdigest()})


def write_manifest(folder: pathlib.Path) -> dict[str, FileDigest]:
    """Digests every file below a folder and writes the manifest, last, atomically and through to the disk.

    Args:
      folder: The folder; nothing else may write into it meanwhile.

    Returns:
      Digest by path relative to the folder, with forward slashes; the manifest itself is not among them.

    Raises:
      OSError: A file can not be read or the manifest not be written.
    """
    files: dict[str, FileDigest] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = pathlib.Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if relative != MANIFEST_NAME:
                files[relative] = digest_file(path, flush_to_disk=True)
        flush_folder(pathlib.Path(parent))
    temporary = folder / f"{MANIFEST_NAME}.tmp"
    with temporary.open("wb") as file:
        file.write(_encode(files))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / MANIFEST_NAME)
    flush_folder(folder)
    return files


def read_manifest(folder: pathlib.Path) -> dict[str, FileDigest]:
    """Returns the digest of every file that a folder's manifest names.

    Args:
      folder: A folder that ``write_manifest`` has seen.

    Returns:
      Digest by path relative to the folder.

    Raises:
      DataError: The manifest is missing or is not, byte for byte, what was written.
    """
    path = folder / MANIFEST_NAME
    try:
        content = path.read_bytes()
        document = json.loads(content)
        files = {name: FileDigest(**entry) for name, entry in document["files"].items()}
        whole = _encode(files) == content
    except OSError as error:
        raise DataError(f"{path} can not be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a manifest: {type(error).__name__}: {error}") from error
    if not whole:
        raise DataError(f"{path} is not as it was written: its own digest differs.")
    return files


def _file_damage(folder: pathlib.Path, name: str, expected: FileDigest, *, contents: bool) -> str:
    relative = pathlib.PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        return f"{name}: lies outside the folder"
    path = folder / relative
    try:
        if path.is_symlink():
            return f"{name}: is a link"
        size_bytes = path.stat().st_size
        if size_bytes != expected.size_bytes:
            return f"{name}: has {size_bytes} bytes instead of {expected.size_bytes}"
        if contents and digest_file(path).sha256 != expected.sha256:
            return f"{name}: content differs from its SHA-256"
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: can not be read ({error.strerror})"
    return ""


def find_damage(folder: pathlib.Path, *, contents: bool = True) -> tuple[str, ...]:
    """Compares a folder with its manifest.

    Args:
      folder: A folder that ``write_manifest`` has seen.
      contents: Whether every byte is read; otherwise only the manifest, the names and the sizes are checked.

    Returns:
      One entry per damaged file, ``"<file>: <what is wrong>"``; empty where all is well. Files that the manifest does not
      name are ignored.

    Example:
      >>> find_damage(pathlib.Path("runs/sst2/checkpoints/400"))
      ('arrays/_METADATA: content differs from its SHA-256',)
    """
    try:
        files = read_manifest(folder)
    except DataError as error:
        return (f"{MANIFEST_NAME}: {error}",)
    found = (_file_damage(folder, name, entry, contents=contents) for name, entry in sorted(files.items()))
    return tuple(damage for damage in found if damage)
