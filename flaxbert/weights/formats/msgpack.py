"""A bounded reader of msgpack (msgpack.org) that leaves large values where they are and says where that is.

Unlike the library, it takes nothing that a file claims on trust: a length is compared with what is left of the file, nesting
and the number of values have bounds, and the payloads of extensions and long byte strings are skipped, not read.
"""

import dataclasses
import struct
from typing import Any

from flaxbert.weights.formats.stored import Window

MOST_VALUES = 2_000_000
"""Files of more values are refused; the tree of a model has one per name and array."""

DEEPEST_NESTING = 64
"""Maps and lists inside of one another beyond this depth are refused."""

_LONGEST_TEXT_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Payload:
    """Bytes that were left in the file.

    Attributes:
      kind: Type of the extension, -128 to 127; None for a byte string.
      offset: First byte, counted from the start of the file.
      num_bytes: How many.
    """

    kind: int | None
    offset: int
    num_bytes: int


class MsgpackReader:
    """Reads values from a window one after the other."""

    def __init__(self, window: Window) -> None:
        """Prepares to read.

        Args:
          window: The file's part that holds the values.
        """
        self.window = window
        self._num_values = 0

    def read(self, depth: int = 0) -> Any:
        """Reads one value.

        Args:
          depth: How many maps and lists it stands in.

        Returns:
          None, a bool, number, text, dictionary with texts as keys, list, or ``Payload``.

        Raises:
          WeightsError: The file ends before the value does, nests too deeply, holds too many values, an unknown type, or a
            map that names something twice.
        """
        self._num_values += 1
        if self._num_values > MOST_VALUES:
            raise self.window.problem(f"it holds more than {MOST_VALUES} values")
        if depth > DEEPEST_NESTING:
            raise self.window.problem(f"it nests more than {DEEPEST_NESTING} levels deep")
        code = self.window.take(1)[0]
        if code < 0x80:
            return code
        if code < 0x90:
            return self._map(code & 0x0F, depth)
        if code < 0xA0:
            return self._list(code & 0x0F, depth)
        if code < 0xC0:
            return self._text(code & 0x1F)
        if code >= 0xE0:
            return code - 256
        return self._long_form(code, depth)

    def _size(self, code: int, first: int) -> int:
        return self.window.take_number(1 << (code - first), "big")

    def _long_form(self, code: int, depth: int) -> Any:
        window = self.window
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            layout = _NUMBERS[code]
            return struct.unpack(layout, window.take(struct.calcsize(layout)))[0]
        if 0xC4 <= code <= 0xC6:
            return self._payload(None, self._size(code, 0xC4))
        if 0xC7 <= code <= 0xC9:
            size = self._size(code, 0xC7)
            return self._payload(window.take_number(1, signed=True), size)
        if 0xD4 <= code <= 0xD8:
            return self._payload(window.take_number(1, signed=True), 1 << (code - 0xD4))
        if 0xD9 <= code <= 0xDB:
            return self._text(self._size(code, 0xD9))
        if 0xDC <= code <= 0xDD:
            return self._list(self._size(code, 0xDC - 1), depth)
        if 0xDE <= code <= 0xDF:
            return self._map(self._size(code, 0xDE - 1), depth)
        raise window.problem(f"the byte {code:#x} starts no value")

    def _payload(self, kind: int | None, num_bytes: int) -> Payload:
        return Payload(kind, self.window.skip(num_bytes), num_bytes)

    def _text(self, num_bytes: int) -> str:
        if num_bytes > _LONGEST_TEXT_BYTES:
            raise self.window.problem(f"a text of {num_bytes} bytes has no place among tensors")
        try:
            return self.window.take(num_bytes).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.window.problem("a text is no UTF-8") from error

    def _claim(self, num_values: int) -> None:
        left = self.window.end - self.window.position
        if num_values > left:
            raise self.window.problem(f"{num_values} values are claimed where {left} bytes are left")

    def _list(self, num_values: int, depth: int) -> list[Any]:
        self._claim(num_values)
        return [self.read(depth + 1) for _ in range(num_values)]

    def _map(self, num_values: int, depth: int) -> dict[str, Any]:
        self._claim(2 * num_values)
        found: dict[str, Any] = {}
        for _ in range(num_values):
            key = self.read(depth + 1)
            if not isinstance(key, str):
                raise self.window.problem("a map has a key that is no text")
            if key in found:
                raise self.window.problem(f"a map has the key '{key[:80]}' twice")
            found[key] = self.read(depth + 1)
        return found


_CONSTANTS: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS: dict[int, str] = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
