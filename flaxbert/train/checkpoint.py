"""Versioned checkpoints: saved in the background by orbax, whole or not at all, verified before they are used.

Why no moment of a kill leaves a bad version:

1. Everything is written into ``.400.saving/``, a name that no reader looks at: the arrays by orbax, then the two documents,
   then the manifest with the SHA-256 of every file. Each file, then each folder, is flushed to the disk.
2. One ``rename`` to ``400/`` makes the version exist. Before it the newest version is the old one, after it the new one, and
   that rename is atomic. Orbax's own temporary name and rename happen inside ``.400.saving/`` and so need no trust.
3. Old versions are removed only afterwards, by a rename to ``.300.removing/`` and then deletion.
   A version that is replaced (by itself and its metric) is called ``.300.replaced/`` until the new one exists.
4. The next writer deletes ``.*.saving`` and ``.*.removing``, and puts back what nothing has replaced. A lock, which the operating system drops with the process, keeps
   a second writer out.
5. What was written may still rot: ``newest_good`` compares every byte with the manifest, sets a damaged version aside as
   ``400.damaged/``, says so, and takes the one before it.

``save`` returns as soon as the arrays are copied from the devices; orbax's threads write them, and a thread of the store
waits for that, digests (``hashlib`` lets other threads run) and renames. Its failure is raised by the next call.
In a run of several processes all of them call every method at the same step; process 0 alone touches names and documents.
"""

import concurrent.futures
import itertools
import pathlib
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np

from flaxbert.core.digests import flush_folder, write_manifest
from flaxbert.errors import CheckpointError
from flaxbert.train import versions as layout
from flaxbert.train.disk_space import disk_full_message, is_disk_full, require_space
from flaxbert.train.folder_lock import FolderLock
from flaxbert.train.quiet_failures import OrbaxSilence, drop_abandoned_writes
from flaxbert.train.stored_leaves import (
    SCALARS,
    compare_leaves,
    describe_leaves,
    leaves_bytes,
    named_leaves,
    storable_leaves,
    typed_kinds,
)
from flaxbert.train.version_documents import encode_json, software_versions
from flaxbert.train.versions import CheckpointInfo

_store_numbers = itertools.count()


class CheckpointStore:
    """The versions of one run: saves, lists, verifies and restores them.

    Args:
      folder: Folder of the versions; made if missing. This process is its only writer until ``close``.
      keep: Newest versions that stay, at least 1; the one with the best metric stays too.
      higher_is_better: Direction of the metric.
      timeout_seconds: Longest time that processes wait for each other while saving.

    Raises:
      CheckpointError: The folder can not be made or written, or another run writes it.

    Example:
      >>> with CheckpointStore("runs/sst2/checkpoints", keep=2) as store:
      ...     store.save(400, state, host={"data": position}, metric=0.91)
      ...     state = store.restore(store.newest_good(), like=state)
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        keep: int = 2,
        higher_is_better: bool = True,
        timeout_seconds: int = 1200,
    ) -> None:
        import orbax.checkpoint as ocp

        if keep < 1:
            raise CheckpointError(f"keep is {keep}, but at least 1 version has to stay.")
        self.folder = pathlib.Path(folder).absolute()
        self._keep = keep
        self._higher_is_better = higher_is_better
        self._timeout_seconds = timeout_seconds
        self._lock: FolderLock | None = None
        self._pending: concurrent.futures.Future[None] | None = None
        self._barrier_prefix = f"flaxbert_checkpoint_{next(_store_numbers)}"
        self._barrier_count = itertools.count()
        if self._is_primary:
            self._open_folder()
        # Trained weights hardly compress; without zstd a save takes a fraction of the processor time.
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        self._checkpointer = ocp.AsyncCheckpointer(handler, timeout_secs=timeout_seconds)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="flaxbert-checkpoint")
        self._writes_abandoned = False
        self._silence = OrbaxSilence()
        self._silence.install()

    @property
    def _is_primary(self) -> bool:
        return jax.process_index() == 0

    def _open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder)
            layout.remove_leftovers(self.folder)
        except OSError as error:
            raise CheckpointError(f"Checkpoints can not be written to {self.folder}: {error}.") from error

    def _wait_for_all(self, key: str) -> None:
        if jax.process_count() > 1:
            from orbax.checkpoint import multihost

            # This barrier uses the coordination service, not the devices, so it may wait beside a training step.
            barrier = multihost.get_barrier_sync_fn()
            barrier(key=f"{self._barrier_prefix}_{key}", timeout_ms=self._timeout_seconds * 1000)

    def save(
        self,
        step: int,
        tree: Any,
        *,
        host: Mapping[str, Any] | None = None,
        kinds: Mapping[str, str] | None = None,
        metric: float | None = None,
        replace: bool = False,
    ) -> bool:
        """Starts to save a version; returns once the arrays are copied, so they may be donated or changed afterwards.

        Waits for the save before it, if that still runs.

        Args:
          step: Optimizer steps taken, the name of the version.
          tree: Any pytree of arrays and numbers.
          host: What the run needs besides arrays: data position, random state, resolved config, history; JSON-able.
          kinds: Kinds of typed leaves whose parts are stored flat, by leaf name; typed leaves in the tree are found anyway.
          metric: Value that decides whether this version is the best; None: not measured.
          replace: Whether a version of this step that is stored already makes room once the new one is whole.

        Returns:
          Whether a save was started; False where a version of this step is stored already, which stays as it is.

        Raises:
          CheckpointError: The save before this one failed, the tree can not be stored, or the disk has no room.
        """
        self.wait()
        if (self.folder / str(step)).exists() and not replace:
            return False
        leaves = storable_leaves(tree)
        documents = {
            layout.VERSION_NAME: encode_json(
                {
                    "format": layout.VERSION_FORMAT,
                    "step": step,
                    "created_seconds": time.time(),
                    "metric": None if metric is None else float(metric),
                    "higher_is_better": self._higher_is_better,
                    "num_processes": jax.process_count(),
                    "num_devices": jax.device_count(),
                    "kinds": {**typed_kinds(tree), **(kinds or {})},
                    "software": software_versions(),
                    "leaves": describe_leaves(leaves),
                },
                layout.VERSION_NAME,
            ),
            layout.HOST_NAME: encode_json(host or {}, "The host document"),
        }
        self._start(step, leaves, documents)
        return True

    def _start(self, step: int, leaves: dict[str, Any], documents: dict[str, bytes]) -> None:
        import orbax.checkpoint as ocp

        staging = self.folder / f".{step}.saving"
        needed_bytes = leaves_bytes(leaves) + sum(len(document) for document in documents.values())
        try:
            if self._is_primary:
                require_space(self.folder, step, needed_bytes)
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir()
            self._checkpointer.save(staging / layout.ARRAYS_NAME, args=ocp.args.PyTreeSave(leaves))
        except CheckpointError:
            raise
        except Exception as error:
            self._writes_abandoned = True
            drop_abandoned_writes(error)
            raise self._failure(step, needed_bytes, error) from error
        self._pending = self._executor.submit(self._finish, step, staging, documents, needed_bytes)

    def _failure(self, step: int, needed_bytes: int, error: BaseException) -> CheckpointError:
        if self._is_primary:
            shutil.rmtree(self.folder / f".{step}.saving", ignore_errors=True)
        if is_disk_full(error):
            return CheckpointError(disk_full_message(self.folder, step, needed_bytes))
        return CheckpointError(
            f"The checkpoint of step {step} could not be written to {self.folder} ({type(error).__name__}: {error}). "
            "The versions before it are intact."
        )

    def _finish(self, step: int, staging: pathlib.Path, documents: dict[str, bytes], needed_bytes: int) -> None:
        """Runs in the store's thread: waits for orbax, then makes the version exist and removes old ones."""
        failure: CheckpointError | None = None
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            self._writes_abandoned = True
            drop_abandoned_writes(error)
            raise self._failure(step, needed_bytes, error) from error
        if self._is_primary:
            try:
                self._publish(step, staging, documents)
            except OSError as error:
                failure = self._failure(step, needed_bytes, error)
        self._wait_for_all(f"saved_{step}_{next(self._barrier_count)}")
        if failure is not None:
            raise failure
        if not (self.folder / str(step)).is_dir():
            raise CheckpointError(
                f"Process 0 could not finish the checkpoint of step {step} in {self.folder}; see its message."
            )

    def _publish(self, step: int, staging: pathlib.Path, documents: dict[str, bytes]) -> None:
        for name, content in documents.items():
            (staging / name).write_bytes(content)
        write_manifest(staging)
        layout.put_in_place(staging, self.folder / str(step))
        flush_folder(self.folder)
        for info in layout.versions_to_remove(self.list(), self._keep):
            layout.remove_version(info.path)

    def wait(self) -> None:
        """Waits until the running save, if any, is on the disk.

        Raises:
          CheckpointError: It failed; raised once.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def raise_failure(self) -> None:
        """Raises the failure of a background save as soon as it is known; does not wait.

        Raises:
          CheckpointError: The save failed.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        """Waits for the running save and gives the folder free; a second call does nothing.

        Raises:
          CheckpointError: The running save failed.
        """
        try:
            self.wait()
        finally:
            self._executor.shutdown()
            self._checkpointer.close()
            if not self._writes_abandoned:  # writes of a failed save end later, each with a traceback of its own
                self._silence.remove()
            if self._lock is not None:
                layout.remove_leftovers(self.folder)
                self._lock.release()
                self._lock = None

    def __enter__(self) -> "CheckpointStore":  # noqa: PYI034 - beartype can not check Self here
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(f"Besides, {failure}")

    def list(self) -> list[CheckpointInfo]:
        """Returns all versions, oldest first, those set aside too; names and sizes are checked, contents are not."""
        return layout.list_versions(self.folder)

    def newest_good(self) -> CheckpointInfo | None:
        """Returns the newest version whose every byte is as written; None where nothing was saved.

        Damaged versions that are newer are set aside, with a ``RuntimeWarning`` that names their damaged files.

        Raises:
          CheckpointError: There are versions, but all are damaged; lists them.
        """
        info = self._verified(lambda versions: versions[-1] if versions else None)
        damaged = [version for version in self.list() if layout.is_set_aside(version)]
        if info is None and damaged:
            damaged = [layout.inspect_version(version.path, contents=True) for version in damaged]
            listed = "\n  ".join(f"{version.path.name}: {'; '.join(version.damage[:3])}" for version in damaged)
            raise CheckpointError(
                f"All checkpoints in {self.folder} are damaged:\n  {listed}\n"
                "Restore the folder from a copy, or remove it to start the run anew."
            )
        return info

    def best_good(self) -> CheckpointInfo | None:
        """Returns the version with the best metric whose every byte is as written; None where none was measured.

        Damaged versions that looked better are set aside, with a ``RuntimeWarning`` that names their damaged files.
        """
        return self._verified(layout.best_of)

    def _verified(self, choose: Callable[[Sequence[CheckpointInfo]], CheckpointInfo | None]) -> CheckpointInfo | None:
        self.wait()
        while self._is_primary and (info := self._choose(choose)) is not None:
            damage = layout.inspect_version(info.path, contents=True).damage
            if not damage:
                break
            moved = layout.set_aside(info.path)
            more = f" and {len(damage) - 3} more" if len(damage) > 3 else ""
            warnings.warn(
                f"The checkpoint of step {info.step} in {self.folder} is damaged ({'; '.join(damage[:3])}{more}). "
                f"It was set aside as {moved.name}; the one before it is used.",
                RuntimeWarning,
                stacklevel=3,
            )
        self._wait_for_all(f"verified_{next(self._barrier_count)}")
        return self._choose(choose)

    def _choose(self, choose: Callable[[Sequence[CheckpointInfo]], CheckpointInfo | None]) -> CheckpointInfo | None:
        return choose([info for info in self.list() if not layout.is_set_aside(info)])

    def read_host(self, info: CheckpointInfo) -> dict[str, Any]:
        """Returns the host document of a version as it was given to ``save``.

        Args:
          info: The version, for example from ``newest_good``.

        Raises:
          CheckpointError: It can not be read.
        """
        return layout.read_document(info, layout.HOST_NAME)

    def restore(self, info: CheckpointInfo, like: Any, *, kinds: Mapping[str, str] | None = None) -> Any:
        """Returns the tree of a version, bit for bit, placed as a template says.

        Args:
          info: The version, for example from ``newest_good``.
          like: Tree of arrays or shape structs. Leaves with a sharding come back as device arrays with it, on whichever mesh
            it names; leaves without one as numpy arrays; Python numbers as such.
          kinds: Kinds of typed leaves whose parts are stored flat; None leaves them unchecked.

        Returns:
          Tree of the template's structure.

        Raises:
          CheckpointError: Names, shapes, dtypes or kinds differ from the template (lists them), or reading fails.
        """
        import orbax.checkpoint as ocp

        self.wait()
        document = layout.read_document(info, layout.VERSION_NAME)
        expected = named_leaves(like)
        found_kinds = typed_kinds(like)
        expected_kinds = {**found_kinds, **(kinds or {})} if found_kinds or kinds is not None else None
        compare_leaves(document["leaves"], document["kinds"], expected, expected_kinds, str(info.path))
        restore_args = {name: _restore_args(leaf) for name, leaf in expected.items()}
        targets = {
            name: jax.ShapeDtypeStruct(np.shape(leaf), restore_args[name].dtype) for name, leaf in expected.items()
        }
        try:
            restored = self._checkpointer.restore(
                info.path / layout.ARRAYS_NAME, args=ocp.args.PyTreeRestore(item=targets, restore_args=restore_args)
            )
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint {info.path} could not be read ({type(error).__name__}: {error}). "
                "`flaxbert checkpoints list --verify` tells which versions are whole."
            ) from error
        leaves = [
            type(leaf)(restored[name].item()) if isinstance(leaf, SCALARS) else restored[name]
            for name, leaf in expected.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _restore_args(leaf: Any) -> Any:
    import orbax.checkpoint as ocp

    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        dtype = np.asarray(leaf).dtype if isinstance(leaf, SCALARS) else leaf.dtype
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
