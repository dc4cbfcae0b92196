"""An ONNX graph under construction: values, initializers, nodes that are made once, and symbolic sizes."""

import ast
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxbert.core.arrays import materialize
from flaxbert.core.axes import Size
from flaxbert.errors import ConfigError

OPSET = 21
"""Version of ONNX's operators: LayerNormalization came with 17, Gelu with 20, 4-bit codes in blocks with 21."""

TO_THE_END = int(np.iinfo(np.int64).max)
"""End of a slice that takes everything."""

_SMALL = 1024
"""Constants of at most so many entries are stored once, however often they are written."""

_TYPES: dict[str, int] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "accumulator": 6,  # int32, which sums of products of bytes are
    "int32": 7,  # all whole numbers are int64, as in the inputs of stock exports, so that nothing is cast
    "int64": 7,
    "bool": 9,
    "int4": 22,
}
"""ONNX's numbers of types (TensorProto.DataType); float32 stands as FLOAT there, int64 as INT64."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of the graph.

    Attributes:
      shape: Sizes, numbers or symbolic. The array may have fewer axes, or axes of size 1, where what it stands for repeats: it is
        broadcast as numpy does.
      dtype: Name of its type.
      name: Name in the graph; empty for constants and leaves until they are used.
      array: The entries of a constant.
      leaf: Name of the parameter leaf that it is.
    """

    shape: tuple[Any, ...]
    dtype: str
    name: str = ""
    array: np.ndarray | None = None
    leaf: str = ""


def onnx_type(dtype: str) -> int:
    """Returns ONNX's number of a type.

    Args:
      dtype: Name of the type.

    Raises:
      ConfigError: The type is none that graphs hold here.
    """
    if dtype not in _TYPES:
        raise ConfigError(f"The network computes in {dtype}, but graphs hold {', '.join(_TYPES)}; export float32.")
    return _TYPES[dtype]


def is_number(size: Any) -> bool:
    """Returns whether a size is known."""
    return isinstance(size, (int, np.integer))


def broadcast(*shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the shape that arrays of these shapes broadcast to.

    Args:
      *shapes: Shapes, aligned at their last axes; sizes that differ are 1.
    """
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((size for size in sizes if not _is_one(size)), 1) for sizes in zip(*padded, strict=True))


def _is_one(size: Any) -> bool:
    return is_number(size) and size == 1


def same_shape(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Returns whether two shapes are written alike.

    Args:
      first: A shape.
      second: Another.
    """
    return len(first) == len(second) and all(str(a) == str(b) for a, b in zip(first, second, strict=True))


def describe(value: Value) -> Any:
    """Returns name, type and sizes of a value as files say them.

    Args:
      value: A value with a name.
    """
    from onnx import helper

    sizes = [int(size) if is_number(size) else _DIMENSIONS.get(str(size), str(size)) for size in value.shape]
    return helper.make_tensor_value_info(value.name, onnx_type(value.dtype), sizes)


class Graph:
    """Nodes and initializers in the order in which they are made.

    Args:
      leaves: Parameter leaves by name, typed or not.
    """

    def __init__(self, leaves: Mapping[str, Any]) -> None:
        self.leaves = leaves
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.shapes: dict[str, Value] = {}
        self._made: dict[Any, tuple[Value, ...]] = {}
        self._constants: dict[Any, str] = {}
        self._sources: dict[str, tuple[Value, int]] = {}
        self._counts: dict[str, int] = {}

    def add_input(self, name: str, shape: tuple[Any, ...]) -> Value:
        """Adds an int64 input.

        Args:
          name: Its name.
          shape: Sizes; symbolic ones are named after themselves.

        Returns:
          Its value.
        """
        value = Value(shape, "int32", name)
        self.inputs.append(describe(value))
        for axis, size in enumerate(shape):
            if not is_number(size):
                self._sources.setdefault(str(size), (value, axis))
        return value

    def add_output(self, value: Value, name: str) -> None:
        """Names a value as output of the graph.

        Args:
          value: The value.
          name: Name of the output.
        """
        self.outputs.append(describe(self.emit("Identity", [value], value.shape, value.dtype, output=name)))

    def unique(self, stem: str) -> str:
        """Returns a name that is not taken.

        Args:
          stem: What it begins with.
        """
        number = self._counts.get(stem, 0)
        self._counts[stem] = number + 1
        return f"{stem}_{number}" if number else stem

    def constant(self, array: Any, dtype: str = "") -> Value:
        """Returns a constant.

        Args:
          array: Its entries.
          dtype: Its type; empty: that of the entries.
        """
        array = np.asarray(array)
        return Value(array.shape, dtype or str(array.dtype), array=array)

    def integers(self, *numbers: Size) -> Value:
        """Returns a constant row of whole numbers, as shapes, axes and bounds are written.

        Args:
          *numbers: The numbers.
        """
        return self.constant(np.asarray(numbers, np.int64))

    def add_packed(self, name: str, codes: np.ndarray) -> None:
        """Stores 4-bit codes, two to a byte, the first in its lower half.

        Args:
          name: Their name.
          codes: int8 in [-8, 7].
        """
        from onnx import TensorProto, helper

        flat = codes.reshape(-1).astype(np.uint8) & 0xF
        flat = np.pad(flat, (0, flat.size % 2))
        packed = (flat[0::2] | (flat[1::2] << 4)).tobytes()
        self.initializers[name] = helper.make_tensor(name, TensorProto.INT4, codes.shape, packed, raw=True)

    def initializer(self, name: str, array: np.ndarray) -> str:
        """Stores an array under a name, once.

        Args:
          name: Its name.
          array: Its entries.

        Returns:
          The name.
        """
        if name not in self.initializers:
            from onnx import numpy_helper

            array = np.ascontiguousarray(array) if array.ndim else array
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def reference(self, value: Value) -> str:
        """Returns the name by which nodes read a value; constants and leaves are stored at their first use.

        Args:
          value: The value.
        """
        if value.name:
            return value.name
        if value.leaf:
            if value.leaf in self.initializers:
                return value.leaf
            return self.initializer(value.leaf, np.asarray(materialize(self.leaves[value.leaf])))
        array = np.asarray(value.array)
        if onnx_type(value.dtype) == _TYPES["int64"]:
            array = array.astype(np.int64)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= _SMALL else id(value.array)
        if key not in self._constants:
            self._constants[key] = self.initializer(self.unique("constant"), array)
            self._made[("kept", self._constants[key])] = (value,)  # an id names an array as long as the array lives
        return self._constants[key]

    def dense(self, value: Value) -> np.ndarray | None:
        """Returns the entries of a constant or leaf; None for what is computed.

        Args:
          value: The value.
        """
        if value.leaf:
            return np.asarray(materialize(self.leaves[value.leaf]))
        return value.array

    def emit(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        shape: tuple[Any, ...],
        dtype: str,
        *,
        label: str = "",
        output: str = "",
        **attributes: Any,
    ) -> Value:
        """Makes a node with one result, or returns that of an equal node.

        Args:
          operator: Name of the operator.
          inputs: What it reads; None for what is left out.
          shape: Shape of the result.
          dtype: Type of the result.
          label: What the node is named after; empty: its operator.
          output: Name of the result; empty: as the node.
          **attributes: Attributes of the operator.

        Returns:
          The result.
        """
        return self.emit_many(operator, inputs, [(shape, dtype)], label=label, output=output, **attributes)[0]

    def emit_many(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        results: Sequence[tuple[tuple[Any, ...], str]],
        *,
        label: str = "",
        output: str = "",
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """Makes a node with several results, or returns those of an equal node.

        Args:
          operator: As for ``emit``.
          inputs: As for ``emit``.
          results: Shape and type of each result.
          label: As for ``emit``.
          output: As for ``emit``.
          **attributes: As for ``emit``.

        Returns:
          The results.
        """
        from onnx import helper

        names = ["" if value is None else self.reference(value) for value in inputs]
        key = (operator, tuple(names), repr(sorted(attributes.items())))
        if key in self._made and not output:
            return self._made[key]
        stem = self.unique(f"{label}/{operator}" if label else operator)
        outputs = [output] if output else [f"{stem}:{place}" if place else stem for place in range(len(results))]
        self.nodes.append(helper.make_node(operator, names, outputs, name=stem, **attributes))
        values = tuple(Value(tuple(shape), dtype, name) for (shape, dtype), name in zip(results, outputs, strict=True))
        self._made[key] = values
        self.shapes.update({value.name: value for value in values})
        return values

    def size(self, size: Any) -> Value:
        """Returns a size as a whole number of the graph.

        Args:
          size: A number, or an expression of the sizes of the inputs.
        """
        if is_number(size):
            return self.constant(np.asarray(size, np.int64))
        return self._expression(ast.parse(str(size).replace("^", "**"), mode="eval").body)

    def _expression(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Constant):
            return self.constant(np.asarray(node.value, np.int64))
        if isinstance(node, ast.Name):
            source, axis = self._sources[node.id]
            shape = self.emit("Shape", [source], (len(source.shape),), "int64")
            return self.emit("Gather", [shape, self.constant(np.asarray(axis, np.int64))], (), "int64", axis=0)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self.emit("Neg", [self._expression(node.operand)], (), "int64")
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            parts = [self._expression(part) for part in (node.left, node.right)]
            return self.emit(_OPERATORS[type(node.op)], parts, (), "int64")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            parts = [self._expression(part) for part in node.args]
            return self.emit(_CALLS[node.func.id], parts, (), "int64")  # of sizes, which are not negative
        raise ConfigError(f"A size of the network is '{ast.unparse(node)}', which the export can not write as a graph.")

    def shape_of(self, sizes: Sequence[Any]) -> Value:
        """Returns sizes as a row of whole numbers.

        Args:
          sizes: Numbers and symbolic sizes.
        """
        if all(is_number(size) for size in sizes):
            return self.integers(*sizes)
        zero = self.integers(0)
        parts = [
            self.integers(size) if is_number(size) else self.emit("Unsqueeze", [self.size(size), zero], (1,), "int64")
            for size in sizes
        ]
        return parts[0] if len(parts) == 1 else self.emit("Concat", parts, (len(parts),), "int64", axis=0)

    def reshape(self, value: Value, shape: Sequence[Any]) -> Value:
        """Returns a value in another shape; sizes that stay are copied, one may be inferred, others are computed.

        Args:
          value: The value, with all its axes.
          shape: The new shape.
        """
        shape = tuple(shape)
        if same_shape(value.shape, shape):
            return value
        array = self.dense(value) if value.array is not None or value.leaf else None
        if array is not None and all(is_number(size) for size in shape):
            return self.constant(array.reshape(shape), value.dtype)
        target = []
        for axis, size in enumerate(shape):
            stays = axis < len(value.shape) and str(value.shape[axis]) == str(size)
            target.append(size if is_number(size) else 0 if stays else None)
        if target.count(None) == 1:
            target[target.index(None)] = -1
        sizes = self.shape_of(shape) if None in target else self.integers(*target)
        return self.emit("Reshape", [value, sizes], shape, value.dtype)

    def expand(self, value: Value, shape: Sequence[Any]) -> Value:
        """Returns a value with all the axes and sizes of what it stands for.

        Args:
          value: The value.
          shape: What it stands for.
        """
        shape = tuple(shape)
        if same_shape(value.shape, shape):
            return value
        if value.array is not None and all(is_number(size) for size in shape):
            return self.constant(np.broadcast_to(value.array, shape), value.dtype)
        if math.prod(size for size in value.shape if is_number(size)) == 1 and all(map(_is_one, shape)):
            return self.reshape(value, shape)
        return self.emit("Expand", [value, self.shape_of(shape)], shape, value.dtype)


_DIMENSIONS = {"b": "batch_size", "c": "num_choices", "s": "sequence_length"}
"""What stock exports call the sizes of the inputs."""

_OPERATORS: dict[type, str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
_CALLS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}
