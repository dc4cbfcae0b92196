"""Typed leaves beyond int8 codes with dynamic activations: static ranges, few bits, channel scales, float8, learned steps, and a leaf that listens."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.config.quantization import SMALLEST_PACKED_GROUP
from flaxbert.core.arrays import GroupedArray, TypedArray
from flaxbert.errors import ShapeError

FLOAT8 = jnp.float8_e4m3fn
"""Type of float8 weights: four bits of exponent, three of mantissa, no infinity; the largest is 448."""

FLOAT8_MAXIMUM = 448.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaticQuantizedArray(
    TypedArray,
    kind="static",
    parts=("codes", "scale", "input_scale", "input_zero", "shift"),
    computes_in="int8",
    is_quantized=True,
):
    """A kernel ``[..., in, out]`` as int8 codes whose inputs are rounded with scales that were measured beforehand.

    An input channel ``j`` becomes ``round(x[j] / input_scale[j]) + input_zero``; the codes stand for ``weights * input_scale``, so that the product of codes times
    ``scale`` plus ``shift`` is that of inputs and weights. A scale per channel (SmoothQuant; Xiao et al., 2023) costs nothing more than one for all.

    Attributes:
      codes: int8, ``[..., in, out]``.
      scale: float32, ``[..., 1, out]``.
      input_scale: float32, ``[..., in, 1]``.
      input_zero: float32 whole number, ``[..., 1, 1]``: what an input of 0 becomes.
      shift: float32, ``[..., 1, out]``: ``-input_zero * scale * sum of a column's codes``.
    """

    codes: Any
    scale: Any
    input_scale: Any
    input_zero: Any
    shift: Any

    def materialize(self) -> jax.Array:
        """Returns ``codes * scale / input_scale`` in float32."""
        return jnp.asarray(self.codes).astype(jnp.float32) * self.scale / self.input_scale

    def validate(self, name: str = "leaf") -> None:
        """Checks that all parts belong to one kernel."""
        if jnp.dtype(self.codes.dtype) != jnp.dtype(jnp.int8):
            raise ShapeError(f"{name}@codes has dtype {self.codes.dtype}, but static codes are int8.")
        *leading, inputs, outputs = self.codes.shape
        expected = {
            "scale": (1, outputs),
            "input_scale": (inputs, 1),
            "input_zero": (1, 1),
            "shift": (1, outputs),
        }
        for part, shape in expected.items():
            found = tuple(getattr(self, part).shape)
            if found != (*leading, *shape):
                raise ShapeError(
                    f"{name}@{part} has shape {found}, but codes {tuple(self.codes.shape)} need {(*leading, *shape)}."
                )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedArray(TypedArray, kind="packed", parts=("planes", "scale", "offset"), computes_in="", is_quantized=True):
    """A matrix as codes of 1, 2 or 3 bits, one plane of bits after the other, with scale and offset for every group along the contracted axis.

    ``dense = codes * scale + offset`` of the group, codes from 0 to ``2**bits - 1``. Binary weights are codes 0 and 1 with the offset at minus half the
    scale (Rastegari et al., 2016), ternary ones codes 0, 1 and 2 with the offset at minus the scale (Li and Liu, 2016).

    Attributes:
      planes: uint8, ``[..., bits, in / 8, out]`` for kernels, ``[rows, bits, embed / 8]`` for tables; entry ``8 i + k`` is bit ``k`` of byte ``i``.
      scale: bfloat16, ``[..., groups, out]`` for kernels, ``[rows, groups]`` for tables; groups of at least 16.
      offset: bfloat16 of the same shape.
    """

    planes: Any
    scale: Any
    offset: Any

    @property
    def axis(self) -> int:
        """The contracted axis: -2 for kernels, -1 for tables."""
        return -2 if self.planes.shape[-1] == self.scale.shape[-1] else -1

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.planes.shape[self.axis - 1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        shape = list(self.planes.shape)
        del shape[self.axis - 1]
        shape[self.axis] *= 8
        return tuple(shape)

    @property
    def group_size(self) -> int:
        """Entries of a group."""
        return self.shape[self.axis] // self.scale.shape[self.axis]

    def logical_axes(self, part: str) -> tuple[int | None, ...]:
        """Returns the axes as for any leaf, with the planes' own axis between them."""
        axes: list[int | None] = list(range(len(self.scale.shape)))
        if part == "planes":
            axes.insert(len(axes) + self.axis, None)
        return tuple(axes)

    def codes(self) -> jax.Array:
        """Returns the codes one to a byte, uint8 of the logical shape."""
        planes, axis = jnp.asarray(self.planes), self.axis
        place = planes.ndim + axis
        positions = jnp.arange(8, dtype=jnp.uint8).reshape(8, *([1] * (-axis - 1)))
        ones = jnp.bitwise_and(jnp.right_shift(jnp.expand_dims(planes, place + 1), positions), jnp.uint8(1))
        ones = ones.reshape(*planes.shape[:place], planes.shape[place] * 8, *planes.shape[place + 1 :])
        codes = jnp.zeros((), jnp.uint8)
        for plane in range(self.bits):
            one = jax.lax.index_in_dim(ones, plane, place - 1, keepdims=False)
            codes = jnp.bitwise_or(codes, jnp.left_shift(one, jnp.uint8(plane)))
        return codes

    def materialize(self) -> jax.Array:
        """Returns ``codes * scale + offset`` in float32."""
        shape, place = self.shape, self.ndim + self.axis
        grouped = (*shape[:place], self.scale.shape[place], self.group_size, *shape[place + 1 :])
        scale, offset = (
            jnp.expand_dims(jnp.asarray(part).astype(jnp.float32), place + 1) for part in (self.scale, self.offset)
        )
        return (self.codes().reshape(grouped).astype(jnp.float32) * scale + offset).reshape(shape)

    def validate(self, name: str = "leaf") -> None:
        """Checks that planes, scales and offsets belong together."""
        if jnp.dtype(self.planes.dtype) != jnp.dtype(jnp.uint8):
            raise ShapeError(f"{name}@planes has dtype {self.planes.dtype}, but planes of bits are uint8.")
        planes, scale = tuple(self.planes.shape), tuple(self.scale.shape)
        fits = len(planes) == len(scale) + 1 and len(scale) >= 2 and scale == tuple(self.offset.shape)
        if fits:
            own = [size for i, size in enumerate(self.shape) if i != self.ndim + self.axis]
            others = [size for i, size in enumerate(scale) if i != self.ndim + self.axis]
            length, groups = self.shape[self.axis], scale[self.axis]
            fits = own == others and length % groups == 0 and length // groups >= SMALLEST_PACKED_GROUP
        if not fits:
            raise ShapeError(
                f"{name}@planes {planes} and {name}@scale {scale} do not belong together: a kernel has planes [bits, in / 8, out] "
                f"and scales [groups, out], with groups of at least {SMALLEST_PACKED_GROUP}."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChannelGroupedArray(
    GroupedArray, kind="channel_grouped", parts=("packed", "scale", "channel"), computes_in="", is_quantized=True
):
    """A ``GroupedArray`` whose input channels were scaled before rounding (AWQ; Lin et al., 2024): ``dense = codes * scale * channel``.

    Attributes:
      packed: As for ``GroupedArray``; kernels only.
      scale: The same.
      channel: float32, ``[..., in, 1]``: by what each input channel was divided.
    """

    channel: Any

    def materialize(self) -> jax.Array:
        """Returns ``codes * scale * channel`` in float32."""
        return super().materialize() * self.channel

    def validate(self, name: str = "leaf") -> None:
        """Checks the groups, and that there is one number a channel."""
        super().validate(name)
        expected = (*self.shape[:-1], 1)
        if self.axis != -2 or tuple(self.channel.shape) != expected:
            raise ShapeError(f"{name}@channel has shape {tuple(self.channel.shape)}, but a kernel needs {expected}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Float8Array(TypedArray, kind="float8", parts=("values", "scale"), computes_in="float8_e4m3fn", is_quantized=True):
    """A matrix in float8 with one scale per output channel: ``dense = values * scale`` (Micikevicius et al., 2022).

    NVIDIA GPUs multiply it by tokens that are rounded to float8 too; other backends write it out.

    Attributes:
      values: float8_e4m3fn, ``[..., in, out]``.
      scale: float32, ``[..., 1, out]`` for kernels, ``[rows, 1]`` for tables.
    """

    values: Any
    scale: Any

    @classmethod
    def product_dtype(cls, platform: str) -> str:
        """Returns float8 on GPUs; other backends have no such products."""
        return cls.computes_in if platform in ("gpu", "cuda") else ""

    def materialize(self) -> jax.Array:
        """Returns ``values * scale`` in float32."""
        return jnp.asarray(self.values).astype(jnp.float32) * self.scale

    def validate(self, name: str = "leaf") -> None:
        """Checks the type of the values, and that the scale broadcasts to them."""
        values, scale = self.values, self.scale
        if jnp.dtype(values.dtype) != jnp.dtype(FLOAT8):
            raise ShapeError(f"{name}@values has dtype {values.dtype}, but float8 weights are {jnp.dtype(FLOAT8)}.")
        fits = len(values.shape) == len(scale.shape) and all(
            s in (1, v) for v, s in zip(values.shape, scale.shape, strict=True)
        )
        if not fits:
            raise ShapeError(
                f"{name}@scale has shape {scale.shape}, which does not broadcast to values {values.shape}."
            )


Listener = Callable[[str, jax.Array], None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ObservedArray(TypedArray, kind="", parts=("values",), computes_in=""):
    """A leaf that tells what it is multiplied by, for calibration; never stored.

    Attributes:
      values: The leaf itself, an array or a typed leaf.
      name: Its name.
      listener: Called with the name and the inputs of every product, while the program is traced.
    """

    values: Any
    name: str = dataclasses.field(metadata={"static": True}, default="")
    listener: Listener | None = dataclasses.field(metadata={"static": True}, default=None)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the leaf."""
        return np.dtype(self.values.dtype)

    def materialize(self) -> jax.Array:
        """Returns the leaf as a dense array."""
        return self.values.materialize() if isinstance(self.values, TypedArray) else self.values

    def tell(self, inputs: jax.Array) -> None:
        """Tells the listener what the leaf is multiplied by.

        Args:
          inputs: ``[..., in]``.
        """
        if self.listener is not None:
            self.listener(self.name, inputs)
