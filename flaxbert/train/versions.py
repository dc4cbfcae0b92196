"""The versions in a checkpoint folder: their names, documents, damage and which of them are kept. Reads only; starts no backend.

A folder holds

- ``400/``: the version of step 400: ``arrays/`` (written by orbax), ``version.json`` (step, time, metric, leaves, kinds of typed
  leaves, software), ``host.json`` (what the run needs besides arrays) and ``manifest.json`` (SHA-256 of every file);
- ``400.damaged/``: a version that did not match its manifest and was set aside;
- ``.400.saving/``, ``.400.removing/``: leftovers of a process that ended while it saved or removed; the next writer deletes them;
- ``.lock``: held by the one process that writes.
"""

import dataclasses
import json
import math
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

from flaxbert.core.digests import MANIFEST_NAME, find_damage, read_manifest
from flaxbert.errors import CheckpointError, DataError

ARRAYS_NAME = "arrays"
VERSION_NAME = "version.json"
HOST_NAME = "host.json"
VERSION_FORMAT = "flaxbert-checkpoint-1"
DAMAGED_SUFFIX = ".damaged"
CHECKPOINTS_NAME = "checkpoints"
"""Folder of the versions inside the folder of a run."""

_GOOD = re.compile(r"^(?P<step>\d+)$")
_DAMAGED = re.compile(r"^(?P<step>\d+)\.damaged(\.\d+)?$")
_LEFTOVER = re.compile(r"^\.\d+\.(saving|removing)$")
_REPLACED = re.compile(r"^\.(?P<step>\d+)\.replaced$")


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """One version, without its arrays.

    Attributes:
      step: Optimizer steps taken.
      path: Folder of the version.
      created_seconds: Time of the save in seconds since 1970; 0 where it can not be read.
      size_bytes: Bytes of all files.
      metric: Value of the metric that chooses the best version, or None.
      higher_is_better: Direction of that metric.
      num_leaves: Number of stored arrays.
      damage: What is wrong, one entry per file; empty for a version that is good as far as it was checked.
      is_newest: Whether it is the newest good version of its folder.
      is_best: Whether it is the good version with the best metric.
    """

    step: int
    path: pathlib.Path
    created_seconds: float
    size_bytes: int
    metric: float | None
    higher_is_better: bool
    num_leaves: int
    damage: tuple[str, ...] = ()
    is_newest: bool = False
    is_best: bool = False

    @property
    def good(self) -> bool:
        """Whether no damage was found."""
        return not self.damage


def read_document(info: CheckpointInfo, name: str) -> dict[str, Any]:
    """Returns one JSON document of a version.

    Args:
      info: The version.
      name: ``VERSION_NAME`` or ``HOST_NAME``.

    Raises:
      CheckpointError: The document is missing or no JSON.
    """
    path = info.path / name
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} can not be read: {error}. Use another version of {info.path.parent}; "
            "`flaxbert checkpoints list` shows them."
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds {type(document).__name__}, but a document is an object.")
    return document


def _folder_bytes(folder: pathlib.Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def inspect_version(path: pathlib.Path, *, contents: bool) -> CheckpointInfo:
    """Returns what is known of one version folder.

    Args:
      path: Folder named by its step, or set aside.
      contents: Whether the digest of every file is compared; otherwise manifest, names and sizes only.

    Returns:
      The version, ``damage`` filled in.

    Raises:
      FileNotFoundError: The folder is gone.
    """
    step = int(path.name.split(".")[0])
    damage = find_damage(path, contents=contents)
    info = CheckpointInfo(step, path, 0.0, 0, None, True, 0, damage)
    try:
        document = read_document(info, VERSION_NAME)
        metric = document["metric"]
        info = dataclasses.replace(
            info,
            created_seconds=float(document["created_seconds"]),
            metric=None if metric is None else float(metric),
            higher_is_better=bool(document["higher_is_better"]),
            num_leaves=len(document["leaves"]),
        )
        if document["format"] != VERSION_FORMAT or document["step"] != step:
            raise CheckpointError(f"says format {document['format']!r}, step {document['step']!r}")
        if set(read_manifest(path)) < {VERSION_NAME, HOST_NAME}:
            raise CheckpointError(f"{MANIFEST_NAME} does not name it")
    except (CheckpointError, DataError, KeyError, TypeError, ValueError) as error:
        damage = damage or (f"{VERSION_NAME}: {error}",)
    return dataclasses.replace(info, size_bytes=_folder_bytes(path), damage=damage)


def best_of(versions: Sequence[CheckpointInfo]) -> CheckpointInfo | None:
    """Returns the good version with the best finite metric, the earliest of equals; None where no version has one.

    Args:
      versions: Versions of one folder; the direction of the metric is that of the last measured one.
    """
    measured = [info for info in versions if info.good and info.metric is not None and math.isfinite(info.metric)]
    sign = 1.0 if not measured or measured[-1].higher_is_better else -1.0
    return max(measured, key=lambda info: (sign * (info.metric or 0.0), -info.step), default=None)


def list_versions(folder: pathlib.Path, *, verify: bool = False) -> list[CheckpointInfo]:
    """Returns all versions of a folder, those set aside too, by step.

    Args:
      folder: The checkpoint folder; may be written to meanwhile.
      verify: Whether the digest of every file is compared, which reads every byte.

    Returns:
      Versions from the oldest to the newest; a missing folder has none.
    """
    versions: list[CheckpointInfo] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            if _GOOD.match(path.name) and path.is_dir():
                versions.append(inspect_version(path, contents=verify))
            elif _DAMAGED.match(path.name) and path.is_dir():
                info = inspect_version(path, contents=verify)
                versions.append(dataclasses.replace(info, damage=info.damage or ("set aside by an earlier run",)))
        except FileNotFoundError:
            continue  # removed by the writer since it was listed
    versions.sort(key=lambda info: (info.step, not info.damage))
    newest = max((info.step for info in versions if info.good), default=-1)
    best = best_of(versions)
    return [
        dataclasses.replace(
            info, is_newest=info.good and info.step == newest, is_best=best is not None and info == best
        )
        for info in versions
    ]


def is_set_aside(info: CheckpointInfo) -> bool:
    """Returns whether a version was set aside as damaged before.

    Args:
      info: The version.
    """
    return DAMAGED_SUFFIX in info.path.name


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a damaged version so that it is no longer found.

    Args:
      path: Folder of the version.

    Returns:
      Its new folder.
    """
    target, number = path.with_name(path.name + DAMAGED_SUFFIX), 2
    while target.exists():
        target, number = path.with_name(f"{path.name}{DAMAGED_SUFFIX}.{number}"), number + 1
    return path.rename(target)


def versions_to_remove(versions: Sequence[CheckpointInfo], keep: int) -> list[CheckpointInfo]:
    """Returns the versions that are neither among the newest ``keep`` nor the best; damaged ones are left alone.

    Args:
      versions: All versions, oldest first.
      keep: Newest good versions to keep, at least 1.
    """
    good = [info for info in versions if info.good]
    best = best_of(good)
    return [info for info in good[:-keep] if best is None or info.step != best.step]


def remove_version(path: pathlib.Path) -> None:
    """Deletes a version; a process that ends in the middle leaves nothing that looks like one.

    Args:
      path: Folder of the version.
    """
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.removing")))


def put_in_place(staging: pathlib.Path, version: pathlib.Path) -> None:
    """Makes a version exist that is written under another name, in the place of one that may be there.

    Args:
      staging: The folder that was written.
      version: Its name as a version.
    """
    old = version.with_name(f".{version.name}.replaced")
    if version.exists():
        version.rename(old)
    staging.rename(version)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: pathlib.Path) -> list[str]:
    """Deletes what an earlier process left half-written or half-removed; only the writer may call it.

    A version that was moved out of the way of a new one that never came is put back.

    Args:
      folder: Folder of the versions.

    Returns:
      Names of the deleted folders.
    """
    for path in folder.iterdir():
        replaced = _REPLACED.match(path.name)
        if replaced and not (folder / replaced["step"]).exists():
            path.rename(folder / replaced["step"])
        elif replaced:
            shutil.rmtree(path)
    leftovers = [path for path in folder.iterdir() if _LEFTOVER.match(path.name)]
    for path in leftovers:
        shutil.rmtree(path)
    return sorted(path.name for path in leftovers)


def find_checkpoints_folder(run: pathlib.Path) -> pathlib.Path:
    """Returns the folder of versions of a run, which may be given itself or by the run's folder.

    Raises:
      CheckpointError: Neither exists.
    """
    inner = run / CHECKPOINTS_NAME
    if inner.is_dir():
        return inner
    if run.is_dir() and (run.name == CHECKPOINTS_NAME or list_versions(run)):
        return run
    found = "has no folder 'checkpoints' and no versions" if run.is_dir() else "does not exist"
    raise CheckpointError(f"{run} {found}; name the output folder of a run, for example runs/finetune.")
