"""Typed leaves: arrays of a parameter tree that are stored in another form than they stand for.

A typed leaf is a registered pytree dataclass with the *logical* shape and dtype of the matrix it stands for. Only
``core.contraction`` multiplies by it. The fields carry no shape annotation on purpose: ``jax.tree.map`` puts partition
specs, shape structs, ``None`` and stacked arrays in their place; ``validate`` checks real arrays.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.errors import ShapeError

Params = dict[str, Any]
"""A nested dictionary with string keys whose leaves are arrays or typed arrays."""

LEAF_KINDS: dict[str, type["TypedArray"]] = {}
"""All typed leaves by the name of their kind, for manifests and exports."""


class TypedArray:
    """Base of typed leaves: the logical view of a stored array.

    Attributes:
      kind: Name of the storage form in manifests and reports; empty for leaves that are never stored.
      parts: Names of the stored arrays, the fields of the dataclass in order.
      computes_in: Type of both operands where ``contract`` multiplies by such a leaf in low precision, for example ``int8``; empty where
        it writes the leaf out and multiplies in the model's compute type, so that only storage is saved. Every kind has to say it.
      is_quantized: Whether it stands for rounded numbers, which are not trained and not rounded again.
    """

    kind: ClassVar[str] = ""
    parts: ClassVar[tuple[str, ...]] = ()
    computes_in: ClassVar[str] = ""
    is_quantized: ClassVar[bool] = False

    def __init_subclass__(
        cls, *, kind: str, parts: tuple[str, ...], computes_in: str, is_quantized: bool = False
    ) -> None:
        cls.kind = kind
        cls.parts = parts
        cls.computes_in = computes_in
        cls.is_quantized = is_quantized
        if kind:
            LEAF_KINDS[kind] = cls

    @classmethod
    def product_dtype(cls, platform: str) -> str:
        """Returns ``computes_in`` on one backend; kinds whose products depend on the backend override this.

        Args:
          platform: ``cpu``, ``gpu`` or ``tpu``.
        """
        del platform
        return cls.computes_in

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, that of the first stored part."""
        return tuple(getattr(self, self.parts[0]).shape)

    @property
    def dtype(self) -> np.dtype:
        """Logical dtype, what ``materialize`` returns."""
        return np.dtype(np.float32)

    @property
    def ndim(self) -> int:
        """Number of logical axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of logical entries."""
        return math.prod(self.shape)

    def stored_parts(self) -> dict[str, Any]:
        """Returns the stored arrays by part name."""
        return {part: getattr(self, part) for part in self.parts}

    def logical_axes(self, part: str) -> tuple[int | None, ...]:
        """Returns which logical axis each axis of a part runs along; None for an axis that is not of the matrix.

        Args:
          part: Name of the part.
        """
        return tuple(range(len(getattr(self, part).shape)))

    @property
    def size_bytes(self) -> int:
        """Bytes that the stored parts occupy."""
        return sum(array_bytes(part) for part in self.stored_parts().values())

    def materialize(self) -> jax.Array:
        """Returns the dense array that the leaf stands for.

        Raises:
          TypeError: The class does not override this.
        """
        raise TypeError(f"{type(self).__name__} does not say how it materializes.")

    def validate(self, name: str = "leaf") -> None:
        """Checks that the stored parts belong together.

        Args:
          name: Name of the leaf, for the message.

        Raises:
          ShapeError: Two parts have shapes or dtypes that do not fit.
        """


def array_bytes(array: Any) -> int:
    """Returns the bytes that an array occupies in memory, sub-byte types counted packed."""
    dtype = jnp.dtype(array.dtype)
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else dtype.itemsize * 8
    return -(-math.prod(array.shape) * bits // 8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedArray(TypedArray, kind="quantized", parts=("codes", "scale"), computes_in="int8", is_quantized=True):
    """A matrix ``[..., in, out]`` as symmetric integer codes with one scale per output channel.

    ``dense = codes * scale``; the scale has the shape of the codes with the input axis of size 1.

    Attributes:
      codes: Signed integers, ``[..., in, out]``.
      scale: float32, ``[..., 1, out]`` for kernels, ``[rows, 1]`` for embedding tables.
    """

    codes: Any
    scale: Any

    def materialize(self) -> jax.Array:
        """Returns ``codes * scale`` in float32."""
        return jnp.asarray(self.codes).astype(jnp.float32) * self.scale

    def validate(self, name: str = "leaf") -> None:
        """Checks that the scale broadcasts to the codes and that the codes are signed integers."""
        codes, scale = self.codes, self.scale
        if not jnp.issubdtype(codes.dtype, jnp.signedinteger):
            raise ShapeError(f"{name}@codes has dtype {codes.dtype}, but codes are signed integers.")
        fits = len(codes.shape) == len(scale.shape) and all(
            s in (1, c) for c, s in zip(codes.shape, scale.shape, strict=True)
        )
        if not fits:
            raise ShapeError(f"{name}@scale has shape {scale.shape}, which does not broadcast to codes {codes.shape}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupedArray(TypedArray, kind="grouped", parts=("packed", "scale"), computes_in="", is_quantized=True):
    """A matrix as 4-bit codes, two to a byte, with one scale for every group of neighbours along the contracted axis.

    ``dense = codes * scale of the group``, codes in [-8, 7]. Groups have at least 4 entries, so that the shapes of the parts tell which axis
    is contracted: it is the one whose sizes differ.

    Attributes:
      packed: int8, ``[..., in / 2, out]`` for kernels, ``[rows, embed / 2]`` for embedding tables; the entry with the even number is in the
        lower half of a byte.
      scale: float32, ``[..., groups, out]`` for kernels, ``[rows, groups]`` for tables.
    """

    packed: Any
    scale: Any

    @property
    def axis(self) -> int:
        """The contracted axis: -2 for kernels, -1 for tables."""
        return -1 if self.packed.shape[-1] != self.scale.shape[-1] else -2

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape: twice as many entries along the contracted axis as bytes."""
        shape = list(self.packed.shape)
        shape[self.axis] *= 2
        return tuple(shape)

    @property
    def group_size(self) -> int:
        """Entries of a group."""
        return self.shape[self.axis] // self.scale.shape[self.axis]

    def codes(self) -> jax.Array:
        """Returns the codes one to a byte, int8 of the logical shape."""
        packed, axis = jnp.asarray(self.packed), self.axis
        low = jnp.right_shift(jnp.left_shift(packed, 4), 4)  # of signed numbers, so that the sign comes along
        both = jnp.stack([low, jnp.right_shift(packed, 4)], axis=len(packed.shape) + axis + 1)
        return both.reshape(self.shape)

    def materialize(self) -> jax.Array:
        """Returns ``codes * scale`` in float32."""
        shape, axis = self.shape, self.ndim + self.axis
        grouped = (*shape[:axis], self.scale.shape[axis], self.group_size, *shape[axis + 1 :])
        scaled = self.codes().reshape(grouped).astype(jnp.float32) * jnp.expand_dims(self.scale, axis + 1)
        return scaled.reshape(shape)

    def validate(self, name: str = "leaf") -> None:
        """Checks that the groups fit the bytes, and the type of the bytes."""
        packed, scale = self.packed, self.scale
        if jnp.dtype(packed.dtype) != jnp.dtype(jnp.int8):
            raise ShapeError(f"{name}@packed has dtype {packed.dtype}, but two codes lie in an int8.")
        differ = [i for i, (p, s) in enumerate(zip(packed.shape, scale.shape, strict=False)) if p != s]
        fits = len(packed.shape) == len(scale.shape) >= 2 and differ == [len(packed.shape) + self.axis]
        if not fits or 2 * packed.shape[self.axis] % scale.shape[self.axis] or self.group_size < 4:
            raise ShapeError(
                f"{name}@scale has shape {tuple(scale.shape)}, which are no groups of at least 4 codes of {name}@packed "
                f"{tuple(packed.shape)}."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseArray(TypedArray, kind="sparse", parts=("values", "mask"), computes_in=""):
    """A matrix with a fixed pattern of zeros that survives further training.

    ``dense = values * mask``. Only ``values`` is trained; where the mask is 0 its gradient is 0 too.

    Attributes:
      values: The weights, ``[..., in, out]``.
      mask: bool of the same shape; False where the weight is pruned.
    """

    values: Any
    mask: Any

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the values."""
        return np.dtype(self.values.dtype)

    def materialize(self) -> jax.Array:
        """Returns the values with the pruned entries set to zero."""
        values = jnp.asarray(self.values)
        return jnp.where(self.mask, values, jnp.zeros((), values.dtype))

    def validate(self, name: str = "leaf") -> None:
        """Checks that values and mask have one shape and that the mask is boolean."""
        if tuple(self.values.shape) != tuple(self.mask.shape):
            raise ShapeError(f"{name}@mask has shape {self.mask.shape}, but {name}@values has {self.values.shape}.")
        if jnp.dtype(self.mask.dtype) != jnp.dtype(bool):
            raise ShapeError(f"{name}@mask has dtype {self.mask.dtype}, but a mask is boolean.")


Leaf = jax.Array | np.ndarray | TypedArray | jax.ShapeDtypeStruct
"""What a parameter tree holds."""


def is_typed(leaf: Any) -> bool:
    """Returns whether a leaf is a typed array."""
    return isinstance(leaf, TypedArray)


def is_quantized(leaf: Any) -> bool:
    """Returns whether a leaf stands for rounded numbers."""
    return isinstance(leaf, TypedArray) and leaf.is_quantized


def materialize(leaf: Any) -> Any:
    """Returns the dense array that a leaf stands for; plain arrays come back as they are."""
    return leaf.materialize() if isinstance(leaf, TypedArray) else leaf


def build_typed(kind: str, parts: Mapping[str, Any]) -> TypedArray:
    """Builds a typed leaf from its kind and parts, the inverse of ``stored_parts``.

    Args:
      kind: One of ``LEAF_KINDS``.
      parts: Stored array per part name.

    Returns:
      The typed leaf.

    Raises:
      ShapeError: The kind is unknown or the parts are not its parts.
    """
    if kind not in LEAF_KINDS:
        raise ShapeError(f"Unknown kind of typed leaf '{kind}'; known are {sorted(LEAF_KINDS)}.")
    expected = LEAF_KINDS[kind].parts
    if set(parts) != set(expected):
        raise ShapeError(f"A {kind} leaf has the parts {expected}, not {tuple(parts)}.")
    return LEAF_KINDS[kind](**parts)
