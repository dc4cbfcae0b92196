"""A machine that interprets the part of Python's pickle language in which tensors are written, and executes nothing.

Python's own unpickler imports what a file names and calls it. Here a file can only name entries of a table that the caller
gives; everything else ends the reading with an error that says what the file tried to call. Containers are built as plain
lists, tuples and ``PickledMap``; keys are never hashed and nothing is ever compared, so no input costs more than time and
memory in proportion to its length.
"""

import dataclasses
import struct
from collections.abc import Callable, Mapping
from typing import Any

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.stored import Window

MOST_STEPS = 500_000
"""Pickles of more instructions are refused; a model of a thousand tensors takes some thirty thousand."""

_LONGEST_NAME_BYTES = 256
_LONGEST_TEXT_BYTES = 1 << 20
_MARK = object()


@dataclasses.dataclass(frozen=True)
class Callee:
    """What stands for a function that a pickle may name.

    Attributes:
      name: Its dotted name in the file.
      function: What is done instead of calling it, with the arguments as a tuple. It raises ``TypeError`` or ``ValueError``
        where they do not fit.
    """

    name: str
    function: Callable[[tuple[Any, ...]], Any]


@dataclasses.dataclass(frozen=True)
class PickledMap:
    """A dictionary of a pickle.

    Attributes:
      pairs: Keys and values in the order of the file.
    """

    pairs: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Stateful:
    """What a callee returns where the file may set attributes on the result, which are left aside.

    Attributes:
      value: The result.
    """

    value: Any


class PickleMachine:
    """Interprets one pickle."""

    def __init__(
        self, window: Window, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        """Prepares to run.

        Args:
          window: The file's part from the pickle's first byte on.
          names: What stands for each pair of module and name that a file may use.
          persistent: Gives what stands for a persistent id; None where there are none. It raises ``TypeError`` or
            ``ValueError`` where the id is malformed.
        """
        self._window, self._names, self._persistent = window, names, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Runs to the end of the pickle, where the window then stands.

        Returns:
          What the pickle holds.

        Raises:
          WeightsError: The pickle is damaged, uses an instruction or a name that tensors do not need, or is too long.
        """
        for _ in range(MOST_STEPS):
            code = self._window.take(1)
            if code == b".":
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise self._window.problem(f"the instruction {code!r} has no place in a pickle of tensors")
            step(self)
        raise self._window.problem(f"its pickle has more than {MOST_STEPS} instructions")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self._window.problem("an instruction takes a value where there is none")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                values = self._stack[place + 1 :]
                del self._stack[place:]
                return values
        raise self._window.problem("an instruction goes back to a mark where there is none")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _container(self, kind: type) -> Any:
        target = self._stack[-1] if self._stack else None
        target = target.value if isinstance(target, Stateful) else target
        if not isinstance(target, kind):
            raise self._window.problem(f"an instruction fills a {type(target).__name__} like a {kind.__name__}")
        return target

    def _number(self, num_bytes: int, signed: bool = False) -> int:
        return self._window.take_number(num_bytes, signed=signed)

    def _data(self, size_bytes: int) -> bytes:
        size = self._number(size_bytes)
        if size > _LONGEST_TEXT_BYTES:
            raise self._window.problem(f"a text of {size} bytes has no place in a pickle of tensors")
        return self._window.take(size)

    def _text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self._window.problem("a name is no UTF-8") from error

    def _line(self) -> str:
        line = bytearray()
        while (byte := self._window.take(1)) != b"\n":
            line += byte
            if len(line) > _LONGEST_NAME_BYTES:
                raise self._window.problem(f"a name is longer than {_LONGEST_NAME_BYTES} bytes")
        return self._text(bytes(line))

    def _append(self, values: list[Any]) -> None:
        self._container(list).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise self._window.problem("a dictionary has a key without a value")
        self._container(PickledMap).pairs.extend(zip(values[::2], values[1::2], strict=True))

    def _fetch(self, number: int) -> None:
        if number not in self._memo:
            raise self._window.problem(f"it refers to its object {number}, which there is not")
        self._push(self._memo[number])

    def _remember(self, number: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise self._window.problem("an instruction remembers a value where there is none")
        self._memo[number] = self._stack[-1]

    def _resolve(self, module: str, name: str) -> None:
        if (module, name) not in self._names:
            raise WeightsError(
                f"{self._window.file} is a pickle that asks for {module}.{name} (before byte {self._window.position}), "
                "which tensors do not need. flaxbert interprets pickles itself and calls nothing that a file names: it is "
                "refused, and nothing was run. If you trust the file, read it with torch and save its state_dict as "
                "model.safetensors."
            )
        self._push(self._names[module, name])

    def _global(self) -> None:
        module = self._line()
        self._resolve(module, self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str) or len(name) + len(module) > _LONGEST_NAME_BYTES:
            raise self._window.problem("a name is no text")
        self._resolve(module, name)

    def _instance(self) -> None:
        module = self._line()
        self._resolve(module, self._line())
        raise self._window.problem("it makes an object in a way that tensors do not need")

    def _reduce(self) -> None:
        arguments, callee = self._pop(), self._pop()
        if not isinstance(callee, Callee) or not isinstance(arguments, tuple):
            raise self._window.problem("it calls what is no function")
        try:
            self._push(callee.function(arguments))
        except (TypeError, ValueError) as error:
            if isinstance(error, WeightsError):
                raise
            raise self._window.problem(f"the arguments of {callee.name} do not fit: {error}") from error

    def _build(self) -> None:
        self._pop()
        if not self._stack or not isinstance(self._stack[-1], Stateful):
            raise self._window.problem("it sets attributes of what has none")

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise self._window.problem("it refers to something outside of itself")
        try:
            self._push(self._persistent(self._pop()))
        except (TypeError, ValueError) as error:
            if isinstance(error, WeightsError):
                raise
            raise self._window.problem(f"it refers to a storage in a way that does not fit: {error}") from error

    def _tuple(self, size: int) -> None:
        values = [self._pop() for _ in range(size)]
        self._push(tuple(values[::-1]))

    def _map(self, values: list[Any]) -> None:
        self._push(PickledMap())
        self._set_items(values)

    def _protocol(self) -> None:
        if (protocol := self._number(1)) > 5:
            raise self._window.problem(f"its pickle has protocol {protocol}, which is not known")

    def _float(self) -> None:
        self._push(struct.unpack(">d", self._window.take(8))[0])


_Step = Callable[[PickleMachine], object]

# Reaching into the machine is the point of its instructions. ruff: noqa: SLF001
_STEPS: dict[bytes, _Step] = {
    b"\x80": PickleMachine._protocol,
    b"\x95": lambda machine: machine._window.take(8),
    b"(": lambda machine: machine._push(_MARK),
    b"0": lambda machine: machine._pop(),
    b"1": lambda machine: machine._pop_to_mark(),
    b"N": lambda machine: machine._push(None),
    b"\x88": lambda machine: machine._push(True),
    b"\x89": lambda machine: machine._push(False),
    b"J": lambda machine: machine._push(machine._number(4, signed=True)),
    b"K": lambda machine: machine._push(machine._number(1)),
    b"M": lambda machine: machine._push(machine._number(2)),
    b"\x8a": lambda machine: machine._push(machine._number(machine._number(1), signed=True)),
    b"G": PickleMachine._float,
    b"X": lambda machine: machine._push(machine._text(machine._data(4))),
    b"\x8c": lambda machine: machine._push(machine._text(machine._data(1))),
    b"\x8d": lambda machine: machine._push(machine._text(machine._data(8))),
    b"T": lambda machine: machine._push(machine._text(machine._data(4))),
    b"U": lambda machine: machine._push(machine._text(machine._data(1))),
    b"B": lambda machine: machine._push(machine._data(4)),
    b"C": lambda machine: machine._push(machine._data(1)),
    b"]": lambda machine: machine._push([]),
    b"l": lambda machine: machine._push(machine._pop_to_mark()),
    b"a": lambda machine: machine._append([machine._pop()]),
    b"e": lambda machine: machine._append(machine._pop_to_mark()),
    b")": lambda machine: machine._push(()),
    b"t": lambda machine: machine._push(tuple(machine._pop_to_mark())),
    b"\x85": lambda machine: machine._tuple(1),
    b"\x86": lambda machine: machine._tuple(2),
    b"\x87": lambda machine: machine._tuple(3),
    b"}": lambda machine: machine._push(PickledMap()),
    b"d": lambda machine: machine._map(machine._pop_to_mark()),
    b"s": lambda machine: machine._set_items([machine._pop(), machine._pop()][::-1]),
    b"u": lambda machine: machine._set_items(machine._pop_to_mark()),
    b"q": lambda machine: machine._remember(machine._number(1)),
    b"r": lambda machine: machine._remember(machine._number(4)),
    b"\x94": lambda machine: machine._remember(len(machine._memo)),
    b"h": lambda machine: machine._fetch(machine._number(1)),
    b"j": lambda machine: machine._fetch(machine._number(4)),
    b"c": PickleMachine._global,
    b"\x93": PickleMachine._stack_global,
    b"i": PickleMachine._instance,
    b"R": PickleMachine._reduce,
    b"b": PickleMachine._build,
    b"Q": PickleMachine._persistent_id,
}
"""What each instruction does; the codes are those of Python's ``pickletools``."""
