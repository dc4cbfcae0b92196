"""Typed leaves on disk: which leaves of a folder are stored as codes, masks and the like, and where their parts lie.

``flaxbert_leaves.json`` names every typed leaf with its kind and, per part, the tensor that holds it and its type. Two
kinds of folders exist:

* All typed leaves have a dense form that stock transformers can use (sparse leaves): ``model.safetensors`` holds every
  tensor dense, with the pruned weights set to zero, and ``flaxbert_leaves.safetensors`` holds the other parts (masks,
  eight entries to a byte).
* Some leaf has only codes (quantized leaves): all tensors lie in ``flaxbert_model.safetensors``, parts as
  ``<tensor>.<part>``, and there is no ``model.safetensors``. So stock transformers ends with "no file named
  model.safetensors" instead of running on weights that it drew itself. So are the tensors of a model stored whose layers
  differ in size or whose heads do not fill its width, where stock classes can not have that. ``quantization_config`` in ``config.json`` has
  ``quant_method`` ``flaxbert``.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxbert.core.arrays import LEAF_KINDS, SparseArray, TypedArray, build_typed
from flaxbert.errors import ShapeError, WeightsError
from flaxbert.weights.readers import StoredTensor, read_json_object, read_safetensors_header

LEAVES_FILE = "flaxbert_leaves.json"
"""Names the typed leaves of a folder."""

PARTS_FILE = "flaxbert_leaves.safetensors"
"""Holds the parts of typed leaves that also have a dense form in ``model.safetensors``."""

CODES_FILE = "flaxbert_model.safetensors"
"""Holds all tensors of a folder that stock transformers can not run: leaves without dense form, or sizes that it can not have."""

FORMAT_VERSION = 1
"""Version of ``flaxbert_leaves.json`` that this code writes and reads."""


@dataclasses.dataclass(frozen=True)
class StoredPart:
    """One part of a typed leaf on disk.

    Attributes:
      tensor: Name of the tensor; None where the part is the dense tensor of the leaf itself.
      dtype: Type in memory, which a file may hold in a wider or packed form.
      shape: Shape in memory.
      packed: Whether the tensor holds booleans, eight to a byte.
      transposed: Whether the tensor has its two axes exchanged, as linear weights have in checkpoints.
    """

    tensor: str | None
    dtype: str
    shape: tuple[int, ...]
    packed: bool = False
    transposed: bool = False

    def encode(self, array: np.ndarray) -> np.ndarray:
        """Returns what is written for an array, a view where it can be."""
        if self.packed:
            return np.packbits(np.ascontiguousarray(array).reshape(-1))
        if np.dtype(array.dtype).name in ("int2", "int4"):
            array = array.astype(np.int8)
        return array.T if self.transposed else array

    def decode(self, array: np.ndarray) -> np.ndarray:
        """Returns the array that was written, the inverse of ``encode``."""
        if self.packed:
            return np.unpackbits(array, count=math.prod(self.shape)).astype(bool).reshape(self.shape)
        array = np.ascontiguousarray(array.T if self.transposed else array)
        return array.astype(jnp.dtype(self.dtype), copy=False)


@dataclasses.dataclass(frozen=True)
class StoredLeaf:
    """One typed leaf on disk.

    Attributes:
      kind: Kind of the leaf.
      parts: Its parts by name.
    """

    kind: str
    parts: Mapping[str, StoredPart]


def has_dense_form(leaf: TypedArray) -> bool:
    """Returns whether a folder can hold the leaf dense without losing what made it small."""
    return isinstance(leaf, SparseArray)


def describe_leaf(leaf: TypedArray, tensor: str, transposed: bool) -> StoredLeaf:
    """Decides how a typed leaf is stored.

    Args:
      leaf: The leaf.
      tensor: Name of its tensor in a checkpoint.
      transposed: Whether the checkpoint has the leaf's axes exchanged.

    Returns:
      The tensors that hold its parts.
    """
    dense_part = "values" if has_dense_form(leaf) else None
    parts = {}
    for name, array in leaf.stored_parts().items():
        packed = np.dtype(array.dtype) == np.dtype(bool)
        parts[name] = StoredPart(
            tensor=None if name == dense_part else f"{tensor}.{name}",
            dtype=str(jnp.dtype(array.dtype).name),
            shape=tuple(array.shape),
            packed=packed,
            transposed=transposed and not packed and len(array.shape) == 2,
        )
    return StoredLeaf(leaf.kind, parts)


def leaves_to_json(leaves: Mapping[str, StoredLeaf]) -> dict[str, Any]:
    """Returns the contents of ``flaxbert_leaves.json``.

    Args:
      leaves: Typed leaves by leaf name.
    """
    return {
        "format_version": FORMAT_VERSION,
        "leaves": {name: dataclasses.asdict(leaf) for name, leaf in leaves.items()},
    }


def read_leaves(folder: pathlib.Path) -> dict[str, StoredLeaf]:
    """Reads which leaves of a folder are typed; none where the folder does not say so.

    Args:
      folder: A model folder.

    Returns:
      How each typed leaf is stored, by leaf name.

    Raises:
      WeightsError: The file is malformed, of a newer version, or names a kind that this version does not know.
    """
    file = folder / LEAVES_FILE
    if not file.is_file():
        return {}
    contents = read_json_object(file)
    if contents.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{file} has format_version {contents.get('format_version')!r}, but this flaxbert reads {FORMAT_VERSION}; "
            "update flaxbert."
        )
    leaves: dict[str, StoredLeaf] = {}
    try:
        for name, entry in contents["leaves"].items():
            parts = {
                part: StoredPart(**{**fields, "shape": tuple(fields["shape"])})
                for part, fields in entry["parts"].items()
            }
            leaves[name] = StoredLeaf(entry["kind"], parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} is malformed: {error!r}.") from error
    unknown = [name for name, leaf in leaves.items() if leaf.kind not in LEAF_KINDS]
    if unknown:
        raise WeightsError(
            f"{file} says that '{unknown[0]}' is a {leaves[unknown[0]].kind} leaf; this flaxbert knows "
            f"{', '.join(LEAF_KINDS)}. Update flaxbert."
        )
    return leaves


def open_parts(folder: pathlib.Path) -> dict[str, StoredTensor]:
    """Returns the tensors of ``flaxbert_leaves.safetensors`` by name; none where there is no such file.

    Args:
      folder: A model folder.
    """
    file = folder / PARTS_FILE
    return read_safetensors_header(file)[0] if file.is_file() else {}


def read_leaf(
    name: str, stored: StoredLeaf, tensors: Mapping[str, StoredTensor], dense: np.ndarray | None
) -> TypedArray:
    """Reads one typed leaf.

    Args:
      name: Leaf name, for messages.
      stored: How it is stored.
      tensors: All tensors of the folder by name.
      dense: The leaf's dense tensor, already in the leaf's orientation, for parts that are it.

    Returns:
      The typed leaf, validated.

    Raises:
      WeightsError: A part is missing, or the parts do not fit each other.
    """
    parts: dict[str, Any] = {}
    for part, place in stored.parts.items():
        if place.tensor is None and dense is not None:
            parts[part] = dense.astype(jnp.dtype(place.dtype), copy=False)
        elif place.tensor is None or place.tensor not in tensors:
            raise WeightsError(f"Part '{name}@{part}' has no tensor '{place.tensor or name}' in the folder.")
        else:
            parts[part] = place.decode(tensors[place.tensor].read())
        if tuple(parts[part].shape) != place.shape:
            raise WeightsError(
                f"Part '{name}@{part}' has shape {parts[part].shape}, but {LEAVES_FILE} says {place.shape}."
            )
    try:
        leaf = build_typed(stored.kind, parts)
        leaf.validate(name)
    except ShapeError as error:
        raise WeightsError(f"Leaf '{name}' of {LEAVES_FILE} can not be built: {error}") from error
    return leaf


def quantization_config(leaves: Mapping[str, StoredLeaf]) -> dict[str, Any] | None:
    """Returns what ``config.json`` says of quantized leaves, or None where there are none.

    Args:
      leaves: Typed leaves by leaf name.
    """
    quantized = [leaf for leaf in leaves.values() if LEAF_KINDS[leaf.kind].is_quantized]
    if not quantized:
        return None
    types = sorted({_weight_type(leaf) for leaf in quantized})
    return {"quant_method": "flaxbert", "weights": types, "num_quantized_tensors": len(quantized)}


def _weight_type(leaf: StoredLeaf) -> str:
    """Returns what the weights of a quantized leaf are."""
    parts = leaf.parts
    if "planes" in parts:
        planes, scale = parts["planes"].shape, parts["scale"].shape
        return f"uint{planes[-3] if planes[-1] == scale[-1] else planes[-2]}"
    if "packed" in parts:
        return "int4"
    return parts["codes" if "codes" in parts else "values"].dtype
