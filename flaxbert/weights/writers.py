"""Writing safetensors files tensor by tensor, and folders that appear at once or not at all."""

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from flaxbert.errors import WeightsError
from flaxbert.weights.readers import DTYPES, INDEX_FILE
from flaxbert.weights.tokenizer_files import TOKENIZER_PATTERNS

MANIFEST_FILE = "flaxbert_manifest.json"
"""Names every file of a folder with its size and SHA-256."""

REPLACED_FILES = (
    "config.json",
    "bert_config.json",
    "albert_config.json",
    "model*.safetensors",
    INDEX_FILE,
    "pytorch_model*.bin*",
    "flax_model*.msgpack*",
    "bert_model.ckpt.*",
    "flaxbert_*",
    *TOKENIZER_PATTERNS,
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling",
    "*_Dense",
    "*_Normalize",
    "*_Transformer",
)
"""Entries of a model folder that belong to the model and go when another model takes its place; all others stay."""

_TYPE_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_safetensors(file: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file; only one tensor at a time is copied.

    Args:
      file: The file.
      tensors: Arrays by name; views (transposed ones) are fine.

    Raises:
      OSError: The file can not be written.
      WeightsError: A type that the format does not have.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        array = tensors[name]
        if array.dtype not in _TYPE_NAMES:
            raise WeightsError(f"Tensor '{name}' has type {array.dtype}, which safetensors does not hold.")
        end = position + array.size * array.dtype.itemsize
        header[name] = {
            "dtype": _TYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name in order:
            stream.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def split_shards(tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> list[dict[str, np.ndarray]]:
    """Divides tensors into files of at most so many bytes, in the order of the mapping.

    Args:
      tensors: Arrays by name.
      max_shard_bytes: Largest file; a single larger tensor gets a file of its own.

    Returns:
      The tensors of each file.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name, array in tensors.items():
        if shards[-1] and filled + array.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = array
        filled += array.nbytes
    return shards


def digest(file: pathlib.Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_files(folder: pathlib.Path) -> dict[str, dict[str, object]]:
    """Returns size and SHA-256 of every file below a folder by its relative path, the manifest itself aside."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {
        path.relative_to(folder).as_posix(): {"size_bytes": path.stat().st_size, "sha256": digest(path)}
        for path in files
    }


def check_target(folder: pathlib.Path, overwrite: bool) -> None:
    """Refuses to write where something is that would be lost.

    Args:
      folder: The folder to write.
      overwrite: Whether a model in it may be replaced.

    Raises:
      WeightsError: It is a file, or holds something and ``overwrite`` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file; give the path of a folder to save to.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        names = sorted(path.name for path in folder.iterdir())
        raise WeightsError(
            f"The folder {folder} is not empty (it holds {', '.join(names[:6])}{' …' if len(names) > 6 else ''}). Choose "
            "another, or pass overwrite=True (--overwrite) to replace the model in it; other files stay."
        )


def _keep_foreign(old: pathlib.Path, new: pathlib.Path, written: Collection[str]) -> None:
    for entry in old.iterdir():
        replaced = any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in REPLACED_FILES)
        if entry.name not in written and not replaced:
            entry.rename(new / entry.name)
    shutil.rmtree(old)


@contextlib.contextmanager
def fresh_folder(folder: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """Gives an empty folder to write into, which takes the place of ``folder`` once the block ends without error.

    Args:
      folder: The folder that is to appear.
      overwrite: Whether a model in it may be replaced. Files that belong to no model are kept.

    Yields:
      The folder to write into, on the same disk.

    Raises:
      WeightsError: The place is taken, or writing fails (a full disk, no permission); nothing is left behind.
    """
    folder = folder.expanduser().resolve()
    check_target(folder, overwrite)
    mark = secrets.token_hex(4)
    partial, old = (folder.parent / f".{folder.name}.{word}-{mark}" for word in ("partial", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        if folder.is_dir():
            folder.rename(old)
        partial.rename(folder)
    except BaseException as error:
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        if isinstance(error, OSError):
            raise _write_error(folder, error) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if old.is_dir():
        try:
            _keep_foreign(old, folder, [path.name for path in folder.iterdir()])
        except OSError as error:
            raise WeightsError(
                f"The model was saved to {folder}, but other files that were there could not be moved along "
                f"({error.strerror or error}); they are in {old}."
            ) from error


def _write_error(folder: pathlib.Path, error: OSError) -> WeightsError:
    if error.errno in _FULL:
        place = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(place).free
        return WeightsError(
            f"The disk is full: the model can not be saved to {folder} ({error.strerror}; {free / 1e6:.0f} MB are free). "
            "Nothing half-written was left there; free some space or choose another disk."
        )
    return WeightsError(
        f"The model can not be saved to {folder}: {error.strerror or error}. Nothing half-written was left there."
    )
