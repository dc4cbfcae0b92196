"""How a model is stored: parameters and non-zeros, bytes in memory and on disk, leaves by form, types of its products."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxbert.core.arrays import LEAF_KINDS, materialize
from flaxbert.core.trees import flatten_names
from flaxbert.transforms.report import leaf_bytes

DENSE = "dense"
"""Form of leaves that are plain arrays."""

_OTHER_WEIGHTS = ("pytorch_model*.bin", "flax_model*.msgpack", "*.ckpt*.data-*", "*.ckpt*.index")


@dataclasses.dataclass(frozen=True)
class Storage:
    """The leaves of a model that are stored in one form.

    Attributes:
      form: Kind of the leaves, or ``dense``.
      dtype: Type of their first part, the one with the numbers themselves.
      num_leaves: How many there are.
      num_parameters: Logical entries.
      size_bytes: Bytes of all their parts.
      computes: What multiplying by them does, in words.
    """

    form: str
    dtype: str
    num_leaves: int
    num_parameters: int
    size_bytes: int
    computes: str

    @property
    def bits_per_weight(self) -> float:
        """Bits that one entry takes, scales, masks and the like included."""
        return 8.0 * self.size_bytes / self.num_parameters if self.num_parameters else 0.0


@dataclasses.dataclass(frozen=True)
class TreeSize:
    """What the parameters of a model amount to.

    Attributes:
      num_parameters: Logical entries.
      num_nonzero: Entries that are not zero.
      size_bytes: Bytes of all stored parts.
      storage: Leaves by form, the form with most parameters first.
    """

    num_parameters: int
    num_nonzero: int
    size_bytes: int
    storage: tuple[Storage, ...]


def describe_products(form: str, platform: str, compute_type: str) -> str:
    """Returns in words what multiplying by leaves of a form does on a backend.

    Args:
      form: A kind of ``LEAF_KINDS``, or ``dense``.
      platform: ``cpu``, ``gpu`` or ``tpu``.
      compute_type: Type that the model's products are computed in.
    """
    if form == DENSE:
        return f"{compute_type} products"
    kind = LEAF_KINDS[form]
    low = kind.product_dtype(platform)
    if low:
        return f"{low} products"
    saved = "stored only: written out for each product" if kind.is_quantized else "stored only: multiplied dense"
    return f"{saved}, {compute_type} products"


def measure_tree(params: Mapping[str, Any], platform: str, compute_type: str = "float32") -> TreeSize:
    """Counts the parameters, non-zeros and bytes of a tree; one leaf at a time is written out for it.

    Args:
      params: Parameter tree.
      platform: As for ``describe_products``.
      compute_type: The same.

    Returns:
      Counts, and the leaves by form.
    """
    groups: dict[tuple[str, str], list[Any]] = {}
    nonzero = 0
    for leaf in flatten_names(params).values():
        form = getattr(leaf, "kind", DENSE)
        first = leaf if form == DENSE else next(iter(leaf.stored_parts().values()))
        groups.setdefault((form, str(np.dtype(first.dtype))), []).append(leaf)
        nonzero += int(np.count_nonzero(np.asarray(materialize(leaf))))
    storage = [
        Storage(
            form=form,
            dtype=dtype,
            num_leaves=len(leaves),
            num_parameters=sum(math.prod(leaf.shape) for leaf in leaves),
            size_bytes=sum(leaf_bytes(leaf) for leaf in leaves),
            computes=describe_products(form, platform, compute_type),
        )
        for (form, dtype), leaves in groups.items()
    ]
    storage.sort(key=lambda entry: -entry.num_parameters)
    return TreeSize(
        num_parameters=sum(entry.num_parameters for entry in storage),
        num_nonzero=nonzero,
        size_bytes=sum(entry.size_bytes for entry in storage),
        storage=tuple(storage),
    )


def weights_bytes(folder: pathlib.Path) -> int:
    """Returns the size of the files of weights in a model folder, of the format that is read.

    Args:
      folder: A model folder.
    """
    files = list(folder.rglob("*.safetensors"))
    files = files or [path for pattern in _OTHER_WEIGHTS for path in folder.rglob(pattern)]
    return sum(path.stat().st_size for path in files)
