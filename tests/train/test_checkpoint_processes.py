"""Two real processes that write one store over loopback, and what they wrote read by one process on other meshes."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flaxbert.config import MeshConfig
from flaxbert.core.sharding import build_mesh
from flaxbert.train.checkpoint import CheckpointStore
from tests.helpers import ROOT

pytestmark = pytest.mark.multiprocess


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_save_verify_stop_and_restore_together(tmp_path):
    folder = tmp_path / "checkpoints"
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    files = [tmp_path / f"told_{number}" for number in range(2)]
    command = [sys.executable, "-m", "tests.train.checkpoint_writer", "share", str(folder), address]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(file)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, file in enumerate(files)
    ]
    results = [process.communicate(timeout=90) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    told = [file.read_text().splitlines() for file in files]
    # Process 1 got its signal at step 3; both stop at the next step at which they ask each other.
    # Version 3 was damaged between save and check: process 0 tells it, both use version 2.
    assert told[0] == ["newest 2 same True told 1", "stopped 8"], results
    assert told[1] == ["newest 2 same True told 0", "stopped 8"], results

    mesh = build_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    like = {
        "kernel": jax.ShapeDtypeStruct(
            (16, 8), np.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
        ),
        "step": jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, PartitionSpec())),
    }
    with CheckpointStore(folder) as store:
        newest = store.newest_good()
        restored = store.restore(newest, like)
        assert store.read_host(newest) == {"step": 2}
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "2", "3.damaged"]
    assert np.array_equal(restored["kernel"], np.arange(128, dtype=np.float32).reshape(16, 8) * 2)
    assert int(restored["step"]) == 2
