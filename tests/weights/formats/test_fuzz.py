"""Damaged files of every format: either tensors or a WeightsError that names the file, in little time and memory.

The default run takes forty files per format, always the same. ``make test-slow`` takes 13,000 new ones.
"""

import functools
import io
import json
import time
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flaxbert.errors import WeightsError
from flaxbert.weights.readers import open_weights
from tests.lazy_checks import unchecked
from tests.weights.formats import bundle

torch = pytest.importorskip("torch", reason="needs the test extra")

LONGEST_SECONDS = 5.0
"""Per file. The usual is some milliseconds; the rest is for busy machines."""

MOST_BYTES_PER_BYTE = 100
"""Memory per byte of the file: an empty list takes one byte in a pickle and 56 in Python, and 8 in what holds it."""

MOST_BYTES_AT_ALL = 1 << 18
"""Memory for what every file takes: buffers, the traceback of an error."""

FILES = {
    "safetensors": "model.safetensors",
    "index": "model.safetensors.index.json",
    "archive": "pytorch_model.bin",
    "program": "pytorch_model.bin",
    "old layout": "pytorch_model.bin",
    "flax": "flax_model.msgpack",
    "bundle": "bert_model.ckpt.index",
    "sealed bundle": "bert_model.ckpt.index",
    "bundle data": "bert_model.ckpt.data-00000-of-00001",
}
"""The file that is damaged."""


def _arrays():
    random = np.random.default_rng(0)
    return {
        "bert/a/kernel": random.standard_normal((3, 4)).astype(np.float32),
        "bert/a/bias": random.standard_normal(4).astype(np.float16),
        "bert/b/gamma": random.standard_normal((2, 0)).astype(np.float32),
        "bert/b/beta": random.standard_normal(6).astype(ml_dtypes.bfloat16),
        "global_step": np.array(7),
    }


def _torch(layout):
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = torch.nn.Linear(3, 2).state_dict() | {"whole": base, "part": base.t()[1:3], "half": torch.ones(2).half()}
    stream = io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, stream, _use_new_zipfile_serialization=layout)
    return stream.getvalue()


def _entries():
    entries, offset, data = {b"": bundle.header()}, 0, b""
    for name, array in sorted(_arrays().items()):
        raw = array.tobytes()
        entries[name.encode()] = bundle.describe(bundle.TYPES[array.dtype], array.shape, 0, offset, raw)
        offset, data = offset + len(raw), data + raw
    return sorted(entries.items()), data


def _flax():
    tree = {name: array for name, array in _arrays().items() if name != "global_step"}
    whole, chunk = serialization.msgpack_serialize(tree), serialization._chunk(np.arange(6.0, dtype=np.float32))
    return whole + serialization.msgpack_serialize({"c": {"kernel": chunk}})[1:]


@functools.cache
def _seed(kind):
    """The sound file of a kind."""
    if kind == "safetensors":
        return safetensors.numpy.save(_arrays(), metadata={"format": "pt"})
    if kind == "index":
        return json.dumps(
            {"metadata": {"total_size": 20}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
        ).encode()
    if kind in ("archive", "old layout"):
        return _torch(kind == "archive")
    if kind == "program":
        with zipfile.ZipFile(io.BytesIO(_torch(True))) as archive:
            return archive.read("archive/data.pkl")
    if kind == "flax":
        seed = bytearray(_flax())
        seed[0] += 1
        return bytes(seed)
    entries, data = _entries()
    return data if kind == "bundle data" else bundle.table(entries, per_block=3)


def _write(folder, kind, content):
    """Writes the damaged file, and the sound ones beside it."""
    if kind == "program":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            for key, num_bytes in enumerate((24, 8, 48, 4)):
                archive.writestr(f"archive/data/{key}", bytes(num_bytes))
        content = stream.getvalue()
    if kind == "index":
        for name, file in (("a", "x"), ("b", "y")):
            (folder / f"{file}.safetensors").write_bytes(safetensors.numpy.save({name: np.ones(2, np.float32)}))
    if "bundle" in kind:
        (folder / FILES["bundle"]).write_bytes(_seed("bundle"))
        (folder / FILES["bundle data"]).write_bytes(_seed("bundle data"))
    (folder / FILES[kind]).write_bytes(content)
    return len(content)


def _read_all(folder):
    for name, tensor in open_weights(folder).items():
        array = tensor.read()
        assert array.shape == tensor.shape, name


def _check(folder, kind, content):
    """Reads a damaged file; returns whether it could be read all the same."""
    size = _write(folder, kind, content)
    tracemalloc.reset_peak()
    before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
    problem = None
    try:
        _read_all(folder)
    except WeightsError as error:
        problem = str(error)
    seconds, used = time.perf_counter() - start, tracemalloc.get_traced_memory()[1] - before
    assert problem is None or str(folder) in problem
    assert seconds < LONGEST_SECONDS
    assert used < MOST_BYTES_AT_ALL + MOST_BYTES_PER_BYTE * size, f"{used} bytes for a file of {size}"
    return problem is None


NUMBERS = st.sampled_from(
    [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
)
PIECES = st.sampled_from(
    [b"\0" * 8, b"\xff" * 8, b"9" * 30, b"[" * 2000, b"}", b'"', b"\\ud800", b"NaN", b"1e999", b"-1", b"../", b"cos\nsystem\n(X\x02\0\0\0lstR",
     b"\x80\x02}q\0.", b"(((((", b"]" * 500, b"\xdd\xff\xff\xff\xff", b"\xdf\0\x10\0\0", b"\x91" * 100, b"\xc6\x7f\xff\xff\xff",
     b"PK\x05\x06" + bytes(18), b"PK\x03\x04", b"\x8a\xff" + b"\x7f" * 255]
)  # fmt: skip
PLACES = st.integers(0, 2**20) | st.integers(-64, 64)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACES, st.integers(1, 255)),
        st.tuples(st.just("cut"), PLACES, st.just(0)),
        st.tuples(st.just("insert"), PLACES, PIECES | st.binary(min_size=1, max_size=12)),
        st.tuples(st.just("remove"), PLACES, st.integers(1, 40)),
        st.tuples(st.just("number"), PLACES, st.tuples(NUMBERS, st.sampled_from([1, 2, 4, 8]), st.booleans())),
        st.tuples(st.just("copy"), PLACES, st.tuples(PLACES, st.integers(1, 60))),
    ),
    min_size=1,
    max_size=5,
)


def _changed(content, changes):
    data = bytearray(content)
    for kind, place, value in changes:
        place %= max(1, len(data))
        match kind:
            case "flip" if data:
                data[place] ^= value
            case "cut":
                del data[place:]
            case "insert":
                data[place:place] = value
            case "remove":
                del data[place : place + value]
            case "number":
                number, size, big = value
                data[place : place + size] = (number % 256**size).to_bytes(size, "big" if big else "little")
            case "copy":
                start = value[0] % max(1, len(data))
                data[place:place] = data[start : start + value[1]]
    return bytes(data)


def _sealed(changes):
    """A table whose entries are damaged before its blocks get their checksums."""
    entries, _ = _entries()
    number = abs(changes[0][1]) % len(entries)
    key, value = entries[number]
    entries[number] = (_changed(key, changes) if changes[0][0] == "copy" else key, _changed(value, changes))
    return bundle.table(sorted(entries), per_block=3)


def _damaged(kind, changes):
    return _sealed(changes) if kind == "sealed bundle" else _changed(_seed(kind), changes)


@pytest.fixture
def folder(tmp_path):
    tracemalloc.start()
    with unchecked():
        yield tmp_path
    tracemalloc.stop()


QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
THOROUGH = settings(QUICK, max_examples=1000, derandomize=False)


@pytest.mark.parametrize("kind", FILES)
def test_the_sound_files_are_read(folder, kind):
    if kind == "sealed bundle":
        kind = "bundle"
    assert _check(folder, kind, _seed(kind))


@pytest.mark.parametrize("kind", FILES)
@QUICK
@given(changes=CHANGES)
def test_damage_ends_in_an_error_of_ours(folder, kind, changes):
    _check(folder, kind, _damaged(kind, changes))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
@THOROUGH
@given(changes=CHANGES)
def test_much_damage_ends_in_an_error_of_ours(folder, kind, changes):
    _check(folder, kind, _damaged(kind, changes))


STEPS = [
    b"(", b"0", b"1", b"N", b"\x88", b"K\x00", b"K\x02", b"J\xff\xff\xff\xff", b"M\x00\x01", b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"X\x01\0\0\0a", b"X\x01\0\0\x000", b"X\x07\0\0\0storage", b"X\x0a\0\0\0state_dict", b"]", b"l", b"a", b"e", b")", b"t",
    b"\x85", b"\x86", b"\x87", b"}", b"d", b"s", b"u", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"\x94", b"R", b"b", b"Q",
    b"ctorch\nFloatStorage\n", b"ctorch\nSize\n", b"ctorch\nfloat32\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._utils\n_rebuild_parameter\n", b"ccollections\nOrderedDict\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch.storage\nUntypedStorage\n", b"G" + bytes(8),
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ", b"K\x00K\x02\x85K\x01\x85\x89}t",
    b"ctorch._utils\n_rebuild_tensor_v2\n(",
]  # fmt: skip
"""Instructions from which programs are made, some several at a time so that tensors come about."""

PROGRAMS = st.lists(st.sampled_from(STEPS), max_size=60).map(lambda steps: b"\x80\x02" + b"".join(steps) + b".")


@pytest.mark.parametrize("beginning", [b"", b"}X\x01\0\0\0a"])
@QUICK
@given(program=PROGRAMS)
def test_programs_end_in_an_error_of_ours(folder, beginning, program):
    _check(folder, "program", program[:2] + beginning + program[2:])


@pytest.mark.slow
@pytest.mark.parametrize("beginning", [b"", b"}X\x01\0\0\0a"])
@THOROUGH
@given(program=PROGRAMS)
def test_many_programs_end_in_an_error_of_ours(folder, beginning, program):
    _check(folder, "program", program[:2] + beginning + program[2:])


ODD_NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 8, 16, 2**31, 2**62, 2**63, 10**400, 1.5, True, None, "2", [2]])
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "", "__metadata__", "\ud800", "x" * 300]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "F64", "BOOL", "I8", "F8_E4M3", "", None, 3, ["F32"]]),
            "shape": st.lists(ODD_NUMBERS, max_size=3) | st.just([1] * 40) | ODD_NUMBERS,
            "data_offsets": st.sampled_from([[0, 4], [0, 8], [4, 8], [0, 16], [8, 16]])
            | st.lists(ODD_NUMBERS, max_size=3),
        }
    )
    | ODD_NUMBERS,
    max_size=3,
)
SHARDS = st.dictionaries(
    st.sampled_from(["a", "b", "c", ""]),
    st.sampled_from(
        ["x.safetensors", "y.safetensors", "", ".", "..", "../x", "/etc/passwd", "a\0b", "a\\b", "\ud800", "z" * 999]
    )
    | ODD_NUMBERS,
    max_size=3,
)


def _check_json(folder, kind, value):
    text = json.dumps(value).encode()
    _check(folder, kind, len(text).to_bytes(8, "little") + text + bytes(16) if kind == "safetensors" else text)


@QUICK
@given(header=HEADERS)
def test_headers_that_make_no_sense(folder, header):
    _check_json(folder, "safetensors", header)


@QUICK
@given(shards=SHARDS)
def test_lists_of_shards_that_make_no_sense(folder, shards):
    _check_json(folder, "index", {"weight_map": shards})


@pytest.mark.slow
@THOROUGH
@given(header=HEADERS, shards=SHARDS)
def test_many_headers_and_lists_that_make_no_sense(folder, header, shards):
    _check_json(folder, "safetensors", header)
    (folder / FILES["safetensors"]).unlink()
    _check_json(folder, "index", {"weight_map": shards})
    (folder / FILES["index"]).unlink()
