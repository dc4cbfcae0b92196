"""One of several processes that train the small BERT together; prints its losses and parameters as JSON.

Arguments: address of process 0, number of processes, number of this process, fsdp ways, sequence ways, rows of the batch.
"""

import json
import sys

import jax
import numpy as np

from flaxbert.config import MeshConfig
from flaxbert.core.runtime import cure_wrong_sums, initialize_distributed
from flaxbert.core.sharding import batch_share, build_mesh
from tests.train.tiny_training import DROPOUT_CONFIG, run_steps


def main() -> None:
    address, num_processes, process_id, fsdp, sequence, rows = sys.argv[1], *map(int, sys.argv[2:7])
    cure_wrong_sums()
    mesh_config = MeshConfig(
        fsdp=fsdp, sequence=sequence, coordinator=address, num_processes=num_processes, process_id=process_id
    )
    initialize_distributed(mesh_config)
    number, count = batch_share(build_mesh(mesh_config))
    share = rows // count
    state, losses, _ = run_steps(
        4,
        config=DROPOUT_CONFIG.replace(num_hidden_layers=1),
        mesh_config=mesh_config,
        dropout_seed=5,
        rows=rows,
        process_rows=slice(number * share, (number + 1) * share),
    )
    gather = jax.jit(
        lambda leaves: leaves,
        out_shardings=jax.sharding.NamedSharding(state.step.sharding.mesh, jax.sharding.PartitionSpec()),
    )
    whole = gather(state.trainable)
    sums = {name: [float(np.sum(leaf)), float(np.sum(np.abs(leaf)))] for name, leaf in whole.items()}
    print(json.dumps({"processes": jax.process_count(), "devices": jax.device_count(), "losses": losses, "sums": sums}))


main()
