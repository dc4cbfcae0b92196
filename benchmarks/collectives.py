"""What a training step of a small BERT sends between 8 devices, for each way of splitting it; nothing runs, steps are compiled only.

    python -m benchmarks.collectives --json results/collectives.json

The devices are virtual ones of the CPU, so kinds, counts and bytes are those of the partitioned program before an accelerator's own
compiler merges all-reduces with the slices after them into reduce-scatters.
"""

import argparse
import dataclasses
import os
from typing import Any

from benchmarks.runner import write_json

NUM_DEVICES = 8
ROWS, LENGTH, SLOTS = 16, 256, 40


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of splitting a step.

    Attributes:
      name: What the field calls it.
      axes: Sizes of the mesh axes; ``data`` takes what they leave.
    """

    name: str
    axes: dict[str, int]


WAYS = (
    Way("data (all-reduce)", {}),
    Way("fsdp (ZeRO-3, parameter servers)", {"fsdp": 8}),
    Way("tensor (Megatron)", {"tensor": 8}),
    Way("sequence (context parallelism)", {"sequence": 8}),
    Way("data 2 over 2 slices x fsdp 4", {"fsdp": 4, "slices": 2}),
    Way("fsdp 2 x sequence 2 x tensor 2", {"fsdp": 2, "sequence": 2, "tensor": 2}),
)


def compile_step(axes: dict[str, int], scan_layers: bool = False, remat: Any = "none") -> tuple[str, int]:
    """Compiles a step of pre-training and returns its text and the bytes of parameters and optimizer state on one device.

    Args:
      axes: Sizes of the mesh axes.
      scan_layers: Whether layers are scanned.
      remat: What the backward pass computes again.
    """
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from flaxbert.architecture import Execution, ModelConfig
    from flaxbert.config import MeshConfig, TrainConfig
    from flaxbert.core.sharding import batch_shardings, build_mesh
    from flaxbert.core.trees import leaf_kinds, leaf_names
    from flaxbert.families import get_family
    from flaxbert.families.graph import abstract_params, forward, graph_definition
    from flaxbert.train.objectives import PretrainingLoss
    from flaxbert.train.optimizers import make_optimizer
    from flaxbert.train.state import create_state, state_shardings
    from flaxbert.train.step import make_train_step

    config = ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=1024,
        hidden_dropout_rate=0.0,
        attention_dropout_rate=0.0,
    )
    execution = Execution(precision="float32", scan_layers=scan_layers, remat=remat)
    mesh = build_mesh(dataclasses.replace(MeshConfig(), **axes))
    params = abstract_params(config, "fill-mask", execution)
    leaf_axes = get_family("bert").parameter_axes(leaf_names(params))
    optimizer, kinds = make_optimizer(TrainConfig(), 100), leaf_kinds(params)
    state = jax.eval_shape(lambda tree: create_state(tree, (), optimizer, copy=False)[0], params)
    shardings = state_shardings(state, leaf_axes, mesh, kinds)
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, shardings
    )
    shapes = {
        **dict.fromkeys(("input_ids", "segment_ids", "position_ids"), (ROWS, LENGTH)),
        **dict.fromkeys(("masked_positions", "labels"), (ROWS, SLOTS)),
    }
    batch = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
    places = batch_shardings(batch, mesh)
    placed = {name: jax.ShapeDtypeStruct(shapes[name], jnp.int32, sharding=places[name]) for name in batch}
    run = functools.partial(forward, graph_definition(config, "fill-mask", execution))
    step = make_train_step(run, PretrainingLoss(), optimizer, kinds, shardings=shardings, mesh=mesh)
    with jax.set_mesh(mesh):
        compiled = step.lower(like, placed, None).compile({"xla_backend_optimization_level": 0})
    held = sum(
        np.prod(place.shard_shape(leaf.shape), dtype=int) * leaf.dtype.itemsize
        for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    )
    return compiled.as_text(), int(held)


def main() -> None:
    """Compiles, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan-layers", action="store_true", help="scan the layers; what a loop runs is counted once")
    parser.add_argument("--remat", default="none", choices=["none", "full", "dots", "attention"])
    parser.add_argument("--json", default="results/collectives.json", help="file of the results")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={NUM_DEVICES}".strip()
    from flaxbert.core.collectives import find_collectives, summarise
    from flaxbert.core.runtime import cure_wrong_sums

    cure_wrong_sums()
    rows = []
    print(f"BERT of 2 layers of 256, {ROWS} rows of {LENGTH} tokens, float32, {NUM_DEVICES} virtual CPU devices\n")
    print("| way | state on a device | collective | count | MB of whole arrays a step |\n|---|---|---|---|---|")
    for way in WAYS:
        text, held = compile_step(way.axes, arguments.scan_layers, arguments.remat)
        for kind, (count, size) in summarise(find_collectives(text)).items():
            print(f"| {way.name} | {held / 1e6:.1f} MB | {kind} | {count} | {size / 1e6:.2f} |", flush=True)
            rows.append({"way": way.name, "state_bytes": held, "kind": kind, "count": count, "bytes": size})
    write_json(arguments.json, {"rows": rows})


if __name__ == "__main__":
    main()
