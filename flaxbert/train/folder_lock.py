"""One writer per folder: a lock that the operating system releases however the process ends."""

import contextlib
import fcntl
import os
import pathlib
import socket

from flaxbert.errors import CheckpointError

LOCK_NAME = ".lock"

_held_here: set[pathlib.Path] = set()


class FolderLock:
    """Holds a folder for this process until ``release``.

    A POSIX record lock: it goes with the process, kill -9 included, and child processes do not inherit it. Such a lock does not
    keep out a second user in the same process, so those are counted here.

    Args:
      folder: An existing folder.

    Raises:
      CheckpointError: Another process, or another user in this one, holds it; says which.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder.resolve()
        self._descriptor = -1
        if self._folder in _held_here:
            raise CheckpointError(
                f"{folder} is already open for writing in this process; close the first store before."
            )
        descriptor = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            if not isinstance(error, BlockingIOError | PermissionError):
                raise CheckpointError(
                    f"{folder} can not be locked ({error.strerror}); choose another folder."
                ) from error
            raise CheckpointError(
                f"{folder} is being written by {holder}. Two runs can not write one folder: "
                "wait for it, end it, or choose another --output.folder."
            ) from error
        with contextlib.suppress(OSError):  # on a full disk the lock still holds, it only does not say who has it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor
        _held_here.add(self._folder)

    def release(self) -> None:
        """Gives the folder free; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            _held_here.discard(self._folder)
