"""What one instruction of a compiled program works and moves: matrix FLOPs, elementwise operations, bytes of main memory."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable

from flaxbert.core.hlo import ArrayShape, Computation, Instruction, Module
from flaxbert.planning.chips import Chip

FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "add-dependency",
        "opt-barrier",
        "optimization-barrier",
        "domain",
    }
)
"""Opcodes that neither compute nor move anything."""

MOVES = frozenset(
    {"copy", "reshape", "transpose", "broadcast", "slice", "concatenate", "pad", "reverse", "iota", "gather", "scatter"}
    | {"dynamic-slice", "dynamic-update-slice", "bitcast-convert", "all-gather", "all-reduce", "reduce-scatter"}
    | {"all-to-all", "collective-permute"}
)
"""Opcodes that move elements and compute nothing."""

TRANSCENDENTAL = frozenset(
    {
        "exponential",
        "exponential-minus-one",
        "log",
        "log-plus-one",
        "tanh",
        "logistic",
        "erf",
        "power",
        "sine",
        "cosine",
    }
    | {"divide", "sqrt", "rsqrt", "cbrt", "remainder", "atan2", "tan"}
)
"""Elementwise opcodes that take several operations."""

TRANSCENDENTAL_OPERATIONS = 8
"""Operations that one of these counts as; hardware takes between 4 and 16."""

_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_PRECISION = re.compile(r"\boperand_precision=\{([\w,]+)\}")
_PASSES = {"default": 1, "high": 3, "highest": 6}


@dataclasses.dataclass(frozen=True)
class Product:
    """One matrix product: ``batch`` products of ``[rows, inner] x [inner, columns]``.

    Attributes:
      batch: Number of products.
      rows: Rows of the left operand.
      inner: Size of what is contracted.
      columns: Columns of the right operand.
      dtype: Type of the operands.
      passes: Passes over the matrix unit that the asked precision takes.
    """

    batch: float
    rows: float
    inner: float
    columns: float
    dtype: str
    passes: int = 1

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.batch * self.rows * self.inner * self.columns

    def filled(self, tile: int) -> float:
        """Returns the FLOPs with the contraction and the smaller of the two other sides filled up to the matrix unit.

        Args:
          tile: Side of the matrix unit.
        """
        small, large = sorted((self.rows, self.columns))
        return 2.0 * self.batch * large * _up(small, tile) * _up(self.inner, tile)

    def seconds(self, chip: Chip) -> float:
        """Returns the time that the product takes at the peak of a chip.

        Args:
          chip: The chip.
        """
        work = self.filled(chip.matrix_tile) * (self.passes if chip.platform == "tpu" else 1)
        return work / chip.matmul_rate(self.dtype, self.batch > 1)


def _up(size: float, tile: int) -> float:
    return math.ceil(size / tile) * tile


@dataclasses.dataclass(frozen=True)
class Work:
    """What one instruction does on one device.

    Attributes:
      products: Its matrix products.
      operations: Elementwise operations.
      moved_bytes: Bytes read from and written to main memory.
    """

    products: tuple[Product, ...] = ()
    operations: float = 0.0
    moved_bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.products + other.products, self.operations + other.operations, self.moved_bytes + other.moved_bytes
        )

    @property
    def flops(self) -> float:
        """FLOPs of its matrix products."""
        return sum(product.flops for product in self.products)


def _passes(text: str) -> int:
    found = _PRECISION.search(text)
    return max((_PASSES.get(word, 1) for word in found[1].split(",")), default=1) if found else 1


def _narrowest(arrays: Iterable[ArrayShape]) -> str:
    return min(arrays, key=lambda array: -(-array.size_bytes // max(array.size, 1))).dtype


def dot_product(dot: Instruction, left: ArrayShape, right: ArrayShape) -> Product:
    """Returns the product of a ``dot``.

    Args:
      dot: The instruction.
      left: Its left operand.
      right: Its right operand.
    """
    inner = math.prod(left.dimensions[axis] for axis in dot.integers("lhs_contracting_dims"))
    batch = math.prod(left.dimensions[axis] for axis in dot.integers("lhs_batch_dims"))
    return Product(
        batch=batch,
        rows=left.size / max(inner * batch, 1),
        inner=inner,
        columns=right.size / max(inner * batch, 1),
        dtype=_narrowest((left, right)),
        passes=_passes(dot.text),
    )


@functools.lru_cache(maxsize=4096)
def _touching(size: int, limit: int, outputs: int, stride: int, low: int, base: int, dilation: int) -> int:
    """Counts the pairs of kernel place and output place that meet an element of the input, not a hole or padding."""
    count = 0
    for place in range(size):
        for output in range(outputs):
            position, hole = divmod(output * stride - low + place * dilation, base)
            count += hole == 0 and 0 <= position < limit
    return count


def convolution_product(convolution: Instruction, left: ArrayShape, right: ArrayShape) -> Product:
    """Returns the product that a ``convolution`` stands for; on TPU every dot is one, with batch axes as windows.

    Args:
      convolution: The instruction.
      left: Its input.
      right: Its kernel.
    """
    labels = _LABELS.search(convolution.text)
    output = convolution.arrays[0]
    if labels is None:
        return Product(1, output.size, left.size / max(output.size, 1), 1, left.dtype)
    inputs, kernel, results = labels[1], labels[2], labels[3]
    spatial = [label for label in kernel if label.isdigit()]
    found = _WINDOW.search(convolution.text)
    window = dict(part.split("=") for part in found[1].split()) if found else {}

    def numbers(key: str, default: int) -> list[int]:
        return [int(number) for number in window[key].split("x")] if key in window else [default] * len(spatial)

    lows = [int(pad.split("_")[0]) for pad in window["pad"].split("x")] if "pad" in window else [0] * len(spatial)
    pairs = 1
    for index, label in enumerate(sorted(spatial)):
        pairs *= _touching(
            numbers("size", 1)[index],
            left.dimensions[inputs.index(label)],
            output.dimensions[results.index(label)],
            numbers("stride", 1)[index],
            lows[index],
            numbers("lhs_dilate", 1)[index],
            numbers("rhs_dilate", 1)[index],
        )
    inner, columns = right.dimensions[kernel.index("i")], right.dimensions[kernel.index("o")]
    rows = left.dimensions[inputs.index("b")] / convolution.integer("batch_group_count", 1)
    groups = convolution.integer("feature_group_count", 1)
    return Product(pairs * groups, rows, inner, columns / groups, _narrowest((left, right)), _passes(convolution.text))


def _products(instruction: Instruction, computation: Computation) -> tuple[Product, ...]:
    if instruction.opcode not in ("dot", "convolution"):
        return ()
    left, right = (computation.by_name[name].arrays[0] for name in instruction.operands[:2])
    make = dot_product if instruction.opcode == "dot" else convolution_product
    return (make(instruction, left, right),)


_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
"""Products of queries and keys, or like them, in each kernel of the splash attention: a compiler does not see into kernels."""


def _kernel_work(instruction: Instruction, computation: Computation) -> Work:
    """Returns the work of an attention kernel over ``[..., heads, length, head_dim]``: products, and the softmax of every score."""
    kind = _SPLASH.match(instruction.name)
    if kind is None or instruction.opcode != "custom-call":
        return Work()
    arrays = [computation.by_name[name].arrays[0] for name in instruction.operands]
    arrays = [array for array in arrays if len(array.dimensions) >= 3 and array.dtype in ("bf16", "f32", "f16")]
    *batch, length, width = arrays[0].dimensions
    product = Product(math.prod(batch), length, width, arrays[1].dimensions[-2], arrays[0].dtype)
    scores = product.batch * product.rows * product.columns
    return Work((product,) * _SPLASH_PRODUCTS[kind[1]], scores * (TRANSCENDENTAL_OPERATIONS + 4))


def _operations(instruction: Instruction, computation: Computation) -> float:
    if instruction.opcode in FREE | MOVES | {"dot", "convolution", "fusion", "custom-call"}:
        return 0.0
    if instruction.opcode in ("reduce", "reduce-window", "sort", "select-and-scatter"):
        return sum(computation.by_name[name].size for name in instruction.operands[:1])
    return instruction.size * (TRANSCENDENTAL_OPERATIONS if instruction.opcode in TRANSCENDENTAL else 1)


def _inner_work(module: Module, name: str) -> Work:
    """Returns what a fused computation computes; its values stay on the chip."""
    total, computation = Work(), module.computations[name]
    for instruction in computation.instructions:
        total += Work(_products(instruction, computation), _operations(instruction, computation))
        if instruction.opcode in ("fusion", "call", "async-start"):
            for called in instruction.called:
                total += _inner_work(module, called)
    return total


_VIEWS = ("bitcast", "reshape")
"""Opcodes that show the same bytes in another shape."""

_FREE_CALLS = re.compile(
    r'custom_call_target="(?:AllocateBuffer|ConcatBitcast|AssumeGatherIndicesInBound|GatherScatterIndicesBitpacked|Sharding|LayoutConstraint)"'
)
"""Calls of TPU programs that only name buffers or promise something."""


def _nested(user: Instruction, name: str, module: Module) -> tuple[Instruction, Computation] | None:
    """Returns the parameter that stands for a value inside a fusion of a fusion."""
    if user.opcode != "fusion" or not user.called or user.operands.count(name) != 1:
        return None
    inner = module.computations[user.called[0]]
    return inner.parameters()[user.operands.index(name)], inner


def _read_bytes(parameter: Instruction, computation: Computation, module: Module) -> float:
    """Returns the bytes that a fused computation reads of one of its parameters: slices only, where it takes slices only."""
    total, seen, open_names = 0.0, set(), [parameter.name]
    element = parameter.arrays[0].size_bytes / max(parameter.arrays[0].size, 1)
    while open_names:
        name = open_names.pop()
        for user in computation.users.get(name, ()):
            nested = _nested(user, name, module)
            if nested is not None:
                total += _read_bytes(*nested, module)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                total += user.size * element
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # overwritten in place
            elif user.opcode in _VIEWS:
                if user.name not in seen:
                    seen.add(user.name)
                    open_names.append(user.name)
            else:
                return float(parameter.size_bytes)
    return min(total, float(parameter.size_bytes))


def _written_bytes(name: str, computation: Computation, module: Module) -> float:
    """Returns the bytes that a fused computation writes for its results: the update only, where it updates in place."""
    result = computation.by_name[name]
    while result.opcode in _VIEWS:
        result = computation.by_name[result.operands[0]]
    if result.opcode == "tuple":
        return sum(_written_bytes(operand, computation, module) for operand in result.operands)
    if result.opcode == "dynamic-update-slice":
        return float(computation.by_name[result.operands[1]].size_bytes)
    if result.opcode == "fusion" and result.called:
        inner = module.computations[result.called[0]]
        return _written_bytes(inner.root, inner, module)
    return float(result.size_bytes)


def _fusion_bytes(fusion: Instruction, computation: Computation, fused: Computation, module: Module) -> float:
    read = 0.0
    for parameter, operand in zip(fused.parameters(), fusion.operands, strict=False):
        whole = computation.by_name[operand].far_bytes
        read += min(_read_bytes(parameter, fused, module), whole) if len(parameter.arrays) == 1 else whole
    root = fused.by_name[fused.root]
    parts = root.operands if root.opcode == "tuple" and len(root.operands) == len(fusion.arrays) else (root.name,)
    if len(parts) != len(fusion.arrays):
        return read + min(_written_bytes(fused.root, fused, module), fusion.far_bytes)
    written = zip(parts, fusion.arrays, strict=True)
    return read + sum(min(_written_bytes(part, fused, module), array.far_bytes) for part, array in written)


def _plain_bytes(instruction: Instruction, computation: Computation) -> float:
    operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
    opcode = instruction.opcode
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * instruction.far_bytes + sum(operand.far_bytes for operand in operands[1:])
    if opcode == "dynamic-update-slice":
        return 2.0 * operands[1].size_bytes
    if opcode == "scatter":
        return 3.0 * operands[-1].size_bytes + sum(operand.far_bytes for operand in operands[1:-1])
    if opcode in ("broadcast", "iota"):
        return float(instruction.far_bytes)
    return float(instruction.far_bytes + sum(operand.far_bytes for operand in operands))


def instruction_work(instruction: Instruction, computation: Computation, module: Module) -> Work:
    """Returns what an instruction does on one device; loops, calls and collectives are not looked into.

    Args:
      instruction: The instruction.
      computation: Where it stands.
      module: The program.
    """
    if instruction.opcode in FREE or _FREE_CALLS.search(instruction.text):
        return Work()
    if instruction.opcode == "fusion":
        work = Work()
        for name in instruction.called:
            fused = module.computations[name]
            work += _inner_work(module, name) + Work(moved_bytes=_fusion_bytes(instruction, computation, fused, module))
        return work
    return _kernel_work(instruction, computation) + Work(
        _products(instruction, computation),
        _operations(instruction, computation),
        _plain_bytes(instruction, computation),
    )
