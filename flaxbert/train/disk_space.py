"""Whether a checkpoint fits on the disk, and what is said when it does not."""

import errno
import pathlib
import shutil

from flaxbert.errors import CheckpointError

MARGIN_RATE = 0.02
MARGIN_BYTES = 4 * 2**20
"""Room for orbax's index beyond the bytes of the arrays: this many and this share of them."""

_FULL = ("No space left", "Disk quota exceeded")


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error, or what caused it, says that the disk or the user's share of it is full.

    Args:
      error: The error; orbax wraps the operating system's in its own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(error) for text in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full_message(folder: pathlib.Path, step: int, needed_bytes: int) -> str:
    """Returns what to tell the user when a checkpoint does not fit.

    Args:
      folder: Folder of the versions.
      step: Step of the version that does not fit.
      needed_bytes: Bytes that it needs.
    """
    return (
        f"The disk has no room for the checkpoint of step {step} in {folder}: it needs about {needed_bytes:,} bytes, "
        f"{shutil.disk_usage(folder).free:,} are free. The versions before it are intact. Free some space, "
        "lower train.keep_checkpoints or move the run to another disk, then start it again."
    )


def require_space(folder: pathlib.Path, step: int, needed_bytes: int) -> None:
    """Checks that a checkpoint fits before anything is written.

    Args:
      folder: Folder of the versions.
      step: Step of the version.
      needed_bytes: Bytes of its arrays and documents.

    Raises:
      CheckpointError: It does not fit.
    """
    needed_bytes = int(needed_bytes * (1 + MARGIN_RATE)) + MARGIN_BYTES
    if shutil.disk_usage(folder).free < needed_bytes:
        raise CheckpointError(disk_full_message(folder, step, needed_bytes))
