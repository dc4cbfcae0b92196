"""The bounded msgpack reader against the library, and what it refuses."""

import io
import pathlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.errors import WeightsError
from flaxbert.weights.formats.msgpack import DEEPEST_NESTING, MsgpackReader, Payload
from flaxbert.weights.formats.stored import Window

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=300)),
    lambda children: st.lists(children, max_size=20) | st.dictionaries(st.text(max_size=40), children, max_size=20),
    max_leaves=30,
)


def _read(data):
    window = Window(io.BytesIO(data), pathlib.Path("tree.msgpack"), "Flax msgpack", 0, len(data))
    return MsgpackReader(window).read(), window


def _filled(value, data):
    """Puts the bytes in for payloads."""
    match value:
        case Payload():
            content = data[value.offset : value.offset + value.num_bytes]
            return content if value.kind is None else msgpack.ExtType(value.kind, content)
        case list():
            return [_filled(item, data) for item in value]
        case dict():
            return {key: _filled(item, data) for key, item in value.items()}
    return value


@settings(deadline=None, max_examples=200)
@given(VALUES)
def test_equal_to_the_library(value):
    data = msgpack.packb(value)
    found, window = _read(data)
    assert _filled(found, data) == value
    assert window.position == len(data)


@pytest.mark.slow
def test_long_maps_and_lists():
    value = {"list": list(range(70_000)), "map": {str(number): number for number in range(70_000)}}
    assert _read(msgpack.packb(value))[0] == value
    value = {"list": list(range(200)), "single": 1.5}
    assert _read(msgpack.packb(value, use_single_float=True))[0] == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "1 bytes are claimed where 0 are left"),
        (b"\xc6\xff\xff\xff\xff", "4294967295 bytes are claimed where 0 are left"),
        (b"\xc9\xff\xff\xff\xff\x01abc", "4294967295 bytes are claimed where 3 are left"),
        (b"\xdb\xff\xff\xff\xff", "a text of 4294967295 bytes"),
        (b"\xdd\xff\xff\xff\xff\xc0", "4294967295 values are claimed where 1 bytes are left"),
        (b"\xdf\xff\xff\xff\xff\xc0", "8589934590 values are claimed where 1 bytes are left"),
        (b"\x91" * (DEEPEST_NESTING + 5) + b"\xc0", f"nests more than {DEEPEST_NESTING}"),
        (b"\x81\xa1a" * (DEEPEST_NESTING + 5) + b"\xc0", f"nests more than {DEEPEST_NESTING}"),
        (b"\x82\xa1a\xc0\xa1a\xc0", "the key 'a' twice"),
        (b"\x81\x01\xc0", "a key that is no text"),
        (b"\xa1\xff", "a text is no UTF-8"),
        (b"\xc1", "0xc1 starts no value"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(WeightsError, match=f"tree.msgpack is no whole Flax msgpack file: .*{message}"):
        _read(data)


def test_too_many_values(monkeypatch):
    monkeypatch.setattr("flaxbert.weights.formats.msgpack.MOST_VALUES", 100)
    with pytest.raises(WeightsError, match="more than 100 values"):
        _read(msgpack.packb([0] * 100))
