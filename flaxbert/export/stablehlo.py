"""Models as StableHLO that jax.export wrote: called by jax alone, without flaxbert."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Int

from flaxbert.core.trees import flatten_names, flatten_parts, leaf_kinds, unflatten_parts
from flaxbert.export.signature import Signature
from flaxbert.weights.writers import write_safetensors

PROGRAM_FILE = "model.stablehlo"
PARAMETERS_FILE = "parameters.safetensors"
SIGNATURE_FILE = "signature.json"

PLATFORMS = ("cpu", "cuda", "tpu")
"""What a program runs on."""


def write_stablehlo(signature: Signature, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes a program for any batch and length, and beside it its parameters.

    Parameters are arguments and not constants: a program with them inside could not exceed 2 GB, would be parsed and copied at each
    load, and XLA would fold constants for minutes. So the files are the program (kilobytes), safetensors that any tool reads, and
    the names of inputs and outputs.

    Args:
      signature: The model as a function.
      folder: Where the files go.

    Returns:
      The files.
    """
    params = signature.model.params
    parts = {name: np.asarray(part) for name, part in flatten_parts(params).items()}
    kinds = leaf_kinds(params)

    def run(parameters: Mapping[str, Any], *inputs: Any) -> tuple[Any, ...]:
        leaves = flatten_names(unflatten_parts(parameters, kinds))
        return signature.run([leaves[name] for name in signature.leaf_names], *inputs)

    shapes = {name: jax.ShapeDtypeStruct(part.shape, part.dtype) for name, part in parts.items()}
    inputs = [jax.ShapeDtypeStruct(signature.sizes, jnp.int32)] * len(signature.inputs)
    program = jax_export.export(jax.jit(run), platforms=PLATFORMS)(shapes, *inputs)
    files = [folder / name for name in (PROGRAM_FILE, PARAMETERS_FILE, SIGNATURE_FILE)]
    files[0].write_bytes(program.serialize(vjp_order=0))
    write_safetensors(files[1], parts)
    described = {
        "inputs": list(signature.inputs),
        "outputs": list(signature.outputs),
        "input_type": "int32",
        "platforms": list(PLATFORMS),
        "calling_convention_version": program.calling_convention_version,
        "jax_version": jax.__version__,
    }
    files[2].write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    return files


class StableHloProgram:
    """A folder that ``write_stablehlo`` wrote, ready to be called.

    Args:
      folder: The folder.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        from safetensors.numpy import load_file

        self.program = jax_export.deserialize(bytearray((folder / PROGRAM_FILE).read_bytes()))
        self.parameters = load_file(folder / PARAMETERS_FILE)
        self.names = json.loads((folder / SIGNATURE_FILE).read_text("utf-8"))

    def __call__(self, batch: Mapping[str, Int[np.ndarray, "..."]]) -> dict[str, np.ndarray]:
        """Returns the outputs by name.

        Args:
          batch: Integer arrays by name.
        """
        inputs = [jnp.asarray(batch[name], jnp.int32) for name in self.names["inputs"]]
        outputs = self.program.call(self.parameters, *inputs)
        return {name: np.asarray(output) for name, output in zip(self.names["outputs"], outputs, strict=True)}
