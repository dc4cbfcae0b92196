"""``flaxbert checkpoints list RUN`` and ``flaxbert checkpoints show RUN STEP``; both only read, also while the run goes on."""

import datetime
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from flaxbert.core.units import format_bytes

if TYPE_CHECKING:
    from flaxbert.train.versions import CheckpointInfo


def list(run: str, verify: bool = False) -> int:  # noqa: A001 - the command's name
    """Lists the saved versions of a run: step, time, size, metric, and which is newest, best or damaged.

    Args:
      run: Output folder of the run, or its checkpoints folder.
      verify: Whether every byte is compared with its SHA-256; otherwise only the manifest, the files and their sizes are.

    Returns:
      Exit code: 1 where a version that is in use is damaged, else 0.
    """
    from flaxbert.train import versions as layout

    folder = layout.find_checkpoints_folder(pathlib.Path(run))
    versions = layout.list_versions(folder, verify=verify)
    if not versions:
        print(f"No versions in {folder}.")
        return 0
    rows = [("step", "saved", "size", "metric", "leaves", "state"), *(_row(info) for info in versions)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not verify:
        print("Names and sizes were checked; --verify true compares every byte.")
    return int(any(info.damage and not layout.is_set_aside(info) for info in versions))


def show(run: str, step: int | Literal["newest", "best"], verify: bool = False) -> int:
    """Shows what one saved version holds: time, metric, software, arrays, files with digests, and the host document.

    Args:
      run: Output folder of the run, or its checkpoints folder.
      step: Optimizer step of the version; or newest, or best.
      verify: Whether every byte is compared with its SHA-256.

    Returns:
      Exit code: 1 where the version is damaged, else 0.

    Raises:
      CheckpointError: There is no such version.
    """
    from flaxbert.train import versions as layout

    folder = layout.find_checkpoints_folder(pathlib.Path(run))
    info = layout.inspect_version(_find(folder, step).path, contents=verify)
    print(f"step      {info.step}")
    print(f"folder    {info.path}")
    for damage in info.damage:
        print(f"DAMAGED   {damage}")
    if not info.damage:
        print(f"state     good ({'every byte compared' if verify else 'names and sizes checked'})")
    print(f"size      {format_bytes(info.size_bytes)}")
    for lines in (_version_lines, _file_lines, _host_lines):
        for line in _readable(lines, info):
            print(line)
    return int(bool(info.damage))


def _find(folder: pathlib.Path, step: int | str) -> "CheckpointInfo":
    from flaxbert.errors import CheckpointError
    from flaxbert.train import versions as layout

    versions = layout.list_versions(folder)
    matches = {
        "newest": [info for info in versions if info.is_newest],
        "best": [info for info in versions if info.is_best],
    }.get(str(step), [info for info in versions if info.step == step])
    if not matches:
        known = ", ".join(str(info.step) for info in versions) or "none"
        raise CheckpointError(f"{folder} has no version '{step}'; its steps are: {known}.")
    return matches[-1]


def _readable(lines: Any, info: "CheckpointInfo") -> "tuple[str, ...]":
    """Returns the lines about one part of a version; where damage makes it unreadable, nothing, since that was said."""
    from flaxbert.errors import CheckpointError, DataError

    try:
        return tuple(lines(info))
    except (CheckpointError, DataError, KeyError, TypeError, ValueError, AttributeError):
        if info.good:
            raise
        return ()


def _version_lines(info: "CheckpointInfo") -> "tuple[str, ...]":
    from flaxbert.train.versions import VERSION_NAME, read_document

    document = read_document(info, VERSION_NAME)
    groups: dict[str, tuple[int, int]] = {}
    for name, leaf in document["leaves"].items():
        count, size = groups.get(name.split(".")[0], (0, 0))
        groups[name.split(".")[0]] = (count + 1, size + math.prod(leaf["shape"]))
    kinds: dict[str, int] = {}
    for kind in document["kinds"].values():
        kinds[kind] = kinds.get(kind, 0) + 1
    return (
        f"saved     {format_time(info.created_seconds)}",
        f"metric    {_format_metric(info.metric)}",
        f"devices   {document['num_devices']} on {document['num_processes']} process(es)",
        "software  " + ", ".join(f"{name} {version}" for name, version in document["software"].items()),
        f"leaves    {info.num_leaves}",
        *(f"  {name}: {count} arrays, {size:,} entries" for name, (count, size) in groups.items()),
        *(f"  {kind} leaves: {count}" for kind, count in sorted(kinds.items())),
    )


def _file_lines(info: "CheckpointInfo") -> "tuple[str, ...]":
    from flaxbert.core.digests import read_manifest

    files = read_manifest(info.path)
    return ("files", *(f"  {entry.sha256}  {entry.size_bytes:>14,}  {name}" for name, entry in sorted(files.items())))


def _host_lines(info: "CheckpointInfo") -> "tuple[str, ...]":
    from flaxbert.train.versions import HOST_NAME, read_document

    return ("host document", json.dumps(read_document(info, HOST_NAME), indent=2, ensure_ascii=False))


def _row(info: "CheckpointInfo") -> "tuple[str, ...]":
    marks = [mark for mark, holds in (("newest", info.is_newest), ("best", info.is_best)) if holds]
    state = f"damaged: {info.damage[0]}" if info.damage else ", ".join(["good", *marks])
    if len(info.damage) > 1:
        state += f" and {len(info.damage) - 1} more"
    return (
        str(info.step),
        format_time(info.created_seconds),
        format_bytes(info.size_bytes),
        _format_metric(info.metric),
        str(info.num_leaves) if info.num_leaves else "?",
        state,
    )


def _format_metric(metric: float | None) -> str:
    return "-" if metric is None else f"{metric:.4f}"


def format_time(seconds: float) -> str:
    """Returns a time as date, clock and zone of this machine; ``?`` where it is not known.

    Args:
      seconds: Seconds since 1970; 0 where it is not known.
    """
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds") if seconds > 0 else "?"
