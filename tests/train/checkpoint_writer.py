"""Processes for the tests of checkpoints: a writer that is killed, a disk that fills up, several processes on one folder.

``python -m tests.train.checkpoint_writer <mode> <folder> ...``
"""

import itertools
import os
import pathlib
import sys
import warnings
from typing import Any

import numpy as np


def state_of(step: int) -> dict[str, Any]:
    """The arrays that a version of this step holds, drawn from the step alone."""
    rng = np.random.default_rng(step)
    kernels = {f"layer.{index}.kernel": rng.normal(size=(64, 128)).astype(np.float32) for index in range(6)}
    return {"step": np.int32(step), "trainable": kernels, "scale": rng.random(3, dtype=np.float32)}


def write_until_killed(folder: str, report: int) -> None:
    """Saves version after version; tells the file descriptor ``report`` what is surely on the disk."""
    import jax
    import jax.numpy as jnp

    from flaxbert.train.checkpoint import CheckpointStore

    store = CheckpointStore(folder, keep=2)
    newest = store.newest_good()
    step = 0
    if newest is not None:
        step = newest.step
        restored = store.restore(newest, state_of(0))
        if any(
            a.tobytes() != b.tobytes()
            for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state_of(step)), strict=True)
        ):
            os._exit(3)
    os.write(report, b"ready\n")
    while True:
        step += 1
        store.save(step, jax.tree.map(jnp.asarray, state_of(step)), host={"step": step}, metric=float(-step % 7))
        os.write(report, f"{step - 1}\n".encode())  # save has waited for the one before it


def serve_writers(folder: str) -> None:
    """Starts a writer by fork for every line on standard input, so that the imports are paid for once; no backend runs here."""
    import jax
    import orbax.checkpoint

    import flaxbert.train.checkpoint

    del jax, orbax, flaxbert
    warnings.simplefilter("ignore")
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            write_until_killed(folder, sys.stdout.fileno())
        print(f"pid {child}", flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)


def fill_disk(folder: str, megabytes: str) -> None:
    """Saves a small version, then one that does not fit although the free space looked enough; prints what happened."""
    import shutil

    import jax.numpy as jnp

    from flaxbert.errors import CheckpointError
    from flaxbert.train.checkpoint import CheckpointStore

    real = shutil.disk_usage
    large = {
        f"kernel_{index}": jnp.asarray(np.random.default_rng(0).random(int(megabytes) * 2500), jnp.float32)
        for index in range(100)
    }
    with CheckpointStore(folder) as store:
        store.save(1, state_of(1))
        store.wait()
        shutil.disk_usage = lambda path: real(path)._replace(free=10**12)
        store.save(2, large)
        shutil.disk_usage = real
        try:
            store.wait()
        except CheckpointError as error:
            print(error)
        print("names", sorted(path.name for path in pathlib.Path(folder).iterdir()))
        newest = store.newest_good()
        print("newest", newest.step if newest else None)
    with CheckpointStore(folder) as store:
        store.save(2, large)  # this one may fail while closing: the process must end with that error
        shutil.disk_usage = lambda path: real(path)._replace(free=10**12)


def share_folder(folder: str, address: str, process: str, told: str) -> None:
    """One of two processes that save, verify, stop and restore together; what they see goes into the file ``told``.

    Not to the standard output: Gloo's threads write there too, in pieces of lines.
    """
    import signal

    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.distributed.initialize(address, num_processes=2, process_id=int(process))
    from flaxbert.train.checkpoint import CheckpointStore
    from flaxbert.train.preemption import PreemptionGuard

    mesh = Mesh(np.asarray(jax.devices()).reshape(2, -1), ("data", "fsdp"))
    specs = {"kernel": PartitionSpec("fsdp", "data"), "step": PartitionSpec()}

    def place(step: int) -> dict[str, Any]:
        values = {"kernel": np.arange(128, dtype=np.float32).reshape(16, 8) * step, "step": np.int32(step)}
        return {
            name: jax.make_array_from_callback(
                value.shape, NamedSharding(mesh, specs[name]), lambda index, value=value: value[index]
            )
            for name, value in values.items()
        }

    with CheckpointStore(folder, timeout_seconds=60) as store:
        for step in (1, 2, 3):
            store.save(step, place(step), host={"step": step}, metric=float(step))
        store.wait()
        if process == "0":
            path = pathlib.Path(folder, "3", "host.json")
            path.write_bytes(path.read_bytes().replace(b"3", b"4"))
        store._wait_for_all("damaged")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            newest = store.newest_good()
        restored = store.restore(newest, place(0))
        same = all(
            np.array_equal(a.data, b.data)
            for name in specs
            for a, b in zip(restored[name].addressable_shards, place(2)[name].addressable_shards, strict=True)
        )
        warned = sum("host.json" in str(item.message) for item in caught)
        lines = [f"newest {newest.step if newest else None} same {same} told {warned}"]
    with PreemptionGuard() as guard:
        for step in itertools.count():
            if process == "1" and step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            if guard.should_stop(step):
                lines.append(f"stopped {step}")
                break
    pathlib.Path(told).write_text("\n".join(lines))
    jax.distributed.shutdown()


if __name__ == "__main__":
    {"serve": serve_writers, "fill": fill_disk, "share": share_folder}[sys.argv[1]](*sys.argv[2:])
